"""A comparison in miniature on real parts: trained lanes, untrained ones, long rows, and a restart."""

import json
from pathlib import Path

import pytest

from e2ray import comparing
from e2ray.config.base import SettingsError
from e2ray.config.compare import FIXED_SCALE, CompareSettings, lane_positions, lane_scale
from e2ray.config.load import validate
from e2ray.config.positions import PositionSettings


@pytest.fixture
def recipe(small):
    training = {"steps": 6, "batch_sequences": 8, "micro_batch_sequences": 4, "log_every": 2, "checkpoint_every": 6}
    return small | {
        "pretrain": training | {"lr": 1e-2},
        "train": training | {"lr": 1e-3},
        "compare": {
            "lanes": ["e2llm", "pi_long"],
            "untrained": ["linear"],
            "seeds": [1, 2],
            "retrieval": {"context_lengths": [128], "depths": [0.5], "trials": 2},
        },
    }


@pytest.mark.ray
def test_every_lane_is_measured_alike_and_a_stopped_comparison_goes_on(ray_cluster, recipe, capsys):
    comparing.compare(validate(recipe, source="test"))
    folder = Path(recipe["storage"]) / "small"
    left = {path.stem: json.loads(path.read_text()) for path in (folder / "lanes").glob("*.json")}
    assert sorted(left) == ["base-0", "e2llm-1", "e2llm-2", "linear-0", "pi_long-1"]
    assert {one["tokens"] for one in left.values()} == {0, 6 * 8 * 32}  # long rows, as many tokens
    for name, one in left.items():
        assert {sums["window"] for sums in one["sums"] if sums["served"]} == {32, 64, 128}, name
        assert len({tuple(sums["tokens"]) for sums in one["sums"]}) == 1
        assert [row["context_length"] for row in one["retrieval"]] == [128]
    scales = {name: {s["window"]: s["scale"] for s in one["sums"] if s["served"]} for name, one in left.items()}
    assert scales["base-0"] == {32: 1, 64: 1, 128: 1}
    assert scales["e2llm-1"] == scales["linear-0"] == {32: 1, 64: 2, 128: 4}
    assert scales["pi_long-1"] == {32: 4, 64: 4, 128: 4}

    # The untouched base inside its window is the same model under every untrained extension.
    def at(name, window):
        return next(s["nll"] for s in left[name]["sums"] if s["window"] == window and s["served"])

    assert at("base-0", 32) == pytest.approx(at("linear-0", 32), rel=1e-5)
    assert at("base-0", 128) != at("linear-0", 128)
    assert at("e2llm-1", 128) != at("e2llm-2", 128)

    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    assert [row["lane"] for row in rows] == ["base", "linear", "e2llm", "pi_long"]
    assert (folder / "comparison.png").stat().st_size > 0
    assert "| E2-LLM (paper's preset) |" in (folder / "comparison.md").read_text()

    before = {path: path.stat().st_mtime_ns for path in (folder / "lanes").glob("*.json")}
    gone = folder / "lanes" / "e2llm-2.json"
    lost = json.loads(gone.read_text())
    gone.unlink()
    capsys.readouterr()
    comparing.compare(validate(recipe, source="test"))
    assert "5 jobs, 4 of them done before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before if path != gone} == {
        path: time for path, time in before.items() if path != gone
    }
    assert json.loads(gone.read_text())["sums"] == lost["sums"]

    # One that failed is done again, and lanes may be added or left out; nothing else may change.
    gone.write_text(json.dumps({**lost, "sums": [], "failed": "it does not fit into memory"}))
    recipe["compare"]["lanes"] = ["e2llm"]
    comparing.compare(validate(recipe, source="test"))
    assert "4 jobs, 3 of them done before" in capsys.readouterr().out
    assert json.loads(gone.read_text())["sums"] == lost["sums"]
    recipe["train"]["lr"] = 2e-3
    with pytest.raises(SettingsError, match=r"train\.lr: 0\.001 in the run, 0\.002 asked for"):
        comparing.compare(validate(recipe, source="test"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compare": None}, "compare: is null, wanted the lanes"),
        ({"evaluate": None}, "evaluate: is null, a comparison measures by it"),
    ],
)
def test_a_recipe_that_compares_nothing_is_refused(recipe, changes, message):
    with pytest.raises(SettingsError, match=message):
        comparing.compare(validate(recipe | changes, source="test"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": ["e2llm", "e2llm"]}, "compare.lanes: must name each once"),
        ({"lanes": ["yarns"]}, "compare.lanes"),
        ({"lanes": []}, "compare.lanes"),
        ({"seeds": [1, 1]}, "compare.seeds: must name each once"),
    ],
)
def test_settings_out_of_range_are_refused(recipe, changes, message):
    with pytest.raises(SettingsError, match=message):
        validate(recipe | {"compare": changes}, source="test")


def test_lanes_are_the_published_methods_and_the_papers_ablations():
    paper = lane_positions("e2llm", 16)
    assert paper == PositionSettings.model_validate({"preset": "e2llm", "max_scale": 16})
    assert lane_positions("e2llm_no_shift", 16).placement.kind == "none"
    assert lane_positions("e2llm_no_shift", 16).scale == paper.scale
    assert lane_positions("e2llm_fixed_scale", 16).scale.kind == "fixed"
    assert lane_positions("e2llm_fixed_scale", 16).placement == paper.placement
    for lane in CompareSettings().lanes:
        assert (lane_positions(lane, 16).scale.kind == "fixed") is (lane in FIXED_SCALE), lane


@pytest.mark.parametrize(
    ("lane", "window", "scale"),
    [("base", 2048, 1.0), ("e2llm", 64, 1.0), ("e2llm", 2048, 16.0), ("pose", 128, 16.0), ("yarn", 512, 4.0)],
)
def test_a_lane_is_served_at_the_scale_it_was_made_for(lane, window, scale):
    assert lane_scale(lane, window, 128, 16.0) == scale


@pytest.mark.ray
def test_a_lane_that_fails_is_missing_and_the_others_come_out(ray_cluster, recipe, capsys):
    recipe["compare"] |= {"lanes": ["pose"], "untrained": [], "seeds": [1]}
    recipe["compare"]["retrieval"] |= {"context_lengths": [32, 128]}  # 32 tokens hold no question
    recipe["train"] |= {"lr": 1.0, "clip_norm": 0.0, "eps": 1e-30, "weight_decay": 1e39}
    comparing.compare(validate(recipe, source="test"))
    folder = Path(recipe["storage"]) / "small"
    table = (folder / "comparison.md").read_text()
    assert "PoSE, seed 1: " in table.split("What is missing:")[1]
    assert "base, untouched: 32 tokens: " in table
    base = json.loads((folder / "lanes" / "base-0.json").read_text())
    assert {sums["window"] for sums in base["sums"]} == {32, 64, 128}
    assert [row["context_length"] for row in base["retrieval"]] == [128]
    assert json.loads((folder / "status.json").read_text())["result"] == "compared 2 jobs, 1 of them failed"
