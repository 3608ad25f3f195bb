"""A thread beside the work of a block."""

import threading

import pytest

from e2ray.data.follow import following


def refuse(error):
    raise AssertionError(error)


def test_it_looks_while_the_block_runs_and_no_longer():
    looks, seen = [], threading.Event()

    def look():
        looks.append(threading.current_thread())
        if len(looks) == 3:
            seen.set()

    with following(look, every_s=0.001, failed=refuse):
        assert seen.wait(30)
    count = len(looks)
    assert threading.main_thread() not in looks
    assert not looks[0].is_alive() and len(looks) == count


def test_a_failing_look_is_told_once_and_the_block_goes_on():
    told, seen = [], threading.Event()

    def look():
        raise ValueError("no file")

    def failed(error):
        told.append(str(error))
        seen.set()

    with following(look, every_s=0.001, failed=failed):
        assert seen.wait(30)
    assert told == ["no file"]


def test_an_error_of_the_block_ends_the_thread_and_comes_through():
    before = threading.active_count()
    with pytest.raises(KeyError, match="mine"), following(lambda: None, every_s=0.001, failed=refuse):
        raise KeyError("mine")
    assert threading.active_count() == before
