"""Every setting of a recipe as a Markdown page, from the same JSON schema that `e2ray schema` prints."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

HEAD = """# Settings

Every setting of a recipe, its default and what it may be; made from the classes that check it. `e2ray schema` prints
the same as a JSON schema, which editors complete and check recipes by. A section that has a `kind` takes the settings
of that kind alone.
"""
NO_DEFAULT = "-"
_PLURALS = {"string": "texts", "integer": "whole numbers", "number": "numbers", "boolean": "yes or no"}
_SINGULARS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}

Schema = Mapping[str, Any]


def page(schema: Schema) -> str:
    """Return the page of a recipe's JSON schema, with sections in the order in which settings refer to them."""
    headings = {name: heading for name, heading in _sections(schema)}
    parts = [HEAD, _section("A recipe", schema, headings)]
    parts += [_section(heading, schema["$defs"][name], headings) for name, heading in headings.items()]
    return "\n".join(parts)


def _sections(schema: Schema) -> Iterator[tuple[str, str]]:
    """Yield each definition in use once, with its heading: the path of its first use in a recipe, and its kind."""
    seen: set[str] = set()
    waiting = [(path, part) for path, part in _properties(schema)]
    while waiting:
        path, part = waiting.pop(0)
        inner_parts = []
        for name in _references(part):
            if name in seen:
                continue
            seen.add(name)
            made = schema["$defs"][name]
            kind = made.get("properties", {}).get("kind", {}).get("const")
            yield name, f"{path}: {kind}" if kind else path
            inner_parts += [(f"{path}.{key}", inner) for key, inner in _properties(made)]
        waiting = inner_parts + waiting


def _properties(made: Schema) -> list[tuple[str, Schema]]:
    """Return the settings of a section, those of all its forms if it has several."""
    settings: dict[str, Schema] = {}
    for form in (made, *made.get("anyOf", ())):
        for key, part in form.get("properties", {}).items():
            if "const" not in part:
                settings.setdefault(key, part)
    return list(settings.items())


def _references(part: object) -> list[str]:
    """Return the definitions that a part of a schema names, in order."""
    names = re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(part))
    return list(dict.fromkeys(names))


def _section(heading: str, made: Schema, headings: Mapping[str, str]) -> str:
    level = "##" if heading.count(".") == 0 and ":" not in heading else "###"
    lines = [f"{level} {heading}", ""]
    if made.get("description"):
        lines += [" ".join(made["description"].split()), ""]
    settings = _properties(made)
    if settings:
        lines += ["| setting | what it is | wanted | default |", "| --- | --- | --- | --- |"]
    required = set(made.get("required", ()))
    for key, part in settings:
        default = NO_DEFAULT if key in required or "default" not in part else _default(part)
        cells = (f"`{key}`", escaped(part.get("description", "")), wanted(part, headings), default)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _default(part: Schema) -> str:
    value = part["default"]
    if isinstance(value, dict) and _references(part):
        return f"`kind: {value['kind']}`" if "kind" in value else "its own"
    return f"`{escaped(json.dumps(value, ensure_ascii=False))}`"


def wanted(part: Schema, headings: Mapping[str, str]) -> str:
    """Return in words what a setting may be."""
    for several in ("anyOf", "oneOf"):
        if several in part:
            return ", or ".join(dict.fromkeys(wanted(each, headings) for each in part[several]))
    if "$ref" in part:
        heading = headings.get(part["$ref"].rpartition("/")[2])
        if heading is None:
            return "anything"
        return f"[{heading}](#{slug(heading)})"
    if "enum" in part:
        return ", ".join(f"`{escaped(json.dumps(value).strip(chr(34)))}`" for value in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    match part.get("type"):
        case "null":
            return "null"
        case "array":
            return _list(part, headings)
        case "object":
            inner = part.get("additionalProperties")
            return f"names with {wanted(inner, headings)} each" if isinstance(inner, dict) else "settings by name"
        case str(kind):
            return _SINGULARS[kind] + _range(part)
    return "anything"


def _list(part: Schema, headings: Mapping[str, str]) -> str:
    if "prefixItems" in part:
        return f"{len(part['prefixItems'])} {_PLURALS[part['prefixItems'][0]['type']]}"
    inner = part.get("items", {})
    listed = _PLURALS[inner["type"]] + _range(inner) if inner.get("type") in _PLURALS else wanted(inner, headings)
    return f"list of {listed}"


def _range(part: Schema) -> str:
    low, above = part.get("minimum"), part.get("exclusiveMinimum")
    high, below = part.get("maximum"), part.get("exclusiveMaximum")
    words = [
        f"{word} {bound:g}" if abs(bound) < 1e6 else f"{word} {bound:,.0f}"
        for word, bound in (("at least", low), ("above", above), ("at most", high), ("below", below))
        if bound is not None
    ]
    return f", {' and '.join(words)}" if words else ""


def escaped(text: str) -> str:
    """Return a text as one line that is safe in a table cell."""
    return " ".join(text.split()).replace("|", "\\|")


def slug(heading: str) -> str:
    """Return the anchor that GitHub and mkdocs give a heading."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
