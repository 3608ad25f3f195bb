"""What is seen of a worker that stands still: its condition, the stack that it writes or that is read, and its end."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from e2ray.train import standstill
from e2ray.train.heartbeat import Beat, read_beats

WORKER = """
import sys, threading, time
from pathlib import Path
from e2ray.train.heartbeat import Heartbeat

def deadlocked_step():
    lock = threading.Lock()
    lock.acquire()
    print("up", flush=True)
    lock.acquire()

def busy_step():
    print("up", flush=True)
    while True:
        pass

def train():
    Heartbeat(Path(sys.argv[1]), "rank-0", label="nought")
    globals()[sys.argv[2]]()

threading.Thread(target=train, daemon=True).start()
time.sleep(60)
"""


@pytest.fixture
def worker(tmp_path, request):
    """A process whose training thread stands in a step, and its beat."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path), request.param], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    (beat,) = read_beats(tmp_path)
    yield process, beat
    process.kill()
    process.communicate()


@pytest.mark.parametrize("worker", ["deadlocked_step", "busy_step"], indirect=True)
def test_a_workers_stack_is_that_of_its_training_thread(worker, tmp_path, request):
    process, beat = worker
    for _ in range(2):  # the second is not the first one's text
        frames = standstill.stack(tmp_path, beat)
        assert request.node.callspec.params["worker"] in frames[0] and "in train" in frames[1]
        assert not any("sleep" in frame for frame in frames)
    assert standstill.condition(beat) == "alive" and process.poll() is None


@pytest.mark.parametrize("worker", ["deadlocked_step"], indirect=True)
def test_a_stopped_worker_is_looked_into_from_outside(worker, tmp_path):
    process, beat = worker
    os.kill(process.pid, signal.SIGSTOP)
    end = time.monotonic() + 10
    while standstill.condition(beat) != "stopped":
        assert time.monotonic() < end
        time.sleep(0.02)
    (first, *_) = standstill.stack(tmp_path, beat)
    assert "deadlocked_step" in first or "its stack cannot be read" in first  # a container may forbid it
    assert standstill.end(beat)
    assert process.wait(10) == -signal.SIGKILL
    assert standstill.condition(beat) == "gone" and not standstill.end(beat)
    assert standstill.stack(tmp_path, beat) == ["it has ended by itself"]


def test_a_process_that_only_has_the_number_is_not_touched(tmp_path):
    beat = Beat("rank-0", "nought", os.getpid(), psutil.Process().create_time(), 0, "host", "", "updating", 0, 0)
    assert standstill.condition(beat) == "alive"
    other = replace(beat, born=beat.born - 3600)
    assert standstill.condition(other) == "gone"
    assert not standstill.end(other)  # it would be this process


def test_a_dump_is_read_by_thread():
    dump = """Thread 0x00000000000000ff [reader] (most recent call first):
  File "/a/threading.py", line 324 in wait

Current thread 0x0000000000000010 [train] (most recent call first):
  File "/a b/loop.py", line 12 in fit
  File "<string>", line ??? in <module>
"""
    assert standstill.frames_of(dump, 16) == ["/a b/loop.py:12 in fit", "<string>:??? in <module>"]
    assert standstill.frames_of(dump, 255) == ["/a/threading.py:324 in wait"]
    assert standstill.frames_of(dump, 1) == standstill.frames_of("", 16) == []
