"""The page of files: the one that is kept is the code's, every field is on it, and a schema takes what is written."""

import json
from pathlib import Path

import jsonschema
import pytest
from records_examples import made

from e2ray import cli
from e2ray.records.folders import FOLDERS
from e2ray.records.record import Line, Record
from e2ray.records.reference import page, records, schema

KEPT = Path(__file__).resolve().parents[2] / "docs" / "run-folder.md"


def test_the_kept_page_is_that_of_the_classes():
    kept = KEPT.read_text(encoding="utf-8")
    assert kept == page() + "\n", "e2ray schema --markdown run-folder > docs/run-folder.md"


def test_every_file_and_every_field_is_on_the_page_with_its_words():
    shown = page()
    for folder in FOLDERS:
        assert f"## `{folder.where}`\n" in shown
        assert all(entry.use in shown for entry in folder.entries())
    for name in records():
        found = schema(name)
        for part in (found, *found.get("$defs", {}).values()):
            for key, field in part.get("properties", {}).items():
                words = " ".join(field["description"].split()).replace("|", "\\|")
                assert any(line.startswith(f"| `{key}` | ") and words in line for line in shown.splitlines()), (
                    name,
                    key,
                )


@pytest.mark.parametrize("name", records())
def test_a_schema_takes_what_is_written_and_no_unknown_field(name, tmp_path, capsys):
    assert cli.main(["schema", name]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == schema(name)
    record, checks = records()[name], jsonschema.Draft202012Validator(printed)
    one = made(record)
    if issubclass(record, Record) and not issubclass(record, Line):
        one.write(tmp_path / "file")
        content = json.loads((tmp_path / "file").read_text())
    else:
        content = json.loads(json.dumps(one.content() if issubclass(record, Record) else one.plain()))
    checks.validate(content)
    if record.model_config["extra"] == "forbid":
        assert not checks.is_valid(content | {"other": 1})
    required = next((key for key, field in record.model_fields.items() if field.is_required()), None)
    assert required is None or not checks.is_valid({key: each for key, each in content.items() if key != required})


def test_the_page_is_printed_and_names_are_told(capsys):
    assert cli.main(["schema", "--markdown", "run-folder"]) == 0
    assert capsys.readouterr().out == page() + "\n"
    assert cli.main(["schema", "no-such-file"]) == 2
    assert f"wanted run-folder, or one of {', '.join(records())}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "no file is called 'nothing', wanted run-folder, or one of base-length, cell, "),
        (["run-folder"], "run-folder is a page, and nothing else; wanted --markdown of it alone"),
        (["scales", "--markdown"], "run-folder is a page, and nothing else; wanted --markdown of it alone"),
    ],
)
def test_what_is_no_name_is_one_line(arguments, told, capsys):
    assert cli.main(["schema", *arguments]) == 2
    line = capsys.readouterr().err
    assert told in line and line.count("\n") == 1
