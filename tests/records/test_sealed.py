import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2ray.config.base import SettingsError
from e2ray.records.sealed import End, read, seal, sealed

VALUES = st.lists(
    st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=5) | st.none(), min_size=1, max_size=3),
    max_size=6,
)


def advice(kept):
    return f"keep {kept}"


@given(VALUES, st.booleans())
def test_what_is_sealed_comes_back_and_its_end_follows_from_all_lines(tmp_path_factory, values, torn):
    path = tmp_path_factory.mktemp("sealed") / "lines.jsonl"
    text, end = sealed([json.dumps(value) for value in values])
    path.write_text(text + '{"half": ' * torn)
    found = read(path, advice=advice)
    assert found.values == values and found.end == end and found.end.lines == len(values)
    assert (found.torn, found.sealed) == (len('{"half": ') * torn, bool(values))
    with path.open("a") as file:
        file.write(seal('{"more": 1}', end)[0])
    if not torn:
        assert read(path, advice=advice).values == [*values, {"more": 1}]


def test_lines_without_any_seal_are_taken_as_they_are_where_none_is_wanted(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read(path, advice=advice).values == []
    path.write_text('{"a": 1}\n{"a": 2}\n')
    found = read(path, advice=advice)
    assert found.values == [{"a": 1}, {"a": 2}] and not found.sealed
    with pytest.raises(SettingsError, match=r"lines\.jsonl: line 1 of 2 is damaged, it does not end with .*; keep 0\Z"):
        read(path, advice=advice, must_be_sealed=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"is damaged, line 2 of 3: is no JSON \(.*\); wanted an object; keep 1"),
        ("[" * 100_000, "is damaged, line 2 of 3: is nested too deep; wanted an object; keep 1"),
        ("[1]", "line 2 of 3 holds no object; keep 1"),
        ("", r"is damaged, line 2 of 3: is no JSON"),
        ('{"a": ' + "9" * 5000 + "}", r"is damaged, line 2 of 3: is no JSON \(Exceeds the limit"),
    ],
)
def test_a_line_without_a_seal_that_is_no_object_is_named(tmp_path, line, message):
    path = tmp_path / "lines.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"a": 3}}\n')
    with pytest.raises(SettingsError, match=rf"\A\S+lines\.jsonl: {message}"):
        read(path, advice=advice)


@pytest.mark.parametrize("before", [End(), End(9, "a" * 32), End(12345, "0" * 32)])
def test_every_flipped_bit_of_a_lone_line_is_named_or_tears_it(tmp_path, before):
    """Nothing beside it says that lines of the file have seals."""
    path = tmp_path / "lines.jsonl"
    text = seal('{"step": 3, "loss": 2.5}', before)[0].encode()
    for place in range(8 * len(text)):
        damaged = bytearray(text)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        if place // 8 == len(text) - 1:  # the line break
            assert read(path, advice=advice).torn
            continue
        with pytest.raises(SettingsError, match=r"\A\S+lines\.jsonl: (is damaged, )?line 1 of [12]"):
            read(path, advice=advice)


def test_a_line_of_another_file_does_not_fit(tmp_path):
    path = tmp_path / "lines.jsonl"
    text, _ = sealed(['{"a": 1}', '{"a": 2}'])
    other, _ = sealed(['{"b": 1}', '{"a": 2}'])
    path.write_text(text.split("\n")[0] + "\n" + other.split("\n")[1] + "\n")
    with pytest.raises(SettingsError, match="line 2 of 2 is damaged, its seal does not match; keep 1"):
        read(path, advice=advice)


def test_a_folder_in_the_place_of_the_file_is_told(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        read(tmp_path, advice=advice)
    assert End().lines == 0
