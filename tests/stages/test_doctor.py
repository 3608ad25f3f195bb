"""What `e2ray doctor` finds: on a real Ray of this machine, and for machines that are not as they should be."""

import dataclasses

import pytest
import torch

from e2ray.config.base import SettingsError
from e2ray.config.load import validate
from e2ray.stages import doctor as module
from e2ray.stages import health
from e2ray.stages.doctor import doctor
from e2ray.stages.health import Card, Node, node
from e2ray.stages.run import resolve
from e2ray.testing.recipes import PRETRAIN, recipe

GOOD = Node(
    host="one",
    versions={"python": "3.11.7", "torch": "2.13.0", "ray": "2.56.0", "deepspeed": "0.19.8"},
    cards=(Card("NVIDIA H100 80GB HBM3", 79.1, 0.5),),
    holders=(),
    runs=("sdpa", "flash_attention_2"),
    missing=(),
    storage=None,
    free_gib=500.0,
)


def config_of(tmp_path, *, workers=1, **train):
    made = recipe(tmp_path / "storage", texts=str(tmp_path / "*.txt"), pretrain=PRETRAIN)
    made["train"] = {"steps": 10, "batch_sequences": 8, "micro_batch_sequences": 2, "zero_stage": 2} | train
    made["cluster"] = {"num_workers": workers}
    return validate(made, source="recipe")


def told(lines):
    return [f"{line.level} {line.text}" for line in lines]


@pytest.mark.ray
def test_a_sound_machine_has_a_line_for_each_subject(tmp_path, ray_cluster, capsys):
    doctor(config_of(tmp_path, workers=2))
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.startswith(("ok ", "warning "))]
    subjects = [line.split(":")[0].split()[-1] for line in found]
    assert not [line for line in lines if line.startswith("FAILED")]
    for subject in ("token", "versions", "storage", "GPUs", "nodes", "store", "base", "links"):
        assert subject in subjects, lines
    moved = next(line for line in found if "links:" in line)
    assert "GB/s, so that gradients take" in moved
    assert list((tmp_path / "storage").iterdir()) == []  # nothing is left behind


@pytest.mark.ray
def test_a_storage_that_is_no_folder_fails_with_one_line(tmp_path, ray_cluster, monkeypatch):
    monkeypatch.setattr(module, "_ask", lambda run: [dataclasses.replace(GOOD, storage="cannot be written (full)")])
    with pytest.raises(SettingsError, match=r"^1 of the findings above failed; a run would not get through, mend them"):
        doctor(config_of(tmp_path))


def test_nodes_of_two_versions_are_told_by_name():
    other = dataclasses.replace(GOOD, host="two", versions={**GOOD.versions, "torch": "2.12.0"})
    (line,) = told(module._versions([GOOD, other]))
    assert line == "FAILED versions: torch is 2.13.0 on one, 2.12.0 on two; install constraints.txt on all nodes"
    same = dataclasses.replace(
        GOOD, host="two", versions={**GOOD.versions, "torch": "2.13.0+cpu"}
    )  # another build of it
    (line,) = told(module._versions([GOOD, same]))
    assert line.startswith("ok versions: equal on 2 nodes (python 3.11.7, torch 2.13.0")


def test_a_storage_that_a_node_cannot_write_is_told(tmp_path):
    run = resolve(config_of(tmp_path))
    bad = dataclasses.replace(GOOD, host="two", storage="cannot be written (Read-only file system)")
    (line,) = told(module._storage(run, [GOOD, bad]))
    assert line.startswith(f"FAILED storage: {run.storage} cannot be written (Read-only file system), on two; name a")
    (line,) = told(module._storage(run, [GOOD, dataclasses.replace(GOOD, free_gib=20.0)]))
    assert line.endswith("can be written from all nodes, 20 GiB free")


@pytest.mark.parametrize(
    ("holders", "who"), [((), "nvidia-smi does not say who"), (("process 7 holds 900 MiB",), "process 7 holds 900 MiB")]
)
def test_a_card_that_others_hold_is_told(holders, who, monkeypatch):
    held = dataclasses.replace(GOOD, cards=(Card("NVIDIA H100", 79.1, 30.0),), holders=holders)
    monkeypatch.setattr(module, "has", lambda resource: 0.0)
    first, second = told(module._cards([held]))
    assert first == "ok GPUs: 1, NVIDIA H100"
    assert second == f"FAILED GPUs: others hold 30 GiB of a NVIDIA H100 on one ({who}); end them"
    assert told(module._cards([GOOD])) == ["ok GPUs: 1, NVIDIA H100 80GB HBM3"]
    blind = [dataclasses.replace(GOOD, cards=())]
    assert told(module._cards(blind)) == ["ok GPUs: none, workers train on CPUs"]
    monkeypatch.setattr(module, "has", lambda resource: 8.0)
    (line,) = told(module._cards(blind))
    assert line.startswith("FAILED GPUs: Ray counts 8, torch sees none; install its CUDA build")


def test_only_what_runs_on_all_nodes_is_told_as_there(tmp_path):
    run = resolve(config_of(tmp_path, compile=True))
    other = dataclasses.replace(GOOD, host="two", runs=("sdpa",), missing=("flash_attention_2 is not there",))
    lines = told(module._abilities(run, [GOOD, other]))
    assert lines == [
        "ok attention and kernels on all nodes: sdpa",
        "FAILED compile: the recipe asks for it, and not all nodes have it",
        "warning on two: flash_attention_2 is not there",
    ]


@pytest.mark.parametrize(
    ("speed", "level"), [(1e6, "warning"), (1e15, "ok")]
)  # of a model of 20 thousand numbers that trains for microseconds
def test_slow_links_are_told_with_what_to_look_for(speed, level, tmp_path):
    line = module._judged(resolve(config_of(tmp_path, workers=2)), [GOOD], speed)
    assert line.level == level and f"{speed / 1e9:,.2f} GB/s" in line.text
    assert ("rdma-core" in line.text) is (level == "warning")


def test_gradients_are_counted_for_every_micro_batch_where_a_stage_reduces_each(tmp_path):
    def seconds(**changes):
        line = module._judged(resolve(config_of(tmp_path, workers=2, **changes)), [], 1e6)
        return float(line.text.split("gradients take ")[1].split(" s")[0])

    assert seconds() == pytest.approx(2 * seconds(zero_stage=1), rel=0.01)  # two micro batches on each of two workers
    assert seconds(precision="bf16") == pytest.approx(2 * seconds(precision="bf16", reduce_dtype="bf16"), rel=0.01)


def test_what_a_machine_says_of_itself(tmp_path):
    (tmp_path / "mark").write_bytes(b"")
    found = node(str(tmp_path), "mark")
    assert found.versions["torch"] == torch.__version__ and found.versions["python"]
    assert found.storage is None and found.free_gib > 0 and "sdpa" in found.runs
    assert [entry.name for entry in tmp_path.iterdir()] == ["mark"]
    assert node(str(tmp_path), "other").storage == "is another folder there, not the one that all nodes share"


def test_a_missing_compiler_is_told(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    runs, missing = health._abilities()
    assert "compile" not in runs and "there is no C++ compiler (no-such-compiler)" in missing[0]
