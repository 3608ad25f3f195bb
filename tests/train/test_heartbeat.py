"""What a worker leaves while it lives."""

import os
import signal
import threading
import time

import psutil
import pytest

from e2ray.config.base import SettingsError
from e2ray.train.heartbeat import RECORD_BYTES, STARTING, Heartbeat, beat_file, read_beats


def wait_for(look, timeout_s=20):
    end = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


@pytest.fixture
def heart(tmp_path):
    found = Heartbeat(tmp_path / "beats", "rank-3", label="three", node="n")
    yield found
    found.close()


def test_a_worker_begins_with_its_process_and_thread(heart, tmp_path):
    (beat,) = read_beats(tmp_path / "beats")
    assert (beat.name, beat.label, beat.pid, beat.thread, beat.node) == (
        "rank-3",
        "three",
        os.getpid(),
        threading.get_ident(),
        "n",
    )
    assert beat.born == psutil.Process().create_time()
    assert (beat.phase, beat.step, beat.ticks, beat.longest) == (STARTING, 0, 0, {})


def test_each_update_is_two_phases_and_the_first_wait_belongs_to_the_reader(heart, tmp_path):
    phases = []
    items = heart.around(iter("ab"), waiting="waiting", working="working", step=5)
    for _ in items:
        phases.append((heart._phase, heart._step, heart._ticks))
    assert phases == [("working", 5, 2), ("working", 6, 4)]
    assert (heart._phase, heart._step) == ("waiting", 7)
    beat = wait_for(lambda: next((b for b in read_beats(tmp_path / "beats") if b.ticks == 5), None))
    assert (beat.phase, beat.step) == ("waiting", 7)
    assert set(beat.longest) == {STARTING, "waiting", "working"}


def test_a_reader_that_hangs_is_seen_waiting(heart):
    def rows():
        seen.append(heart._phase)
        yield 0

    seen = []
    next(heart.around(rows(), waiting="waiting", working="working", step=0))
    assert seen == ["waiting"]


def test_a_function_has_its_phase_and_says_what_follows(heart):
    during = []
    marked = heart.marking(lambda step: during.append(heart._phase) or step, "reporting", lambda step: f"after {step}")
    assert marked(4) == 4 and during == ["reporting"] and heart._phase == "after 4"
    marked = heart.marking(lambda: heart._phase, "measuring")
    assert marked() == "measuring" == heart._phase


def test_another_piece_of_work_is_written_down_at_once(heart, tmp_path):
    heart.mark("resting", 9)
    heart.begin("four")
    (beat,) = read_beats(tmp_path / "beats")
    assert (beat.label, beat.phase, beat.step) == ("four", STARTING, 0)


def test_the_longest_time_of_a_phase_is_kept(heart):
    heart.mark("short")
    heart.mark("long")
    time.sleep(0.25)
    heart.mark("short")
    assert heart._longest["long"] >= 0.25 > heart._longest["short"]


def test_a_record_keeps_its_size_so_that_a_full_disk_takes_it(heart, tmp_path):
    path = beat_file(tmp_path / "beats", "rank-3")
    assert path.stat().st_size == RECORD_BYTES
    inode = path.stat().st_ino
    for phase in ("waiting for rows", "updating", "measuring", "reporting", "saving"):
        heart.mark(phase, 10**9)
    wait_for(lambda: read_beats(tmp_path / "beats")[0].ticks == 5)
    assert (path.stat().st_size, path.stat().st_ino) == (RECORD_BYTES, inode)


def test_torn_and_foreign_files_are_left_out(heart, tmp_path):
    folder = tmp_path / "beats"
    beat_file(folder, "rank-4").write_text('{"rank": 4, "pid"')
    beat_file(folder, "rank-5").write_text('{"rank": 5}')
    beat_file(folder, "rank-6").write_text("")
    assert [beat.name for beat in read_beats(folder)] == ["rank-3"]


def test_the_end_leaves_nothing(tmp_path):
    Heartbeat(tmp_path / "beats", "rank-0", label="nought").close()
    assert list((tmp_path / "beats").iterdir()) == []
    os.kill(os.getpid(), signal.SIGUSR1)  # the driver may ask a moment too late


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"rank-0\.json: cannot be written.*choose another storage"):
        Heartbeat(tmp_path / "file" / "beats", "rank-0", label="nought")
