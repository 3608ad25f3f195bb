"""Who stands still, by a clock of the test's own; and the watch as a whole over real processes."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace

import psutil
import pytest

from e2ray.train.heartbeat import MEASURING, RESTING, STARTING, Beat
from e2ray.train.watch import FIRST, LIMIT, NOTICE_S, PATIENCE, SHOWN, Vigil, Watchman, watched

FACTS = {
    "name": "rank-0",
    "label": "worker of rank 0",
    "pid": 100,
    "born": 1.0,
    "thread": 7,
    "host": "host",
    "node": "",
}
UPDATING = Beat(**FACTS, phase="updating", step=3, ticks=8, longest={"updating": 2.0, STARTING: 9.0})


def told_at(vigil, beat, seconds, *, stopped=False):
    """Return the first of the seconds at which a beat that does not change is told."""
    for second in seconds:
        vigil.hear([beat], second)
        if beat in vigil.quiet(second) and vigil.is_new(beat, second, stopped=stopped):
            return second
    return None


def hung_at(vigil, beat, seconds, *, stopped=False):
    for second in seconds:
        vigil.hear([beat], second)
        if beat in vigil.quiet(second) and vigil.is_hung(beat, second, stopped=stopped):
            return second
    return None


def test_a_standstill_is_told_within_a_minute_and_once():
    vigil = Vigil(hang_s=300)
    assert NOTICE_S <= told_at(vigil, UPDATING, range(200)) < 60
    assert told_at(vigil, UPDATING, range(200, 400)) is None
    again = replace(UPDATING, ticks=9)
    assert 400 + NOTICE_S <= told_at(vigil, again, range(400, 600)) < 460


@pytest.mark.parametrize(("longest", "told"), [(30, NOTICE_S), (60, 60 * PATIENCE), (200, 200 * PATIENCE)])
def test_a_step_that_is_long_by_habit_is_told_beyond_its_habit(longest, told):
    usual = replace(UPDATING, longest={"updating": float(longest)})
    assert told <= told_at(Vigil(hang_s=3000), usual, range(3000)) < told + 6
    assert NOTICE_S <= told_at(Vigil(hang_s=3000), usual, range(3000), stopped=True) < 60  # no habit explains that


@pytest.mark.parametrize(
    ("longest", "stopped", "hung"),
    [
        ({"updating": 2.0}, False, 300),
        ({"updating": 280.0}, False, 280 * LIMIT),
        ({"saving": 2.0}, False, 300 * FIRST),  # the first of its kind: loading, compiling
        ({"saving": 2.0}, True, 300),
        ({"updating": 280.0}, True, 300),
    ],
)
def test_a_worker_is_replaced_when_neither_the_setting_nor_its_habit_explains_the_time(longest, stopped, hung):
    beat = replace(UPDATING, longest=longest)
    assert hung <= hung_at(Vigil(hang_s=300), beat, range(3000), stopped=stopped) < hung + 6


FIRST_STEP = replace(UPDATING, longest={})


def hung_with_cpu(used, seconds=range(3000), beats=(FIRST_STEP,)):
    """Return when the first worker is to be replaced; `used` tells of a name and a second its CPU seconds."""
    vigil = Vigil(hang_s=300)
    for second in seconds:
        vigil.hear(list(beats), second)
        for quiet in vigil.quiet(second):
            vigil.note_cpu(quiet, second, used(quiet.name, second))
            if quiet == beats[0] and vigil.is_hung(quiet, second, stopped=False):
                return second
    return None


@pytest.mark.parametrize(
    ("share", "hung"), [(0.0, 300), (0.01, 300), (0.05, 300 * FIRST), (1.0, 300 * FIRST), (4.0, 300 * FIRST)]
)
def test_a_first_step_in_which_nothing_works_is_a_deadlock_and_one_that_works_has_time(share, hung):
    assert hung <= hung_with_cpu(lambda name, second: 20 + share * second) < hung + 6


@pytest.mark.parametrize("phase", [STARTING, MEASURING])
def test_a_model_that_comes_over_a_slow_line_is_no_deadlock(phase):
    beat = replace(FIRST_STEP, phase=phase)
    hung = hung_with_cpu(lambda name, second: 0.015 * second, beats=(beat,))
    assert 300 * FIRST <= hung < 300 * FIRST + 6


def test_one_that_waits_for_a_worker_at_work_is_no_deadlock():
    beats = (FIRST_STEP, replace(FIRST_STEP, name="rank-1"))
    at_work = {"rank-0": 0.0, "rank-1": 1.0}
    hung = hung_with_cpu(lambda name, second: at_work[name] * second, beats=beats)
    assert 300 * FIRST <= hung < 300 * FIRST + 6
    assert 300 <= hung_with_cpu(lambda name, second: 0.0, beats=beats) < 306


def test_a_machine_that_tells_no_cpu_time_is_not_taken_for_a_deadlock():
    told = hung_with_cpu(lambda name, second: None if second > 200 else 0.0)
    assert 300 * FIRST <= told < 300 * FIRST + 6


def test_an_evaluation_is_not_judged_by_the_steps_that_had_none():
    beat = replace(UPDATING, phase=MEASURING, longest={MEASURING: 0.1})
    assert 300 * FIRST <= hung_at(Vigil(hang_s=300), beat, range(3000)) < 300 * FIRST + 6
    assert 300 <= hung_at(Vigil(hang_s=300), beat, range(3000), stopped=True) < 306
    long = replace(beat, longest={MEASURING: 900.0})
    assert 2700 <= hung_at(Vigil(hang_s=300), long, range(4000)) < 2706


@pytest.mark.parametrize("phase", ["updating", "saving", "measuring", "waiting for rows"])
def test_a_worker_that_moves_is_left_alone_however_long_its_steps_are(phase):
    vigil = Vigil(hang_s=300)
    for second in range(4000):
        beat = replace(UPDATING, phase=phase, ticks=second // 290)
        vigil.hear([beat], second)
        for quiet in vigil.quiet(second):
            assert not vigil.is_hung(quiet, second, stopped=False)


def test_a_resume_has_the_time_of_a_first_start(tmp_path):
    beat = replace(UPDATING, phase=STARTING, longest={STARTING: 20.0})
    assert 300 * FIRST <= hung_at(Vigil(hang_s=300), beat, range(3000)) < 300 * FIRST + 6


def test_one_that_ended_its_work_or_was_ended_is_not_looked_at_and_a_new_one_is():
    vigil = Vigil(hang_s=100)
    for second in range(60):
        vigil.hear([UPDATING], second)
    assert vigil.quiet(60) == [UPDATING]
    vigil.lost(UPDATING)
    vigil.hear([UPDATING], 300)
    assert vigil.quiet(300) == []
    for new in (replace(UPDATING, pid=101), replace(UPDATING, born=2.0)):
        vigil.hear([new], 301)
        vigil.hear([new], 400)
        assert vigil.quiet(400) == [new]
        vigil.lost(new)
    vigil.hear([], 500)
    vigil.hear([UPDATING], 501)  # begins anew
    assert vigil.quiet(502) == []


def test_one_that_rests_is_let_rest():
    vigil = Vigil(hang_s=100)
    for second in range(2000):
        vigil.hear([replace(UPDATING, phase=RESTING)], second)
        assert vigil.quiet(second) == []
    vigil.hear([UPDATING], 2000)
    assert vigil.quiet(2001) == []


def test_what_a_phase_takes_is_learnt_from_all_workers_the_replaced_ones_too():
    vigil = Vigil(hang_s=300)
    vigil.hear([replace(UPDATING, name="rank-1", longest={"saving": 200.0})], 0)
    vigil.hear([], 1)
    saving = replace(UPDATING, phase="saving", longest={})
    assert 600 <= hung_at(vigil, saving, range(2, 3000)) < 610


class Processes:
    """Real processes in place of workers, and what the watch said about them."""

    def __init__(self, folder):
        self.folder, self.lines, self.started = folder, [], []

    def start(self, rank, code="print('up', flush=True); import time; time.sleep(60)"):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "up\n"
        self.started.append(process)
        born = psutil.Process(process.pid).create_time()
        named = {"name": f"rank-{rank}", "label": f"worker of rank {rank}"}
        self.write(replace(UPDATING, **named, pid=process.pid, born=born))
        return process

    def write(self, beat):
        (self.folder / f"{beat.name}.json").write_text(json.dumps(asdict(beat)))

    def watchman(self, **options):
        def on_node(beat, function, *arguments):
            return function(*arguments)

        return Watchman(self.folder, Vigil(**options), on_node=on_node, show=self.lines.append)


@pytest.fixture
def processes(tmp_path):
    found = Processes(tmp_path)
    yield found
    for process in found.started:
        process.kill()
        process.communicate()


def wait_until(condition, timeout_s=20):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_stopped_process_is_told_first_and_ended_and_the_others_are_not(processes):
    other, stopped = processes.start(0), processes.start(1)
    psutil.Process(stopped.pid).suspend()
    watchman = processes.watchman(hang_s=0.8, notice_s=0.2)
    with watched(watchman, every_s=0.05):
        wait_until(lambda: watchman.replaced)
        assert stopped.wait(10) == -9
        time.sleep(0.2)
    assert other.poll() is None and len(watchman.replaced) == 1
    told = [line for line in processes.lines if "process is stopped" in line]
    assert len(told) == 1 and f"rank 1 (pid {stopped.pid} on host): no progress for" in told[0]
    assert "updating, 3 updates made" in told[0] and len(told[0].splitlines()) > 1
    ended = next(line for line in processes.lines if "it is ended" in line)
    assert "rank 1 " in ended and "cluster.hang_s is 0.8" in ended


def test_a_first_step_that_sleeps_is_ended_and_one_that_computes_is_not(processes):
    asleep = processes.start(0)
    busy = "print('up', flush=True)\nwhile True: pass"
    folder = processes.folder / "busy"
    folder.mkdir()
    calm, working = processes.watchman(hang_s=2.0, notice_s=0.2), Processes(folder)
    try:
        at_work = working.start(0, busy)
        for each in (processes, working):
            (path,) = each.folder.glob("*.json")
            each.write(replace(Beat(**json.loads(path.read_text())), longest={}))
        watchman = working.watchman(hang_s=2.0, notice_s=0.2)
        with watched(watchman, every_s=0.05), watched(calm, every_s=0.05):
            wait_until(lambda: calm.replaced)
        assert asleep.wait(10) == -9 and at_work.poll() is None and watchman.replaced == []
    finally:
        for process in working.started:
            process.kill()
            process.communicate()


def test_the_first_one_ended_since_the_workers_began_is_blamed(processes):
    watchman = processes.watchman(hang_s=0.8, notice_s=0.2)
    for first, second in ((1, 0), (0, 1)):
        stopped, waiting = processes.start(first), processes.start(second)
        psutil.Process(stopped.pid).suspend()
        with watched(watchman, every_s=0.05):
            wait_until(lambda process=stopped: process.poll() is not None)
            psutil.Process(waiting.pid).suspend()
            wait_until(lambda process=waiting: process.poll() is not None)
        assert watchman.blamed.startswith(f"worker of rank {first} (pid {stopped.pid}")
    assert len(watchman.replaced) == 4


def test_a_process_that_has_gone_by_itself_is_nobodys_business(processes):
    process = processes.start(0)
    process.kill()
    process.wait()
    watchman = processes.watchman(hang_s=0.4, notice_s=0.1)
    with watched(watchman, every_s=0.02):
        time.sleep(0.8)
    assert processes.lines == [] and watchman.replaced == []


def test_a_crowd_that_waits_is_told_with_a_few_stacks(processes):
    for rank in range(SHOWN + 2):
        processes.start(rank)
    watchman = processes.watchman(hang_s=60, notice_s=0.1)
    with watched(watchman, every_s=0.02):
        wait_until(lambda: len(processes.lines) == SHOWN + 2)
    assert sum("\n" in line for line in processes.lines) == SHOWN


def test_a_machine_that_does_not_answer_is_said_so(processes):
    processes.start(0)
    lines = []
    watchman = Watchman(processes.folder, Vigil(hang_s=60, notice_s=0.1), on_node=lambda *_: None, show=lines.append)
    with watched(watchman, every_s=0.02):
        wait_until(lambda: lines)
    assert "its process is out of reach" in lines[0] and "its machine does not answer" in lines[0]


def test_a_watch_that_fails_says_so_and_disturbs_nobody(processes):
    processes.start(0)
    lines = []

    def on_node(*_):
        raise RuntimeError("no route")

    watchman = Watchman(processes.folder, Vigil(hang_s=60, notice_s=0.1), on_node=on_node, show=lines.append)
    with watched(watchman, every_s=0.02):
        wait_until(lambda: lines)
    assert lines == ["warning: workers that stand still are told no more: RuntimeError: no route"]
