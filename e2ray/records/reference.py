"""The content of every file that e2ray leaves, from its class: as JSON schemas and as the page docs/run-folder.md."""

import re
from collections.abc import Iterator

from e2ray.config.base import SettingsError
from e2ray.config.reference import Schema, escaped, slug, wanted
from e2ray.records.folders import FOLDERS, Entry, Folder
from e2ray.records.record import VERSION, Line, Part, Record

HEAD = """# Files that e2ray leaves

Every file of a run, a study, a comparison, shards and an export: what it is for, and its fields. Made from the classes
that write and read them; `e2ray schema NAME` prints one as a JSON schema.

A file says by `schema_version` how it is written. One without is of an earlier e2ray and read as today's where its
fields allow; one of a newer e2ray is refused by name. JSON files end with a `digest` of themselves, and a line of a
`.jsonl` with its number and a seal, where the tables say so: what is not as it was written is told, never read. Parquet
files carry a digest of their rows. What is no finite number is null.
"""
PAGE = "run-folder"


def records() -> dict[str, type[Part]]:
    """Return the class of every file by its name here, as `metrics-line`."""
    classes = {entry.record for folder in FOLDERS for entry in folder.entries() if entry.record}
    return {name_of(record): record for record in sorted(classes, key=lambda record: record.__name__)}


def name_of(record: type[Part]) -> str:
    """Return what a file is called on the command line."""
    return heading(record.__name__)


def heading(name: str) -> str:
    """Return the heading of a class, `metrics-line` of MetricsLine."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def schema(name: str) -> Schema:
    """Return the JSON schema of a file.

    Raises:
        SettingsError: If there is no such file.
    """
    known = records()
    if name not in known:
        raise SettingsError(
            f"schema: no file is called {name!r}, wanted {PAGE}, or one of {', '.join(known)}, or none: a recipe"
        )
    record = known[name]
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **record.model_json_schema()}
    if issubclass(record, Record):
        version = {"const": record.schema_version, "description": "Of the form of the file."}
        made["properties"] = {VERSION: version, **made["properties"], **_vouching(record)}
    return made


def _vouching(record: type[Record]) -> dict[str, dict[str, str]]:
    """Return the fields that vouch for a file and belong to no class."""
    if issubclass(record, Line):
        number = {"type": "integer", "description": "Number of the line, from 1."}
        return {"line": number, "seal": {"type": "string", "description": "Of this line and all before it."}}
    if record.vouched and "digest" not in record.model_fields:
        return {"digest": {"type": "string", "description": "Of everything else in the file."}}
    return {}


def page() -> str:
    """Return docs/run-folder.md."""
    parts, seen = [HEAD], set[str]()
    for folder in FOLDERS:
        parts += _folder(folder)
        for entry in folder.entries():
            if entry.record and entry.record.__name__ not in seen:
                parts += _record(entry.record, seen)
    return "\n".join(parts)


def _folder(folder: type[Folder]) -> Iterator[str]:
    """Yield the page's section on a folder."""
    yield f"## `{folder.where}`\n\n{_words(folder.__doc__)}\n"
    yield "| name | what it is for | fields |\n| --- | --- | --- |"
    for entry in folder.entries():
        yield f"| `{_shown(entry)}` | {escaped(entry.use)} | {_link(entry.record) if entry.record else ''} |"
    yield ""


def _shown(entry: Entry) -> str:
    return re.sub(r"\{(\w+)[^}]*\}", r"<\1>", entry.name)


def _link(record: type[Part]) -> str:
    return f"[{name_of(record)}](#{slug(name_of(record))})"


def _record(record: type[Part], seen: set[str]) -> Iterator[str]:
    """Yield the tables of a file and of the groups in it that were not shown yet."""
    made = schema(name_of(record))
    headings = {name: heading(name) for name, part in made.get("$defs", {}).items() if part.get("properties")}
    yield _table("###", name_of(record), made, headings)
    seen.add(record.__name__)
    for name, part in made.get("$defs", {}).items():
        if name not in seen and part.get("properties"):
            seen.add(name)
            yield _table("####", headings[name], part, headings)


def _table(level: str, title: str, made: Schema, headings: dict[str, str]) -> str:
    required = set(made.get("required", ()))
    lines = [f"{level} {title}", "", _words(made.get("description")), ""]
    lines += ["| field | type | unit | meaning |", "| --- | --- | --- | --- |"]
    for name, field in made.get("properties", {}).items():
        unit = field.get("unit") or next((each["unit"] for each in field.get("anyOf", ()) if "unit" in each), "")
        left_out = "" if name in required or field.get("default", name) is not None else " May be missing."
        lines.append(f"| `{name}` | {wanted(field, headings)} | {unit} | {escaped(field['description'])}{left_out} |")
    return "\n".join(lines) + "\n"


def _words(text: str | None) -> str:
    return " ".join((text or "").split())
