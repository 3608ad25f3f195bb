"""A study's journal: whatever damages it is named with its line, and what a kill leaves is mended."""

import json
import logging
import random
import re
import time

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from e2ray.config.base import SettingsError
from e2ray.search.journal import JOURNAL, Journal, end_path, verified
from e2ray.search.study import Study
from search.test_study import LENGTH, finish, opened

ADVICE = r"put it and study\.journal\.end back from a copy"


MADE = {}  # once for all tests


@pytest.fixture
def whole(tmp_path_factory, configured):
    """Folder, lines and records of a study that ran to its end."""
    if not MADE:
        folder = tmp_path_factory.mktemp("whole") / "study"
        study = opened(folder, configured())
        finish(study)
        MADE["it"] = folder, (folder / JOURNAL).read_bytes().splitlines(keepends=True), study.records()
    return MADE["it"]


@pytest.fixture
def copied(tmp_path, whole):
    """Return a function that puts the journal of `whole` with other lines into a folder, its end file beside it."""

    def copy(content, *, end=True):
        folder = tmp_path / "study"
        folder.mkdir(exist_ok=True)
        (folder / JOURNAL).write_bytes(content if isinstance(content, bytes) else b"".join(content))
        if end:
            (folder / end_path(folder / JOURNAL).name).write_bytes(end_path(whole[0] / JOURNAL).read_bytes())
        return folder

    return copy


def test_every_flipped_bit_is_named_with_its_line(whole, copied):
    content = b"".join(whole[1])
    path = copied(content) / JOURNAL
    draw = random.Random(0)
    for _ in range(300):
        place, bit = draw.randrange(len(content)), draw.randrange(8)
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        line = content.count(b"\n", 0, place) + 1
        lines = len(whole[1]) + damaged.count(b"\n") - content.count(b"\n")
        with pytest.raises(SettingsError, match=rf"\A\S+study\.journal: .*{ADVICE}") as error:
            verified(path)
        last = place == len(content) - 1  # without the last line break, there is no such line
        named = f"line {line} of {lines} " if not last else f"holds {lines} lines and a part of line {line}"
        assert named in str(error.value), (place, bit)


def test_every_byte_of_a_short_journal_counts(tmp_path):
    path = tmp_path / JOURNAL
    journal = Journal(path)
    journal.append_logs([{"op_code": 0}, {"a": "ä\n\\"}])
    journal.append_logs([{"b": [1.5, None, {}]}])
    kept = {file: file.read_bytes() for file in (path, end_path(path))}
    assert [*verified(path).values] == [{"op_code": 0}, {"a": "ä\n\\"}, {"b": [1.5, None, {}]}]
    for file, content in kept.items():
        for place in range(len(content)):
            damaged = bytearray(content)
            damaged[place] ^= 1 << place % 8
            file.write_bytes(damaged)
            with pytest.raises(SettingsError, match=rf"\A\S+{re.escape(file.name)}: .*from a copy, or"):
                verified(path)
        file.write_bytes(content)
    assert len(verified(path).values) == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[:40] + lines[41:], r"line 41 of \d+ says that it is line 42: lines are missing, doubled"),
        (lambda lines: lines[1:], r"line 1 of \d+ says that it is line 2: lines are missing"),
        (lambda lines: [*lines[:40], *lines[50:]], r"line 41 of \d+ says that it is line 51"),
        (lambda lines: [*lines[:7], lines[6], *lines[7:]], r"line 8 of \d+ says that it is line 7"),
        (lambda lines: [*lines, lines[-1]], r"line \d+ of \d+ says that it is line \d+: lines are missing, doubled or"),
        (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], r"line 3 of \d+ says that it is line 4"),
        (lambda lines: [*lines[:2], b"\n", *lines[2:]], r"line 3 of \d+ is damaged, it does not end with its number"),
        (lambda lines: [*lines[:2], b"\0" * 80 + b"\n", *lines[2:]], r"line 3 of \d+ is damaged"),
        (lambda lines: [*lines[:2], lines[2][:-1] + lines[3], *lines[4:]], r"line 3 of \d+ "),
        (lambda lines: lines[:-1], r"holds \d+ lines, \d+ were written: its end is missing"),
        (lambda lines: lines[:5], r"holds 5 lines, \d+ were written: its end is missing"),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], r"holds \d+ lines and a part of line \d+, \d+ were written"),
        (lambda lines: [*lines[:5], lines[5][:20]], r"holds 5 lines and a part of line 6, \d+ were written"),
        (lambda lines: [], r"holds 0 lines, \d+ were written: its end is missing"),
        (lambda lines: [b'{"op_code":0}\n'], r"line 1 of 1 is damaged, it does not end with its number and its seal"),
    ],
)
def test_lines_that_are_missing_doubled_or_moved_are_named(whole, copied, configured, damage, message):
    folder = copied(damage(whole[1]))
    before = (folder / JOURNAL).read_bytes()
    with pytest.raises(SettingsError, match=rf"\A\S+study\.journal: {message}.*{ADVICE}") as error:
        Study(folder, configured(), LENGTH)
    assert len(str(error.value)) < 500
    assert (folder / JOURNAL).read_bytes() == before  # nothing is taken off what is damaged


def test_the_first_lines_of_a_damaged_journal_go_on_where_their_end_is_removed(whole, copied, configured, caplog):
    folder = copied(whole[1][:60], end=False)
    study = Study(folder, configured(), LENGTH)
    assert "whether lines are missing at the end of study.journal cannot be told; its 60 lines are whole" in caplog.text
    finish(study)
    assert study.records() == whole[2]
    caplog.clear()
    assert Study(folder, configured(), LENGTH).records() == whole[2]
    assert not caplog.records


def test_a_line_that_a_kill_tore_or_that_the_end_does_not_know_yet_is_no_damage(whole, copied, configured):
    lines = whole[1]
    for place in (0, 1, 60):
        folder = copied(lines[:place])
        (folder / JOURNAL).write_bytes(b"".join(lines[: max(0, place - 1)]))
        end_path(folder / JOURNAL).unlink()
        if place > 1:
            Journal(folder / JOURNAL)  # writes what the end said before the last line
        (folder / JOURNAL).write_bytes(b"".join(lines[:place]) + lines[place][:30])
        study = opened(folder, configured())
        finish(study)
        assert study.records() == whole[2]


def test_a_journal_that_is_gone_or_empty_is_no_new_study(whole, copied, configured):
    folder = copied(b"")
    (folder / JOURNAL).unlink()
    with pytest.raises(SettingsError, match=r"study\.journal: is missing, \d+ lines were written; put it and"):
        Study(folder, configured(), LENGTH)
    (folder / JOURNAL).touch()
    end_path(folder / JOURNAL).unlink()
    with pytest.raises(SettingsError, match=r"study\.journal: is empty, its trials are lost; .*remove it to begin"):
        Study(folder, configured(), LENGTH)
    end_path(folder / JOURNAL).write_text("")
    with pytest.raises(SettingsError, match=r"study\.journal\.end: is damaged, wanted the number of lines"):
        Study(folder, configured(), LENGTH)


def test_the_end_of_another_journal_is_told(whole, copied, configured):
    folder = copied(whole[1])
    other = Journal(folder / "other")
    other.append_logs([{"a": number} for number in range(5)])
    end_path(other.path).rename(end_path(folder / JOURNAL))
    with pytest.raises(SettingsError, match=r"study\.journal\.end: is of another copy, line 5 of study\.journal has"):
        Study(folder, configured(), LENGTH)


def test_another_study_is_not_an_empty_one(whole, copied, configured):
    folder = copied(whole[1])
    name = configured().name
    with pytest.raises(SettingsError, match=rf"study\.journal: wanted the study other, it holds {name}; put it back"):
        Study(folder, configured().model_copy(update={"name": "other"}), LENGTH)


def unsealed(lines):
    """Return the lines as an earlier version would have written them."""
    found = [{key: value for key, value in json.loads(line).items() if key not in ("line", "seal")} for line in lines]
    return [json.dumps(value, separators=(",", ":")).encode() + b"\n" for value in found]


def test_a_journal_of_an_earlier_version_is_told_and_sealed_with_its_next_line(whole, copied, configured, caplog):
    folder = copied(unsealed(whole[1][:60]), end=False)
    study = Study(folder, configured(), LENGTH)
    assert caplog.messages == [
        f"{folder / JOURNAL}: is of an earlier version, whose lines carry no seals: damage in its 60 lines could not "
        "be told; from now on it is"
    ]
    finish(study)
    assert study.records() == whole[2]
    content = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(content.replace(b'"study_id":0', b'"study_id":1', 1))
    with pytest.raises(SettingsError, match=r"line \d+ of \d+ is damaged, its seal does not match"):
        Study(folder, configured(), LENGTH)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"{", b"[", r"is damaged, line 1 of 60: is no JSON .*; put it and"),
        (b'"op_code":0', b'"op_code":10', "wanted the study small, it holds none"),
        (b'"op_code":0', b'"op_code":77', r"Optuna cannot read it \(AssertionError"),
        (b'"op_code"', b'"op_cope"', r"Optuna cannot read it \(KeyError"),
    ],
)
def test_damage_that_an_earlier_version_shows_is_named(whole, copied, configured, old, new, message):
    lines = unsealed(whole[1][:60])
    folder = copied([lines[0].replace(old, new, 1), *lines[1:]], end=False)
    with pytest.raises(SettingsError, match=message):
        Study(folder, configured(), LENGTH)


def test_optunas_own_readers_take_the_journal(whole):
    folder, _, records = whole
    (name,) = optuna.get_all_study_names(JournalStorage(JournalFileBackend(str(folder / JOURNAL))))
    study = optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))))
    assert [trial.number for trial in study.trials] == [record.number for record in records]
    assert study.best_value == min(r.value for r in records if r.state == "complete")


def test_hundreds_of_trials_open_fast(whole, copied):
    lines = unsealed(whole[1]) * 40  # of 480 trials
    path = copied(b"", end=False) / JOURNAL
    path.unlink()
    Journal(path).append_logs([json.loads(line) for line in lines])
    began = time.process_time()
    assert len(verified(path).values) == len(lines) > 5_000
    assert time.process_time() - began < 2  # 0.1 s on an idle core


def test_a_line_that_finds_no_room_leaves_the_journal_as_it_was(tmp_path, caplog, limited):
    path = tmp_path / JOURNAL
    journal = Journal(path)
    journal.append_logs([{"a": 1}])
    before = path.read_bytes()
    wanted = r"study\.journal: a file may not grow that large here; raise the limit"
    with limited(4096), pytest.raises(SettingsError, match=wanted):
        journal.append_logs([{"b": "x" * 10_000}])
    assert path.read_bytes() == before
    journal.append_logs([{"c": 3}])
    caplog.set_level(logging.INFO)
    assert Journal(path).read_logs(0) == [{"a": 1}, {"c": 3}]
    assert not caplog.records


def test_a_journal_on_a_full_disk_ends_in_one_line_and_opens_again(small_disk, fill):
    journal = Journal(small_disk / JOURNAL)
    journal.append_logs([{"a": 1}])
    fill()
    with pytest.raises(SettingsError, match=r"study\.journal: no space left on the device; free some or choose"):
        journal.append_logs([{"b": "x" * 10_000}])
    (small_disk / "filler").unlink()
    assert Journal(small_disk / JOURNAL).read_logs(0) == [{"a": 1}]


@pytest.mark.parametrize("content", [b"\0" * 100, b"", b"x", b"\xff{"])
def test_a_journal_without_one_whole_line_and_without_its_end_is_no_new_study(tmp_path, content):
    (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(SettingsError, match=r"study\.journal: is empty, its trials are lost"):
        Journal(tmp_path / JOURNAL)
    assert (tmp_path / JOURNAL).read_bytes() == content
