"""What every file has in common: it is read back as it was written, and whatever is wrong with it is told."""

import copy
import json
import subprocess
import sys

import pytest
from records_examples import made

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.records.checkpoint import CheckpointManifest
from e2ray.records.evaluation import RemovedScaling
from e2ray.records.folders import FOLDERS
from e2ray.records.manifest import Manifest, spelled
from e2ray.records.model import ModelRecord
from e2ray.records.record import Line, Part, Record
from e2ray.records.run import Status
from e2ray.records.sealed import sealed

PARTS = sorted(
    {entry.record for folder in FOLDERS for entry in folder.entries() if entry.record}, key=lambda r: r.__name__
)
RECORDS = [part for part in PARTS if issubclass(part, Record)]
LINES = [record for record in RECORDS if issubclass(record, Line)]
FILES = [record for record in RECORDS if not issubclass(record, Line)]


def leaves(value, schema, defs, path=()):
    """Yield the path of every value whose kind the schema says, and a value of another kind."""
    if "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        schema = next((each for each in schema["anyOf"] if each.get("type") != "null"), {})
        yield from leaves(value, schema, defs, path)
        return
    if path and (schema.get("type") or schema.get("enum")):
        yield path, "text" if schema.get("type") == "array" else [{"damaged": 1}]
    if isinstance(value, dict):
        other = schema.get("additionalProperties")
        for key, inner in value.items():
            known = schema.get("properties", {}).get(key, other if isinstance(other, dict) else {})
            yield from leaves(inner, known, defs, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            parts = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
            yield from leaves(inner, parts[place], defs, (*path, place))


def put(content, path, value):
    changed = copy.deepcopy(content)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def store(path, record, content):
    """Write fields as they are, without a digest where the file may do without."""
    if record is ModelRecord:
        files.write_sealed(path, content)
    else:
        path.write_text(spelled(content) if record is Manifest else json.dumps(content))


def plain(record):
    return json.loads(json.dumps(record.content()))


@pytest.mark.parametrize("record", FILES)
def test_what_is_written_is_read_back(tmp_path, record):
    path, one = tmp_path / "file.json", made(record)
    one.write(path)
    written = path.read_bytes()
    assert record.read(path) == record.find(path) == one
    assert record.read_told(path) == (one, record.vouched)
    assert next(iter(json.loads(written))) == "schema_version"
    record.read(path).write(path)
    assert path.read_bytes() == written
    assert record.find(tmp_path / "none.json") is None


@pytest.mark.parametrize("record", FILES)
def test_every_wrong_field_is_named_with_its_file(tmp_path, record):
    path, content, schema = tmp_path / "file.json", plain(made(record)), record.model_json_schema()
    content.pop("schema_version")
    changes = list(leaves(content, schema, schema.get("$defs", {})))
    changes = [change for change in changes if record is not Manifest or change[0] != ("digest",)]
    assert changes
    for wrong, value in changes:
        store(path, record, put(content, wrong, value) | {"schema_version": 1})
        with pytest.raises(SettingsError) as told:
            record.read(path)
        line = str(told.value)
        assert line.startswith(f"{path}: is damaged, ") and "\n" not in line
        assert ".".join(map(str, wrong)) in line, line
        assert line.endswith(record.wanted()), line


@pytest.mark.parametrize("record", FILES)
def test_a_field_that_is_lost_or_unknown_is_named(tmp_path, record):
    path, content = tmp_path / "file.json", plain(made(record))
    for name, field in record.model_fields.items():
        store(path, record, {key: value for key, value in content.items() if key != name})
        if field.is_required():
            with pytest.raises(SettingsError, match=f"is damaged, it lacks {name}; wanted"):
                record.read(path)
        else:
            record.read(path)
    store(path, record, content | {"other": 1.0})
    if record.model_config.get("extra") == "forbid":
        with pytest.raises(SettingsError, match="is damaged, it knows no other; wanted"):
            record.read(path)


@pytest.mark.parametrize("record", [record for record in FILES if record.vouched])
def test_a_changed_byte_is_found(tmp_path, record):
    path = tmp_path / "file.json"
    made(record).write(path)
    content = path.read_bytes()
    changes = 0
    for place in range(0, len(content), 7):
        changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        path.write_bytes(changed)
        try:
            same = json.loads(changed) == json.loads(content)
        except ValueError:
            same = False
        if not same:  # white space tells nothing
            changes += 1
            with pytest.raises(SettingsError, match=r"file\.json: "):
                record.read(path)
    assert changes > 5


@pytest.mark.parametrize("record", FILES)
def test_a_file_of_a_newer_version_says_so(tmp_path, record):
    path = tmp_path / "file.json"
    store(path, record, plain(made(record)) | {"schema_version": 7, "unheard_of": 1})
    with pytest.raises(SettingsError, match=r"file\.json: was written by a newer e2ray, in schema version 7; this one"):
        record.read(path)


@pytest.mark.parametrize("record", FILES)
@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0, [1]])
def test_a_version_that_is_none_is_damage(tmp_path, record, version):
    path = tmp_path / "file.json"
    store(path, record, plain(made(record)) | {"schema_version": version})
    with pytest.raises(SettingsError, match="is damaged, schema_version is "):
        record.read(path)


@pytest.mark.parametrize("record", [record for record in FILES if record is not Manifest])
def test_a_file_of_before_versions_is_read_as_todays(tmp_path, record):
    path, one = tmp_path / "file.json", made(record)
    content = plain(one)
    content.pop("schema_version")
    if record is CheckpointManifest:
        content["digest"] = files.digest(content["files"])
    unknown = {"field_of_then": 1} if record.model_config.get("extra") == "forbid" else {}
    store(path, record, unknown | content)
    assert record.read(path) == one


@pytest.mark.parametrize("value", [[], 3, "text", None, True])
@pytest.mark.parametrize("record", FILES)
def test_what_is_no_object_is_told(tmp_path, record, value):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(value))
    with pytest.raises(SettingsError, match="is damaged, it holds "):
        record.read(path)


@pytest.mark.parametrize("line", LINES)
def test_lines_are_read_back_and_a_wrong_one_is_named(tmp_path, line):
    path, one = tmp_path / "lines.jsonl", made(line)
    assert line.lines(path)[0] == []
    path.write_text(sealed([one.text()] * 3)[0])
    assert line.lines(path)[0] == [one] * 3
    path.write_text(sealed([one.text(), json.dumps(plain(one) | {"step": "two"})])[0])
    with pytest.raises(SettingsError, match=r"lines\.jsonl: line 2: is damaged, step is 'two', wanted a whole number"):
        line.lines(path)
    older = {key: value for key, value in plain(one).items() if key != "schema_version"}
    path.write_text(json.dumps(older) + "\n")
    assert line.lines(path)[0] == [one]


@pytest.mark.parametrize("part", PARTS)
def test_every_field_says_what_it_is(part):
    assert part.__doc__
    schema = part.model_json_schema()
    for name, made_of in {part.__name__: schema, **schema.get("$defs", {})}.items():
        if name != "JsonValue":
            assert made_of.get("description"), name
        for key, field in made_of.get("properties", {}).items():
            assert field.get("description", "").endswith("."), (name, key)


def test_a_field_takes_no_number_that_json_has_no_word_for(tmp_path):
    with pytest.raises(ValueError, match="finite"):
        RemovedScaling(scaling="yarn", factor=float("nan"), tokens=1, mean_difference=0.0, changed_argmax=0.0)


def test_a_changed_copy_is_checked():
    status = Status(state="running", step=0, error=None, started_at="now")
    assert status.changed(step=3) == Status(state="running", step=3, error=None, started_at="now")
    with pytest.raises(ValueError, match="step"):
        status.changed(step=-1)
    assert isinstance(status, Part)


def test_records_are_light():
    heavy = ("torch", "pandas", "ray", "numpy", "pyarrow", "transformers", "matplotlib")
    code = f"import e2ray.records.folders, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Card(Record):
    """A file of two fields."""

    what, anew = "a card", "write it anew"

    name: str
    pages: int
    read_aloud: bool | None = None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is damaged, it holds a list; wanted a card"),
        ('"name"', "is damaged, it holds text; wanted a card"),
        ("3", "is damaged, it holds a number; wanted a card"),
        ("null", "is damaged, it holds null; wanted a card"),
        ("{}", "is damaged, it lacks name; wanted a card"),
        ('{"name": "a", "pages": "4"}', "is damaged, pages is '4', wanted a whole number; wanted a card"),
        ('{"name": "a", "pages": true}', "is damaged, pages is True, wanted a whole number; wanted a card"),
        ('{"name": ["a"], "pages": 4}', "is damaged, name is a list, wanted text; wanted a card"),
        (
            json.dumps({"name": "a" * 5_000, "pages": "b" * 5_000}),
            "is damaged, pages is 'b{56}[.]{3}, wanted a whole number; wanted a card",
        ),
    ],
)
def test_an_object_of_another_shape_is_one_short_line(tmp_path, content, message):
    path = tmp_path / "value.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match=rf"\A\S+value\.json: {message}; write it anew\Z") as error:
        Card.read(path)
    assert len(str(error.value)) < 500


def test_an_older_object_may_hold_more_than_is_wanted(tmp_path):
    files.write_json(tmp_path / "value.json", {"name": "a", "pages": 1, "c": []})
    assert Card.read(tmp_path / "value.json") == Card(name="a", pages=1)


def test_true_is_a_truth_value_wherever_one_may_stand():
    assert Card.parse({"name": "a", "pages": 3, "read_aloud": True}, where="x").read_aloud
    with pytest.raises(SettingsError, match="pages is True, wanted a whole number; wanted a card"):
        Card.parse({"name": "a", "pages": True}, where="x")
