"""Real Ray Train workers: the same losses on one and on two, and errors that come out in one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from e2ray.config.base import SettingsError
from e2ray.config.train import ClusterSettings
from e2ray.evaluate.perplexity import DivergedWeights
from e2ray.train.launch import Resources, _leave, _left, resources, shortage, train
from e2ray.train.ledger import read_ledger
from e2ray.train.loop import Diverged
from e2ray.train.record import read_metrics


@pytest.mark.ray
@pytest.mark.parametrize("task", ["concat", pytest.param("best_fit", marks=pytest.mark.slow)], indirect=True)
def test_two_workers_see_the_rows_and_draws_of_one(ray_cluster, task, tmp_path):
    """Every step's loss by scale is a function of the rows and draws of all steps before: equal means equal."""
    train(task, ClusterSettings(num_workers=1, max_failures=0))
    (tmp_path / "two").mkdir()
    double = replace(task, folder=tmp_path / "two")
    train(double, ClusterSettings(num_workers=2, max_failures=0))
    one, two = read_metrics(task.folder), read_metrics(double.folder)
    assert [line["step"] for line in one] == list(range(1, 9))
    for mine, other in zip(one, two, strict=True):
        assert mine["scale_mean"] == other["scale_mean"]
        assert mine["loss_by_scale"] == pytest.approx(other["loss_by_scale"], rel=1e-5)
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert one[-1]["loss"] != pytest.approx(one[0]["loss"], rel=1e-3)  # it did train
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
    assert [(line["step"], line["loss"]) for line in read_metrics(task.folder)][1:] == [(2, None), (3, None)]
    assert len(list((task.folder / "tensorboard").iterdir())) == 1  # one try
    assert not [path for path in task.folder.iterdir() if path.name.startswith(".refused")]


@pytest.mark.parametrize("error", [Diverged("steps 2 to 4: no"), SettingsError("train.lr: no"), DivergedWeights("NLL")])
def test_what_a_worker_leaves_comes_out_as_the_kind_that_it_was(tmp_path, error):
    refusal = tmp_path / ".refused-1"
    assert _left(refusal) is None
    _leave(refusal, error)
    found = _left(refusal)
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
