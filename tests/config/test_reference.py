"""The page of settings: the one that is kept is the code's, and nothing that a class says of a setting is missing."""

from pathlib import Path

import pytest

from e2ray.config.load import schema
from e2ray.config.reference import page, slug

KEPT = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_the_kept_page_is_that_of_the_classes():
    assert KEPT.read_text(encoding="utf-8") == page(schema()) + "\n", "e2ray schema --markdown > docs/settings.md"


def test_every_setting_is_on_the_page_with_its_words():
    shown = page(schema())
    for name, made in schema()["$defs"].items():
        for key, part in made.get("properties", {}).items():
            words = " ".join(part.get("description", "").split()).replace("|", "\\|")
            assert "const" in part or f"| `{key}` | {words}" in shown, (name, key)


@pytest.mark.parametrize(
    ("part", "row"),
    [
        ({"type": "integer", "minimum": 2, "maximum": 9}, "| whole number, at least 2 and at most 9 | - |"),
        ({"type": "number", "exclusiveMinimum": 0, "default": 0.5}, "| number, above 0 | `0.5` |"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}, "| text, or null | `null` |"),
        ({"enum": ["a|b", 3], "default": "a|b"}, '| `a\\|b`, `3` | `"a\\|b"` |'),
        ({"type": "array", "items": {"type": "integer", "minimum": 1}}, "| list of whole numbers, at least 1 | - |"),
        ({"type": "array", "prefixItems": [{"type": "number"}] * 2}, "| 2 numbers | - |"),
        ({"$ref": "#/$defs/Inner"}, "| [x: this](#x-this) | - |"),
    ],
)
def test_a_row_says_what_is_wanted_and_what_is_taken_by_default(part, row):
    inner = {"properties": {"kind": {"const": "this"}, "deep": {"type": "boolean", "default": True}}}
    made = page({"properties": {"x": part}, "$defs": {"Inner": inner}})
    assert f"| `x` |  {row}\n" in made
    assert ("### x: this\n" in made) == ("$ref" in part) == ("| `deep` |  | true or false | `true` |" in made)


def test_anchors_are_those_of_github():
    assert slug("positions.scale: log_uniform") == "positionsscale-log_uniform"
    assert slug("What a run leaves") == "what-a-run-leaves"
