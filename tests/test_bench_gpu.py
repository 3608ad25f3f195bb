"""The benchmark for GPUs runs in miniature where there is none, writes what it found and says what is not there."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    command = [sys.executable, "jobs/bench_gpu.py", "--small", "--out", str(out)]
    known = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text()), done.stdout


def test_every_part_is_there_and_nothing_failed(measured):
    found, shown = measured
    assert list(found["runs"]) == ["attention", "stages", "layers", "loss", "checkpoint", "reading"]
    assert "FAILED" not in shown, shown
    for part in found["runs"]:
        assert f"{part}:" in shown


def test_what_a_cpu_has_not_is_said(measured):
    runs = measured[0]["runs"]
    for name in ("flash_attention_2", "flash_attention_3", "kernels"):
        assert "needs a GPU" in runs["attention"][name]["not there"]
    assert "needs a GPU" in runs["layers"]["liger"]["not there"]


def test_attention_agrees_with_float32_and_is_proven(measured):
    for name in ("sdpa", "eager"):
        entry = measured[0]["runs"]["attention"][name]
        assert entry["proven"] and entry["relative"] < 0.01


def test_a_stage_skips_a_bad_step_and_continues_from_its_checkpoint(measured):
    for entry in measured[0]["runs"]["stages"].values():
        assert entry["a bad step is skipped"] and entry["continued"] == entry["loaded and continued"]


def test_ours_and_the_plain_loop_are_compared(measured):
    found, shown = measured
    layers = found["runs"]["layers"]
    for name in ("as it is", "compiled", "loss in the head", "plain transformers", "plain transformers, again"):
        assert layers[name]["tokens_per_second"] > 0
    assert set(layers["draws and methods"]["against_none"]) == {"none", "linear", "yarn", "ntk"}
    assert found["goals"] == []  # of a miniature nothing is wanted
    assert found["commit"] and found["config"]["small"] and "written to" in shown


def test_goals_are_those_of_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "jobs")
    bench = importlib.import_module("bench_gpu")
    layers = {
        "plain transformers": {"tokens_per_second": 100.0, "mfu": 0.2},
        "compiled": {"tokens_per_second": 130.0, "mfu": 0.3},
        "liger": {"not there": "because"},
        "draws and methods": {"against_none": {"none": 1.0, "yarn": 1.004}},
    }
    assert [(each["value"], each["met"]) for each in bench.goals({"layers": layers})] == [
        (1.3, True), (0.3, False), (1.004, True),
    ]  # fmt: skip
    assert bench.goals({}) == []
