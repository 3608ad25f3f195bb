import json

import psutil
import pytest
import torch

from e2ray.train.record import (
    Recorder,
    environment,
    peak_memory_mib,
    progress_line,
    prune_metrics,
    read_metrics,
    read_status,
    write_status,
)


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
    }


def test_lines_behind_the_checkpoint_and_a_torn_line_are_removed(tmp_path):
    whole = "".join(json.dumps(line(step)) + "\n" for step in (10, 20, 30))
    (tmp_path / "metrics.jsonl").write_text(whole + '{"step": 4')
    prune_metrics(tmp_path, 20)
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [10, 20]


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line(10)) + '\n{"step": 2')
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [10]


def test_recorder_writes_metrics_status_and_tensorboard(tmp_path):
    shown, gauged = [], []
    write_status(tmp_path, state="running")
    recorder = Recorder(tmp_path, start_step=0, steps=20, progress_s=0.0, show=shown.append, gauges=gauged.append)
    for step in (10, 20):
        recorder.report(line(step))
        recorder.progress(step)
    recorder.close()
    assert read_metrics(tmp_path) == [line(10), line(20)] == gauged
    assert read_status(tmp_path)["step"] == 20
    assert [text.split("  ")[0] for text in shown] == ["step 10/20", "step 20/20"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx([0.3, 0.15])
    assert [event.step for event in board.Scalars("loss_by_scale/8")] == [10, 20]

    again = Recorder(tmp_path, start_step=10, steps=20, progress_s=0.0)
    again.report(line(20) | {"loss": 9.0})
    again.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx([0.3, 9.0])
    assert [entry["loss"] for entry in read_metrics(tmp_path)] == [0.3, 9.0]


def test_the_peak_of_memory_is_that_of_this_process():
    resident = psutil.Process().memory_info().rss / 2**20
    assert resident * 0.5 < peak_memory_mib(torch.device("cpu")) < psutil.virtual_memory().total / 2**20


def test_progress_line_tells_step_loss_speed_scale_and_remaining_time():
    text = progress_line(line(10), step=120, steps=1200, seconds_per_step=0.14)
    assert text == "step 120/1200  loss 0.300  45,120 tokens/s  scale 8.4  ETA 2:31"
    assert progress_line(line(10), step=0, steps=1000, seconds_per_step=4).endswith("ETA 1:06:40")


def test_status_keeps_what_is_not_changed(tmp_path):
    write_status(tmp_path, state="running")
    started = read_status(tmp_path)["started_at"]
    write_status(tmp_path, state="failed", error="no")
    status = read_status(tmp_path)
    assert (status["state"], status["error"], status["started_at"]) == ("failed", "no", started)


def test_environment_names_the_versions_and_the_hardware():
    found = environment()
    assert found["versions"]["torch"]
    assert found["hardware"]["cpus"] >= 1
