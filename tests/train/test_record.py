import json
import math
import subprocess
import sys
from functools import partial

import psutil
import pytest
import torch

from e2ray.config.base import SettingsError
from e2ray.records.run import MetricsLine, SkippedRow, Training
from e2ray.train.environment import environment, peak_memory_mib, write_environment
from e2ray.train.record import (
    KILLED,
    SKIPPED,
    Recorder,
    end_status,
    newest_metrics,
    note_training,
    progress_line,
    prune_lines,
    read_metrics,
    read_status,
    settle,
    training_facts,
    was_killed,
    write_status,
)
from e2ray.train.trackers import Gauges, TensorBoard, Trackers

ON_A_CPU = Training(device="cpu", dtype="float32", attention="sdpa")


def line(step):
    return {
        "step": step,
        "tokens": step * 100,
        "loss": 3.0 / step,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "tokens_per_second": 45_120.4,
        "scale_mean": 8.4,
        "loss_by_scale": {"1": 2.0, "8": 3.0},
        "data_wait_s": 0.01,
        "skipped_steps": 0,
    }


def without_a_finite_row(step):
    no_numbers = {"loss": None, "grad_norm": None, "scale_mean": None, "loss_by_scale": {}, "skipped_steps": 2}
    return line(step) | no_numbers | {"watch_nll": {"24": 1.5, "48": None}}


def test_lines_behind_the_checkpoint_and_a_torn_line_are_removed(tmp_path):
    whole = "".join(json.dumps(line(step)) + "\n" for step in (10, 20, 30))
    (tmp_path / "metrics.jsonl").write_text(whole + '{"step": 4')
    prune_lines(tmp_path / "metrics.jsonl", 20)
    assert [entry.step for entry in read_metrics(tmp_path)] == [10, 20]


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line(10)) + '\n{"step": 2')
    assert [entry.step for entry in read_metrics(tmp_path)] == [10]


def board_of(folder, *, start_step=0):
    return "tensorboard", partial(TensorBoard, folder, start_step=start_step)


def test_recorder_writes_metrics_status_and_tensorboard(tmp_path):
    shown, gauged = [], []
    write_status(tmp_path, state="running")
    tracked = Trackers([("gauges", lambda: Gauges(gauged.append)), board_of(tmp_path)])
    recorder = Recorder(tmp_path, start_step=0, steps=20, progress_s=0.0, show=shown.append, trackers=tracked)
    for step in (10, 20):
        recorder.report(MetricsLine(**line(step)))
        recorder.progress(step)
    recorder.close()
    assert [entry.plain() for entry in read_metrics(tmp_path)] == [line(10), line(20)] == gauged
    assert read_status(tmp_path).step == 20
    assert [text.split("  ")[0] for text in shown] == ["step 10/20", "step 20/20"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx([0.3, 0.15])
    assert [event.step for event in board.Scalars("loss_by_scale/8")] == [10, 20]

    again = Recorder(
        tmp_path, start_step=10, steps=20, progress_s=0.0, trackers=Trackers([board_of(tmp_path, start_step=10)])
    )
    again.report(MetricsLine(**line(20) | {"loss": 9.0}))
    again.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx([0.3, 9.0])
    assert [entry.loss for entry in read_metrics(tmp_path)] == [0.3, 9.0]


def test_a_line_without_a_finite_number_has_no_place_in_tensorboard(tmp_path):
    shown = []
    tracked = Trackers([board_of(tmp_path)])
    recorder = Recorder(tmp_path, start_step=0, steps=20, progress_s=0.0, show=shown.append, trackers=tracked)
    for made in (line(10), without_a_finite_row(20)):
        recorder.report(MetricsLine(**made))
    recorder.progress(20)
    recorder.close()
    assert read_metrics(tmp_path)[1].loss is None
    assert shown[-1].startswith("step 20/20  loss -  45,120 tokens/s  scale -  2 skipped  ETA ")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    values = {tag: [event.value for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    assert all(math.isfinite(value) for found in values.values() for value in found)
    assert values["watch_nll/24"] == [1.5] and "watch_nll/48" not in values
    assert len(values["train/loss"]) == len(values["train/scale_mean"]) == 1 and values["train/skipped_steps"] == [0, 2]


@pytest.mark.parametrize("key", ["loss", "grad_norm", "data_wait_s"])
def test_no_line_of_metrics_can_hold_what_is_no_number(tmp_path, key):
    recorder = Recorder(tmp_path, start_step=0, steps=20, progress_s=1.0)
    with pytest.raises(ValueError, match="Input should be a finite number"):
        recorder.report(MetricsLine(**line(10) | {key: math.nan}))
    recorder.close()
    assert read_metrics(tmp_path) == []


def test_a_skipped_step_is_written_down_and_told_with_its_rows(tmp_path):
    shown = []
    rows = [SkippedRow(row=7 * n, loss=2.0, scale=2.0, places=(4,), shifts=(9,)) for n in range(10)]
    recorder = Recorder(tmp_path, start_step=0, steps=20, progress_s=1.0, show=shown.append)
    recorder.skipped(3, rows)
    recorder.skipped(4, [rows[0], rows[1].changed(loss=None)])
    recorder.close()
    rows = [row.plain() | {"places": [4], "shifts": [9]} for row in rows]
    found = [json.loads(text) for text in (tmp_path / SKIPPED).read_text().splitlines()]
    assert [(line.pop("line"), len(line.pop("seal"))) for line in found] == [(1, 32), (2, 32)]
    assert found == [
        {"schema_version": 1, "step": 3, "not_finite": "gradient norm", "rows": rows},
        {"schema_version": 1, "step": 4, "not_finite": "loss", "rows": [rows[0], rows[1] | {"loss": None}]},
    ]
    told = f"skipped, its gradient norm is no finite number; rows 0, 7, 14, 21, 28, 35, 42, 49 and 2 more: {tmp_path}"
    assert shown[0] == f"step 3: {told}/{SKIPPED}" and shown[1].startswith("step 4: skipped, its loss is no finite")
    Recorder(tmp_path, start_step=3, steps=20, progress_s=1.0).close()  # continues from a checkpoint of step 3
    assert [json.loads(text)["step"] for text in (tmp_path / SKIPPED).read_text().splitlines()] == [3]


def test_the_peak_of_memory_is_that_of_this_process():
    resident = psutil.Process().memory_info().rss / 2**20
    assert resident * 0.5 < peak_memory_mib(torch.device("cpu")) < psutil.virtual_memory().total / 2**20


def test_progress_line_tells_step_loss_speed_scale_and_remaining_time():
    text = progress_line(MetricsLine(**line(10)), step=120, steps=1200, seconds_per_step=0.14)
    assert text == "step 120/1200  loss 0.300  45,120 tokens/s  scale 8.4  ETA 2:31"
    assert progress_line(MetricsLine(**line(10)), step=0, steps=1000, seconds_per_step=4).endswith("ETA 1:06:40")


@pytest.mark.parametrize("count", [1, 2, 2000])
def test_who_looks_on_sees_the_newest_whole_line(tmp_path, count):
    assert newest_metrics(tmp_path) is None
    path = tmp_path / "metrics.jsonl"
    path.write_text("")
    assert newest_metrics(tmp_path) is None
    path.write_text(json.dumps(line(1))[:20])
    assert newest_metrics(tmp_path) is None
    path.write_text("".join(json.dumps(line(step)) + "\n" for step in range(1, count + 1)) + '{"step": 99')
    assert newest_metrics(tmp_path).step == count
    path.write_text("\0\n")
    assert newest_metrics(tmp_path) is None


def test_status_keeps_what_is_not_changed(tmp_path):
    write_status(tmp_path, state="running")
    started = read_status(tmp_path).started_at
    write_status(tmp_path, state="failed", error="no")
    status = read_status(tmp_path)
    assert (status.state, status.error, status.started_at) == ("failed", "no", started)


@pytest.mark.parametrize(
    "content", ["[]", "5", "null", '{"training": 3}', '{"training": null}', '{"a": NaN, "digest": 1}']
)
def test_an_environment_of_another_shape_is_one_line(tmp_path, content):
    (tmp_path / "environment.json").write_text(content)
    for acts in (training_facts, write_environment, lambda folder: note_training(folder, ON_A_CPU)):
        with pytest.raises(
            SettingsError, match=r"\A\S+environment\.json: is damaged, .*remove it, what runs next writes"
        ):
            acts(tmp_path)


def test_what_the_training_noted_stays_when_a_run_goes_on(tmp_path):
    assert training_facts(tmp_path) is None
    note_training(tmp_path, ON_A_CPU)
    write_environment(tmp_path)
    assert training_facts(tmp_path) == ON_A_CPU
    assert json.loads((tmp_path / "environment.json").read_text())["versions"]["torch"]


def test_environment_names_the_versions_and_the_hardware():
    found = environment()
    assert found.versions["torch"]
    assert found.hardware.cpus >= 1


def recorded(folder, steps):
    write_status(folder, state="running")
    recorder = Recorder(folder, start_step=0, steps=steps[-1], progress_s=60.0, show=None)
    for step in steps:
        recorder.report(MetricsLine(**line(step)))
    recorder.close()
    return folder / "metrics.jsonl"


def test_every_damaged_byte_of_the_metrics_is_named_and_none_reads_as_another_number(tmp_path):
    path = recorded(tmp_path, (10, 20, 30))
    content = path.read_bytes()
    for place in range(0, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        number = content.count(b"\n", 0, place) + 1
        for reads in (read_metrics, lambda folder: prune_lines(folder / "metrics.jsonl", 20)):
            with pytest.raises(SettingsError, match=rf"metrics\.jsonl: line {number} of \d .*, or remove it: the run"):
                reads(tmp_path)
        assert path.read_bytes() == damaged


@pytest.mark.parametrize("order", [(0, 2), (0, 0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2)])
def test_lines_of_the_metrics_that_are_missing_doubled_or_moved_are_named(tmp_path, order):
    path = recorded(tmp_path, (10, 20, 30))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[place] for place in order))
    with pytest.raises(SettingsError, match=r"line \d of \d says that it is line \d: lines are missing, doubled or in"):
        read_metrics(tmp_path)


def test_metrics_of_an_earlier_version_are_read_and_vouched_for_from_the_next_start_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line(step)) + "\n" for step in (10, 20)))
    prune_lines(path, 20)
    assert [entry.plain() for entry in read_metrics(tmp_path)] == [line(10), line(20)]
    path.write_text(path.read_text().replace('"step": 20', '"step": 90'))
    with pytest.raises(SettingsError, match="line 2 of 2 is damaged, its seal does not match"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "is nested too deep; wanted a run's status; remove it"),
        ("[1]", "is damaged, it holds a list; wanted a run's status; remove it"),
        ('"succeeded"', "is damaged, it holds text; wanted a run's status; remove it"),
        ("{}", "is damaged, it lacks state; wanted a run's status; remove it"),
        ('{"state": "running"}', "is damaged, it lacks step; wanted a run's status; remove it"),
        (
            '{"state": "running", "step": "3", "error": null}',
            "is damaged, step is '3', wanted a whole number; wanted a run's status; remove it",
        ),
        ('{"state": ["running"], "step": 3, "error": null}', "is damaged, state is a list, wanted 'running', 'succeed"),
        (
            '{"state": "runnimg", "step": 3, "error": null}',
            "is damaged, state is 'runnimg', wanted 'running', 'succeeded', 'failed' or 'preempted'; wanted a run's",
        ),
        ('{"state": "failed", "step": 3, "error": {"a": 1}}', "is damaged, error is an object, wanted text; wanted"),
        (json.dumps({"state": "x" * 5_000, "step": 1, "error": None}), "is damaged, state is 'xxx"),
        ('{"state": "running", "step": 3, "error": null, "x": NaN, "digest": "0"}', "is damaged, its digest does not"),
        ('{"state": "running", "step": 3, "error": "\\ud800", "digest": "0"}', "is damaged, its digest does not match"),
    ],
)
def test_a_status_of_another_shape_is_one_short_line(tmp_path, content, message):
    (tmp_path / "status.json").write_text(content)
    for acts in (read_status, settle, lambda folder: write_status(folder, step=4)):
        with pytest.raises(SettingsError, match=rf"\A\S+status\.json: {message}") as error:
            acts(tmp_path)
        assert len(str(error.value)) < 600
    end_status(tmp_path, "failed", "the first error")  # which is what matters then
    assert read_status(tmp_path).error == "the first error"


@pytest.mark.parametrize("error", ["too wide", "y" * 5_000, "line\nbreak " * 500])
def test_how_a_run_ended_is_written_on_a_full_disk_too(small_disk, fill, error):
    write_status(small_disk, state="running", step=7)
    fill()
    with pytest.raises(SettingsError, match=r"status\.json: no space left on the device; free some"):
        write_status(small_disk, state="failed")
    assert read_status(small_disk).state == "running"
    end_status(small_disk, "failed", error)
    status = read_status(small_disk)
    assert (status.state, status.step, status.error[:3]) == ("failed", 7, error[:3])
    assert len(status.error) <= 1000 and status.ended_at


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from e2ray import files
from e2ray.train.record import write_status
folder = Path(sys.argv[1])
with files.lock(folder / ".lock", what="running"):
    write_status(folder, state="running", step=3)
    print("running", flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_is_told_from_a_running_one(tmp_path):
    command = [sys.executable, "-c", KILLED_RUN, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "running\n"
        assert not was_killed(tmp_path, read_status(tmp_path))
        process.stdin.close()
    status = read_status(tmp_path)
    assert status.state == "running" and was_killed(tmp_path, status)  # nobody was left to write anything else
    assert settle(tmp_path) == f"{tmp_path}: ended at step 3 without a word: {KILLED}"
    status = read_status(tmp_path)
    assert (status.state, status.error) == ("failed", KILLED)
    assert settle(tmp_path) is None and not was_killed(tmp_path, status)
