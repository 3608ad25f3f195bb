"""How far a piece of work is, told while it runs."""

import pickle
import re
import sys
import threading

import pytest

from e2ray.data.pace import Pace, clock, show


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (151, "2:31"), (3751, "1:02:31")])
def test_a_clock_shows_hours_only_where_there_are_some(seconds, text):
    assert clock(seconds) == text


def test_one_long_step_is_told_with_done_total_and_time_left():
    told, seen = [], threading.Event()

    def tell(line):
        told.append(line)
        seen.set()

    with Pace(tell, "base: reading", total=1200, unit="tokens", every_s=0.01) as pace:
        pace.add(300)
        assert seen.wait(30)
    assert re.fullmatch(r"base: reading: 300 of 1,200 tokens, \d+:\d\d so far, \d+:\d\d left", told[0])
    count = len(told)
    pace.add(900)
    assert len(told) == count, "behind the block nothing is told"


def test_what_is_left_is_not_guessed_before_anything_is_done():
    assert Pace(None, "base: reading", total=4, unit="parts").state == "0 of 4 parts, 0:00 so far"


def test_one_piece_is_not_counted():
    assert Pace(None, "write model", total=1, unit="parts").state == "0:00 so far"


def test_a_hushed_pace_says_nothing():
    told = []
    with Pace(told.append, "evaluate", total=2, unit="parts", every_s=0.01) as pace:
        pace.hush()
        told.clear()
        threading.Event().wait(0.1)
    assert told == []


def test_lines_of_the_work_itself_are_told_and_count_as_news():
    told = []
    with Pace(told.append, "base: reading", total=2, unit="cells", every_s=60) as pace:
        pace.tell("base: window 8: NLL 2.0")
    assert told == ["base: window 8: NLL 2.0"]


def test_without_a_listener_no_thread_runs():
    before = threading.active_count()
    with Pace(None, "base: reading", total=2, unit="cells") as pace:
        assert threading.active_count() == before
        pace.tell("nobody hears it")
        pace.add(2)
    assert pace.done == 2


def test_what_shows_a_line_travels_to_other_processes_whatever_stands_for_print(monkeypatch, capsys):
    monkeypatch.setattr("builtins.print", lambda *told, **options: sys.stdout.write(f"> {told[0]}\n"))
    pickle.loads(pickle.dumps(show))("a line")
    assert capsys.readouterr().out == "> a line\n"
