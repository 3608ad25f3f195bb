"""Real Ray Train workers: the same losses on one and on two, and errors that come out in one line."""

import json
import os
import re
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray.train.v2.api.exceptions import WorkerGroupError

from e2ray.config.base import SettingsError
from e2ray.config.train import ClusterSettings
from e2ray.data.shards import local_batches
from e2ray.evaluate.perplexity import DivergedWeights
from e2ray.train import launch
from e2ray.train.attempt import leave, left
from e2ray.train.heartbeat import read_beats
from e2ray.train.launch import Resources, resources, shortage, train
from e2ray.train.ledger import read_ledger
from e2ray.train.loop import Diverged
from e2ray.train.record import read_metrics
from e2ray.train.worker import run


def alone(task):
    """Train a task in this process."""
    options = {
        "batch_sequences": task.train.batch_sequences,
        "window": task.window,
        "shuffle_shards": task.shuffle_shards,
    }

    def open_rows(start, stop):
        steps = {"seed": task.seed, "start_step": start, "stop_step": stop, "rank": 0, "num_workers": 1}
        return local_batches(task.shards, **steps, **options, tokenizer_hash=task.tokenizer_hash)

    run(task, device=torch.device("cpu"), open_rows=open_rows)


@pytest.mark.ray
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("task", ["concat", pytest.param("best_fit", marks=pytest.mark.slow)], indirect=True)
def test_two_workers_see_the_rows_and_draws_of_one(ray_cluster, task, tmp_path):
    """Every step's loss by scale is a function of the rows and draws of all steps before: equal means equal.

    The one is a training without Ray, by the plain reader.
    """
    alone(task)
    (tmp_path / "two").mkdir()
    double = replace(task, folder=tmp_path / "two")
    interrupt = signal.getsignal(signal.SIGINT)
    train(double, ClusterSettings(num_workers=2, max_failures=0))
    assert signal.getsignal(signal.SIGINT) is interrupt
    one, two = read_metrics(task.folder), read_metrics(double.folder)
    assert [line.step for line in one] == list(range(1, 9))
    for mine, other in zip(one, two, strict=True):
        assert mine.scale_mean == other.scale_mean
        assert mine.loss_by_scale == pytest.approx(other.loss_by_scale, rel=1e-5)
        assert mine.loss == pytest.approx(other.loss, rel=1e-5)
    assert one[-1].loss != pytest.approx(one[0].loss, rel=1e-3)  # it did train
    mine, other = (read_ledger(folder).drop_columns(["rank"]) for folder in (task.folder, double.folder))
    assert mine.equals(other) and mine.num_rows == 8 * 4
    assert set(read_ledger(double.folder)["rank"].to_pylist()) == {0, 1}


@pytest.mark.ray
def test_a_damaged_shard_comes_out_as_one_line_and_is_not_retried_for_ever(ray_cluster, task):
    entry = json.loads((task.shards / "manifest.json").read_text())["shards"][1]
    path = task.shards / entry["file"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"{entry['file']}.*rerun prepare") as caught:
        train(task, ClusterSettings(max_failures=2))
    assert "\n" not in str(caught.value)
    assert not [path for path in Path(task.folder).iterdir() if path.name.startswith(".refused")]


@contextmanager
def meanwhile(function):
    """Run a function in a thread beside the block; its error is the block's."""
    errors = []

    def run():
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    assert not errors, errors


def beat_at_step(folder, step, *, timeout_s=120):
    end = time.monotonic() + timeout_s
    while True:
        for path in folder.glob(".heartbeats-*"):
            for beat in read_beats(path):
                if beat.name == "rank-1" and beat.step >= step:
                    return beat
        assert time.monotonic() < end, "no worker got there"
        time.sleep(0.05)


@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_worker_is_told_and_replaced_and_the_losses_stay(ray_cluster, task, tmp_path, capfd):
    task = replace(task, train=task.train.model_copy(update={"steps": 40, "checkpoint_every": 10}))
    settings = ClusterSettings(num_workers=2, max_failures=5, hang_s=10)
    train(task, settings)
    unbroken = read_metrics(task.folder)
    (tmp_path / "stopped").mkdir()
    stopped = replace(task, folder=tmp_path / "stopped")
    capfd.readouterr()

    def stop():
        os.kill(beat_at_step(stopped.folder, 12).pid, signal.SIGSTOP)

    with meanwhile(stop):
        train(stopped, settings)
    said = capfd.readouterr().out
    told = re.search(
        r"worker of rank 1 \(pid \d+ on .+\): no progress for \d s, its process is stopped; .+\n    .+", said
    )
    assert told, said
    assert re.search(r"worker of rank 1 .* cluster.hang_s is 10: it is ended, and the workers start anew", said)
    lines = read_metrics(stopped.folder)
    assert [line.step for line in lines] == list(range(1, 41))
    assert [line.loss for line in lines] == [line.loss for line in unbroken]
    assert not list(stopped.folder.glob(".heartbeats-*"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_whose_step_is_deadlocked_is_told_with_its_stack_and_replaced(ray_cluster, task, tmp_path, capfd):
    class Deadlock:  # in here, so that it travels by value
        def __init__(self, flag):
            self.flag = flag

        def open(self, device):
            return self.measure

        def measure(self, engine, step):
            if step == 3 and engine.rank == 0 and not self.flag.exists():
                self.flag.write_text("")
                update, lock = engine.update, __import__("threading").Lock()

                def update_that_never_ends(*arguments, **options):
                    lock.acquire()
                    lock.acquire()
                    return update(*arguments, **options)

                engine.update = update_that_never_ends
            return {}

    began = time.monotonic()
    settings = ClusterSettings(num_workers=2, max_failures=5, hang_s=10)
    launch.try_out(task, settings, Deadlock(tmp_path / "flag"), [])
    said = capfd.readouterr().out
    assert re.search(
        r"rank 0 .* process is alive; updating, 3 updates made\n    .*:\d+ in update_that_never_ends", said
    ), said
    assert re.search(r"rank 0 .* it is ended, and the workers start anew", said)
    assert [line.step for line in read_metrics(task.folder)] == list(range(1, 9))
    assert time.monotonic() - began < 180


def test_a_worker_that_hung_more_often_than_it_may_is_the_error():
    died = WorkerGroupError("2 failed", {0: RuntimeError("The actor died"), 1: RuntimeError("connection reset")})
    shown = str(launch._cause(died, "worker of rank 1: no progress for 300 s (updating, 7 updates made)"))
    assert re.search(r"rank 1: no progress for 300 s .*; if that was work, raise cluster\.hang_s", shown)
    assert "The actor died" in str(launch._cause(died, None))


@pytest.mark.ray
def test_numbers_that_diverge_come_out_as_one_line_and_are_not_tried_again(ray_cluster, task):
    changes = {
        "weight_decay": 1e39,
        "lr": 1.0,
        "schedule": "constant",
        "checkpoint_every": 8,
    }  # the first update blows up
    with pytest.raises(Diverged, match=r"^steps 2 to 4 had no finite gradient norm or loss .* 3 in a row") as caught:
        train(replace(task, train=task.train.model_copy(update=changes)), ClusterSettings(max_failures=2))
    assert "\n" not in str(caught.value) and not isinstance(caught.value, SettingsError)
    assert [(line.step, line.loss) for line in read_metrics(task.folder)][1:] == [(2, None), (3, None)]
    assert len(list((task.folder / "tensorboard").iterdir())) == 1  # one try
    assert not [path for path in task.folder.iterdir() if path.name.startswith(".refused")]


@pytest.mark.parametrize("error", [Diverged("steps 2 to 4: no"), SettingsError("train.lr: no"), DivergedWeights("NLL")])
def test_what_a_worker_leaves_comes_out_as_the_kind_that_it_was(tmp_path, error):
    refusal = tmp_path / ".refused-1"
    assert left(refusal) is None
    leave(refusal, error)
    found = left(refusal)
    assert str(found) == str(error) and isinstance(found, Diverged) is isinstance(error, Diverged)
    assert isinstance(found, SettingsError) is isinstance(error, SettingsError) and not refusal.exists()


@pytest.mark.ray
def test_more_workers_than_the_cluster_has_is_told_at_once(ray_cluster):
    with pytest.raises(SettingsError, match=r"cluster\.num_workers: 64 workers need 48 CPUs .* has 2, enough for 2"):
        resources(ClusterSettings(num_workers=64))
    with pytest.raises(SettingsError, match=r"2 workers need 2 GPUs .* has 0"):
        resources(ClusterSettings(num_workers=2, use_gpu=True, cpus_per_worker=0.1))


@pytest.mark.ray
def test_a_cluster_that_scales_is_waited_for(ray_cluster):
    with pytest.raises(SettingsError, match="64 workers"):
        resources(ClusterSettings(num_workers=64, autoscaling=True, wait_s=0.3))


def test_readers_of_the_data_are_counted():
    wanted = Resources(num_workers=2, use_gpu=False, cpus_per_worker=1.0)
    assert shortage(wanted, {"CPU": 2.5}) is None
    assert "need 2.5 CPUs" in str(shortage(wanted, {"CPU": 2.0}))
