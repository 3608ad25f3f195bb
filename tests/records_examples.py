"""An example of every file: all fields given, made from the class."""

from e2ray.records.manifest import Manifest


def example(schema, defs, number=1):
    """Return a value that a JSON schema takes, every field given; `number` tells values of a list apart."""
    if "$ref" in schema:
        return example(defs[schema["$ref"].rpartition("/")[2]], defs, number)
    if "anyOf" in schema:
        return example(schema["anyOf"][0], defs, number)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "integer":
            return min(schema.get("minimum", 0) + number, schema.get("maximum", 99))
        case "number":
            return min(schema.get("minimum", 0) + number / 4, schema.get("maximum", 99))
        case "string":
            return f"text {number}"
        case "boolean":
            return True
        case "array":
            inner = schema.get("prefixItems") or [schema.get("items", {})] * 2
            return [example(part, defs, place) for place, part in enumerate(inner, start=1)]
        case "object":
            known = {key: example(part, defs, number) for key, part in schema.get("properties", {}).items()}
            other = schema.get("additionalProperties", {})
            return known if other is False else known | {"8": example(other if other is not True else {}, defs, number)}
    return {"anything": [1, "two", None]}


def made(record):
    schema = record.model_json_schema()
    one = record.model_validate(example(schema, schema.get("$defs", {})))
    return one.sealed() if record is Manifest else one
