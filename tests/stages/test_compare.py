"""A comparison in miniature on real parts: trained lanes, untrained ones, long rows, and a restart."""

import contextlib
import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.compare import FIXED_SCALE, CompareSettings, lane_positions
from e2ray.config.load import validate
from e2ray.config.positions import PositionSettings
from e2ray.records.comparison import Lane, LaneSums
from e2ray.stages import compare as comparing
from e2ray.testing.recipes import PRETRAIN
from e2ray.train import lane as lanes
from e2ray.train.lane import Job, is_done, run_job


@pytest.fixture
def recipe(small):
    training = {"steps": 6, "batch_sequences": 8, "micro_batch_sequences": 4, "log_every": 2, "checkpoint_every": 6}
    return small | {
        "pretrain": dict(PRETRAIN),
        "train": training | {"lr": 1e-3},
        "compare": {
            "lanes": ["e2llm", "pi_long"],
            "untrained": ["linear"],
            "seeds": [1, 2],
            "own": {
                "under yarn": {
                    "positions": {"preset": "e2yarn", "max_scale": 4},
                    "objective": {"distill": 0.5},
                    "seeds": 1,
                }
            },
            "retrieval": {"context_lengths": [32, 128], "depths": [0.5], "trials": 2},  # 32 tokens hold no question
        },
    }


def job_of(recipe, lane, **changes):
    config = validate(recipe, source="test")
    task = SimpleNamespace(base_context_length=32)
    return Job(lane, 1, task, None, None, config.model_copy(update=changes), 4.0, None, Path("x.json"))


def test_an_own_lane_is_served_by_its_draws_and_the_others_by_their_name(recipe):
    native = {"scale": {"kind": "fixed", "max_scale": 4, "native_share": 0.5}, "placement": {"kind": "none"}}
    job = job_of(recipe, "mine", positions=PositionSettings.model_validate(native))
    for own, served in ((True, [1, 4, 4]), (False, [1, 2, 4])):
        made = replace(job, own=own)
        assert [made.served(window) for window in (32, 64, 128)] == served


def test_a_job_of_the_lane_best_says_what_it_trains_with(recipe):
    """The file that compare.best names may be another one when the comparison goes on."""
    config = validate(recipe, source="test")
    other = config.train.model_copy(update={"lr": 5e-4})
    jobs = [job_of(recipe, "best"), job_of(recipe, "best", train=other)]
    assert jobs[0].told != jobs[1].told and jobs[1].told["lr"] == 5e-4
    assert job_of(recipe, "e2llm").told is None


@pytest.mark.ray
def test_every_lane_is_measured_alike_and_a_stopped_comparison_goes_on(ray_cluster, recipe, storage, capsys):
    recipe |= {"storage": storage, "name": "lanes"}
    comparing.compare(validate(recipe, source="test"))
    folder = Path(storage) / "lanes"
    left = {path.stem: json.loads(path.read_text()) for path in (folder / "lanes").glob("*.json")}
    assert sorted(left) == [*("base-0", "e2llm-1", "e2llm-2", "linear-0", "own-under yarn-1", "pi_long-1")]
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
    assert [row["lane"] for row in rows] == ["base", "linear", "e2llm", "pi_long", "under yarn"]
    assert (folder / "comparison.png").stat().st_size > 0
    table, missing = (folder / "comparison.md").read_text().split("What is missing:")
    assert "| E2-LLM (paper's preset) |" in table
    assert "all: 32 tokens: " in missing
    assert json.loads((folder / "status.json").read_text())["result"] == "compared 6 jobs"
    assert json.loads((folder / "environment.json").read_text())["versions"]["torch"]

    # What is not there or failed is done again, and lanes may be added or left out; nothing else may change.
    gone, failed = (folder / "lanes" / name for name in ("e2llm-2.json", "linear-0.json"))
    lost = {path: json.loads(path.read_text())["sums"] for path in (gone, failed)}
    before = {path: path.stat().st_mtime_ns for path in (folder / "lanes").glob("*.json") if path not in lost}
    gone.unlink()
    kept = {key: value for key, value in left["linear-0"].items() if key != "digest"}
    failed.write_text(json.dumps({**kept, "sums": [], "failed": "it does not fit into memory"}))
    recipe["compare"] |= {"lanes": ["e2llm"], "untrained": ["linear"]}
    capsys.readouterr()
    comparing.compare(validate(recipe, source="test"))
    assert "5 jobs, 3 of them done before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path: json.loads(path.read_text())["sums"] for path in lost} == lost
    recipe["compare"]["own"]["under yarn"]["objective"] = None
    with pytest.raises(SettingsError, match=r"own-under yarn-1\.json: was made when compare\.own said something else"):
        comparing.compare(validate(recipe, source="test"))
    recipe["train"]["lr"] = 2e-3
    with pytest.raises(SettingsError, match=r"train\.lr: 0\.001 in the run, 0\.002 asked for"):
        comparing.compare(validate(recipe, source="test"))


@pytest.mark.parametrize(
    ("left", "kind"), [("model/model.safetensors", "training run"), ("checkpoints/latest", "training run"),
                       ("study.journal", "study")],
)  # fmt: skip
def test_a_comparison_takes_no_other_kinds_name(recipe, left, kind):
    path = Path(recipe["storage"]) / "small" / left
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(SettingsError, match=rf"small: holds a {kind} of that name; choose another name"):
        comparing.compare(validate(recipe, source="test"))
    assert path.exists() and not (Path(recipe["storage"]) / "small" / "status.json").exists()


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
        ({"lanes": []}, "lanes: is empty and so is own"),
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
    ("error", "said"),
    [
        (SettingsError("step 3: loss is nan"), "step 3: loss is nan"),
        (MemoryError(), "it does not fit into memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "it does not fit into memory"),
    ],
)
def test_a_job_that_fails_says_why_and_a_defect_is_none_of_these(tmp_path, monkeypatch, recipe, capsys, error, said):
    def trained(job, config, device):
        raise error

    monkeypatch.setattr(lanes, "_trained", trained)
    job = Job("pose", 1, None, None, None, validate(recipe, source="test"), 4.0, None, tmp_path / "pose-1.json")
    run_job(job, use_gpu=False)
    left = json.loads(job.out.read_text())
    assert (left["failed"], left["sums"], left["tokens"]) == (said, [], 0)
    assert f"pose, seed 1: {said}" in capsys.readouterr().out
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1"):
        run_job(job, use_gpu=False)


def lane(folder, **changes):
    """Return a job, and what it may have left."""
    job = Job("pose", 2, None, None, None, None, 4.0, None, folder / "pose-2.json")
    sums = LaneSums(window=32, scale=1.0, served=True, nll=(3.25,), tokens=(1,))
    nothing = {"tokens": 0, "train_s": 0.0, "steps": 0, "peak_mib": None, "retrieval": (), "missing": ()}
    return job, Lane.model_validate({"lane": "pose", "seed": 2, **nothing, "sums": (sums,), **changes})


def test_a_result_that_is_not_what_its_job_wrote_is_refused_and_never_another_figure(tmp_path):
    job, left = lane(tmp_path)
    left.write(job.out)
    assert is_done(job) and lanes.left(job) == left
    content = job.out.read_bytes()
    for place in random.Random(0).sample(range(8 * len(content)), 300):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        job.out.write_bytes(damaged)
        with contextlib.suppress(SettingsError):
            found = lanes.left(job)
            assert found == left
            continue
        with pytest.raises(SettingsError, match="remove the file, and that job is done again"):
            is_done(job)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "is nested too deep; wanted what a lane has left; remove the file"),
        ("[]", "is damaged, it holds a list; wanted what a lane has left; remove the file, and that job is done again"),
        ("{}", "is damaged, it lacks lane"),
        (json.dumps({"lane": "y" * 5_000, "seed": "2"}), "is damaged, seed is '2', wanted a whole number"),
    ],
)
def test_a_result_of_another_shape_is_one_short_line(tmp_path, content, message):
    job, _ = lane(tmp_path)
    job.out.write_text(content)
    with pytest.raises(SettingsError, match=rf"\A\S+pose-2\.json: {message}") as error:
        is_done(job)
    assert len(str(error.value)) < 600


def test_the_result_of_another_job_is_refused(tmp_path):
    job, left = lane(tmp_path, seed=3)
    left.write(job.out)
    with pytest.raises(
        SettingsError, match=r"pose-2\.json: is of the job pose, seed 3, wanted pose, seed 2; remove the"
    ):
        is_done(job)


def test_results_of_an_earlier_version_count_and_are_told(tmp_path, capsys):
    job, left = lane(tmp_path)
    files.write_json(job.out, {key: value for key, value in left.content().items() if key != "schema_version"})
    assert is_done(job)
    comparing._tell_unsealed([job])
    assert "1 results in" in capsys.readouterr().out
