"""Ray Tune around a study, with real trials on a real cluster."""

import os
import re
import signal
import sys
from collections import Counter
from dataclasses import dataclass

import pytest
import ray

from e2ray.config.base import SettingsError
from e2ray.config.train import ClusterSettings
from e2ray.search import tune
from e2ray.search.shared import Shared
from e2ray.search.study import Study
from e2ray.search.trial import examine_base

pytestmark = pytest.mark.ray


TAME = 1e-40  # a learning rate that stands the decay of 1e39 by which one of 1 blows up its first update


@dataclass(frozen=True)
class Deadly(Shared):
    """Trials with these numbers end their worker without a word."""

    numbers: tuple[int, ...] = ()

    def task_of(self, plan):
        if plan.number in self.numbers:
            os._exit(1)
        return super().task_of(plan)


@dataclass(frozen=True)
class Stopping(Shared):
    """A trial with this number stops its worker, which goes on only when it is told to."""

    number: int = -1

    def task_of(self, plan):
        if plan.number == self.number:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().task_of(plan)


@dataclass(frozen=True)
class Signed(Shared):
    """Each trial leaves the process it ran in."""

    def task_of(self, plan):
        with open(self.folder / "processes", "a") as file:
            file.write(f"{os.getpid()}\n")
        return super().task_of(plan)


def study_of(tmp_path, config, shared):
    import torch

    folder = tmp_path / "study"
    folder.mkdir(exist_ok=True)
    study = Study(folder, config, 32)
    study.set_base(*examine_base(shared, torch.device("cpu")))
    return study


def test_a_study_runs_its_trials_side_by_side_in_actors_that_stay(ray_cluster, tmp_path, configured, shared_of):
    config = configured()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    shared = Signed(**vars(shared_of(config)))
    study = study_of(tmp_path, config, shared)
    told = []
    tune.run(study, shared, config.cluster, told=told.append)
    records = study.records()
    assert len(records) == 12 and all(record.finished for record in records)
    assert {record.state for record in records} <= {"complete", "pruned"}
    assert set(told) == set(range(12))
    for record in records:
        assert record.tokens == record.step * 4 * 32 and 0 < record.seconds < 600
    ran = Counter((shared.folder / "processes").read_text().split())  # a trial is shorter than the start of an actor
    assert len(ran) == 2 and sum(ran.values()) == 12 and min(ran.values()) > 1, ran
    tune.run(study, shared, config.cluster, told=told.append)  # nothing is left to do
    assert study.records() == records


def deadly(shared, *numbers):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return Deadly(**vars(shared), numbers=numbers)


def test_a_trial_that_dies_or_has_no_finite_loss_is_a_failed_row_and_the_study_goes_on(
    ray_cluster, tmp_path, configured, shared_of
):
    wild = {"train.lr": {"kind": "choice", "options": [TAME, 1.0]}}
    search = {"space": wild, "trials": 10, "startup_trials": 0, "sampler": "random", "early_stopping": None}
    config = configured(
        search | {"concurrency": 1}, train={"lr": TAME, "clip_norm": 0.0, "eps": 1e-30, "weight_decay": 1e39}
    )
    shared = deadly(shared_of(config), 1, 6)
    study = study_of(tmp_path, config, shared)
    tune.run(study, shared, config.cluster)
    records = study.records()
    assert len(records) == 10 and all(record.finished for record in records)
    dead, others = [records[1], records[6]], [record for record in records if record.number not in (1, 6)]
    for record in dead:
        assert record.state == "failed" and "ActorDied" in record.reason and "\n" not in record.reason
    states = {(record.settings["train.lr"], record.state) for record in others}
    assert states == {(TAME, "complete"), (1.0, "failed")}
    assert all("finite" in record.reason and record.tokens >= 128 for record in others if record.state == "failed")


@pytest.mark.slow
def test_a_trial_whose_worker_stands_still_is_told_and_ended(ray_cluster, tmp_path, configured, shared_of, capfd):
    config = configured({"trials": 6})
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    shared = Stopping(**vars(shared_of(config)), number=2)
    study = study_of(tmp_path, config, shared)
    tune.run(study, shared, config.cluster.model_copy(update={"hang_s": 10.0}))
    records = study.records()
    assert [record.number for record in records if record.state == "failed"] == [2]
    assert Counter(record.finished for record in records) == {True: 6}
    said = capfd.readouterr().out
    assert re.search(r"worker of trial 2 \(pid .*its process is stopped; starting, 0 updates made\n    .+", said), said
    assert re.search(r"worker of trial 2 \(pid .*cluster\.hang_s is 10: it is ended", said)
    assert not list(shared.folder.glob(".heartbeats-*"))


@pytest.mark.slow
def test_a_study_whose_workers_all_die_ends_and_can_be_resumed(ray_cluster, tmp_path, configured, shared_of):
    config = configured({"trials": 6, "concurrency": 1})
    shared = shared_of(config)
    study = study_of(tmp_path, config, shared)
    with pytest.raises(RuntimeError, match=r"3 trials died one after the other, .*continue with --resume"):
        tune.run(study, deadly(shared, *range(6)), config.cluster)
    assert not [record for record in study.records() if record.finished]
    again = Study(tmp_path / "study", config, 32)
    tune.run(again, shared, config.cluster)
    assert {record.state for record in again.records()} <= {"complete", "pruned"} and len(again.records()) == 6


def test_an_error_of_the_driver_ends_the_study_as_itself(ray_cluster, tmp_path, configured, shared_of):
    config = configured({"concurrency": 1})
    shared = shared_of(config)
    study = study_of(tmp_path, config, shared)

    def told(number):
        raise SettingsError("no space left on the device")

    with pytest.raises(SettingsError, match=r"^no space left on the device$"):
        tune.run(study, shared, config.cluster, told=told)
    assert any(not record.finished for record in study.records())


@pytest.mark.slow
def test_a_trial_of_two_workers_runs_a_ray_train_of_its_own(ray_cluster, tmp_path, configured, shared_of):
    search = {"trials": 1, "baselines": ["e2llm"], "repeats": 1}
    two, one = configured(search, cluster={"num_workers": 2}), configured(search)
    shared = shared_of(two)
    study = study_of(tmp_path, two, shared)
    tune.run(study, shared, two.cluster)
    (record,) = study.records()
    assert record.state == "complete" and sorted(record.values) == [1, 3, 9], record.reason
    assert record.tokens == 9 * 4 * 32 and record.seconds > 0
    (tmp_path / "alone").mkdir()
    other = study_of(tmp_path / "alone", one, shared)
    tune.run(other, shared_of(one), one.cluster)
    assert record.long == pytest.approx(other.records()[0].long, rel=1e-4)  # sums of gradients round differently
    assert record.short == pytest.approx(other.records()[0].short, abs=1e-3)


@pytest.mark.slow
def test_trials_of_two_workers_are_stopped_and_fail_as_those_of_one(ray_cluster, tmp_path, configured, shared_of):
    wild = {"train.lr": {"kind": "choice", "options": [0.005, 0.01, 1.0]}}
    search = {"space": wild, "trials": 8, "baselines": ["e2llm"], "repeats": 1, "startup_trials": 0}
    config = configured(
        search | {"sampler": "random", "early_stopping": {"kind": "asha", "min_steps": 3}},
        train={"clip_norm": 0.0, "eps": 1e-30, "weight_decay": 50.0},
        cluster={"num_workers": 2},
    )
    shared = shared_of(config)
    study = study_of(tmp_path, config, shared)
    tune.run(study, shared, config.cluster)  # one at a time: a placement group that is not freed would end it here
    records = study.records()
    assert len(records) == 8 and all(record.finished for record in records)
    wild_ones = [record for record in records if record.settings["train.lr"] == 1.0]
    assert wild_ones and {record.state for record in wild_ones} == {"failed"}
    assert all("finite" in record.reason and "\n" not in record.reason for record in wild_ones)
    tame = [record for record in records if record.settings["train.lr"] < 1.0]
    assert {record.state for record in tame} == {"complete", "pruned"}
    assert all(record.step == 3 and sorted(record.values) == [3] for record in tame if record.state == "pruned")


def test_tune_writes_down_nothing_of_what_tells_of_trials():
    waiting = (number for number in range(3))  # such as a context that is open, or a stream
    verdicts = tune._Verdicts(study=None, told=lambda number: next(waiting))
    assert ray.cloudpickle.loads(ray.cloudpickle.dumps(verdicts)).told is None
    verdicts.told(0)


def test_room_follows_from_the_cluster(ray_cluster):
    assert tune.room(ClusterSettings(), None).trials == 2
    assert tune.room(ClusterSettings(), 1).trials == 1
    assert tune.room(ClusterSettings(cpus_per_worker=0.5), None).trials == 4
    assert tune.room(ClusterSettings(num_workers=2), None).trials == 1
    with pytest.raises(
        SettingsError, match=r"too small for one trial: .* needs 3 CPUs on one node \(the largest has 2\)"
    ):
        tune.room(ClusterSettings(cpus_per_worker=3), None)
    with pytest.raises(SettingsError, match=r"cluster\.num_workers: 64 workers need"):
        tune.room(ClusterSettings(num_workers=64), None)
    with pytest.raises(SettingsError, match=r"needs 1 CPUs .* and 1 GPUs on one node \(the largest has 0\)"):
        tune.room(ClusterSettings(use_gpu=True), None)
