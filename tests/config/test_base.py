"""Messages are one line of bounded length, whatever they quote."""

import pickle

import pytest

from e2ray.config.base import SettingsError, brief


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("data.window: got 3,\nwanted 4", "data.window: got 3, wanted 4"),
        ("a\r\nb\x85c\u2028d", "a b c d"),
        (f"name: got '{'x' * 5000}', wanted less", f"name: got '{'x' * 199}...{'x' * 58}', wanted less"),
        (f"{'/long' * 50}: not found", f"{'/long' * 50}: not found"),
    ],
)
def test_a_message_is_one_line_without_the_middle_of_what_is_long(text, wanted):
    assert str(SettingsError(text)) == wanted


@pytest.mark.parametrize("long", ["x" * 5000, "ab " * 5000, "\n" * 5000, "/ä" * 5000, ("y" * 299 + " ") * 99])
def test_no_value_makes_a_message_long(long):
    message = brief(f"recipe.yaml: name: got {long}, wanted at most 100 characters")
    assert len(message) <= 1000
    assert message.startswith("recipe.yaml: name: got ") and message.endswith("wanted at most 100 characters")
    error = SettingsError(message)
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == message
