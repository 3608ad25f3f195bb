"""The page of results: the one that is kept says what the files say, and every file is on it."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "jobs"))

import benchmarking
from results_page import page

from e2ray.train import environment

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "jobs" / "results"
RESULT = {
    "commit": "a" * 40,
    "command": "python jobs/bench_demo.py --check",
    "hardware": {"machine": "x86_64", "cpus": 16, "memory_gib": 128.0, "gpus": ["NVIDIA A", "NVIDIA A"]},
    "goals": [
        {"name": "seconds", "value": 480.8731, "goal": "<= 720", "met": True},
        {"name": "share | of bits", "value": 0.5, "goal": ">= 1.0", "met": False},
    ],
}


def test_the_kept_page_is_that_of_the_files():
    kept = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert kept == page(RESULTS), "python jobs/results_page.py > docs/results.md"


def test_every_kept_result_is_on_the_page_with_all_of_its_goals():
    shown = page(RESULTS)
    for path in RESULTS.glob("*.json"):
        assert f"(../jobs/results/{path.name})" in shown
        for goal in json.loads(path.read_text(encoding="utf-8"))["goals"]:
            assert f"| {goal['name']} | {goal['value']:.4g} | {goal['goal']} |" in shown, (path.name, goal)


def test_what_was_missed_is_told_and_the_newest_comes_first(tmp_path):
    for date in ("2026-11-02", "2026-11-10"):
        (tmp_path / f"demo_a_{date}.json").write_text(json.dumps(RESULT), encoding="utf-8")
    shown = page(tmp_path)
    assert shown.count("## Does the built-in run keep its promises") == 1
    assert shown.index("demo_a_2026-11-10.json") < shown.index("demo_a_2026-11-02.json")
    assert "2026-11-10, 16 CPUs (x86_64), 128 GiB, 2 x NVIDIA A: 1 of 2 goals met.\n" in shown
    assert "| seconds | 480.9 | <= 720 | met |\n| share \\| of bits | 0.5 | >= 1.0 | **missed** |\n" in shown


def test_a_result_without_its_script_is_named(tmp_path):
    (tmp_path / "a_b_2026-11-02.json").write_text(json.dumps(RESULT | {"command": "made by hand"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"wanted 'python jobs/bench_<question>.py ...', got 'made by hand'"):
        page(tmp_path)


def test_what_a_benchmark_writes_is_what_the_page_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "git_commit", lambda: "a" * 40)  # results come from a clean commit alone
    monkeypatch.setattr(benchmarking, "RESULTS", tmp_path / "jobs" / "results")
    monkeypatch.setattr(sys, "argv", ["jobs/bench_demo.py", "--check"])
    goals = [benchmarking.goal("seconds", 2.0, at_most=3.0)]
    assert benchmarking.finish("demo", config={}, runs=[1.5], goals=goals, check=True) == 0
    shown = page(tmp_path / "jobs" / "results")
    assert "1 of 1 goals met" in shown and "| seconds | 2 | <= 3.0 | met |" in shown
