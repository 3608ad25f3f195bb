"""What of a run may be mended under its name: what is measured and exported, and nothing that changes weights."""

import hashlib
import json
from contextlib import nullcontext

import pytest
import yaml
from observed import without_ray
from observed_after import base_in_place

from e2ray.config.base import SettingsError
from e2ray.config.load import dump, validate
from e2ray.stages import export as exporting
from e2ray.stages import pipeline
from e2ray.stages import train as training
from e2ray.stages.check import check
from e2ray.stages.run import refuse_other_settings, resolve
from e2ray.train.record import read_status, write_status


@pytest.fixture
def recipe(small, texts):
    small["data"] |= {
        "corpus": [{"kind": "text", "paths": [f"{texts}/*.txt"]}],
        "tokenizer": {"kind": "byte_level_bpe", "vocab_size": 300, "training_bytes": 3000},
        "validation_share": 0.4,
    }
    small["evaluate"] = {"windows": [32], "scales": [1], "documents": 2, "document_tokens": 64, "stride": 16}
    return small | {"train": {"steps": 8, "batch_sequences": 4}, "export": {"context_lengths": [32]}}


@pytest.fixture
def trained(recipe, tmp_path, monkeypatch):
    """A function that writes the folder of a run that has trained and then ended in some state."""
    with without_ray(tmp_path):
        monkeypatch.setattr(pipeline, "cluster", lambda settings: nullcontext())
        monkeypatch.setattr(exporting, "remote", lambda name, function, *arguments, use_gpu: function(*arguments))
        monkeypatch.setattr("e2ray.train.launch.resources", lambda settings: None)
        monkeypatch.setattr(training, "_train", lambda *arguments: pytest.fail("it trained again"))

        def write(state):
            run = resolve(config_of(recipe))
            run.folder.mkdir(parents=True)
            base_in_place(run)
            (run.folder / "config.yaml").write_text(dump(run.config))
            write_status(run.folder, state=state, result="done", error=None if state == "succeeded" else "it failed")
            return run

        yield write


def config_of(recipe):
    return validate(recipe, source="test")


def weights(run):
    return hashlib.sha256((run.folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def test_a_run_that_failed_behind_its_training_goes_on_with_what_is_measured_mended(recipe, trained, capsys):
    run = trained("failed")
    before = weights(run)
    recipe["evaluate"] |= {"windows": [32, 64], "scales": [1, 2]}
    recipe["export"] = {"context_lengths": [64]}
    recipe["compare"] = {"lanes": ["e2llm"]}  # another command's own
    pipeline.execute(config_of(recipe))
    assert read_status(run.folder).state == "succeeded" and weights(run) == before
    rows = json.loads((run.folder / "evaluation.json").read_text())["rows"]
    assert {(row["window"], row["scale"]) for row in rows} == {(32, 1), (32, 2), (64, 1), (64, 2)}
    assert [path.name for path in (run.folder / "export" / "serving").iterdir()] == ["64"]
    resolved = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert (resolved["evaluate"]["windows"], resolved["export"]["context_lengths"]) == ([32, 64], [64])

    # Finished, the same command measures nothing again and says what does.
    capsys.readouterr()
    pipeline.execute(config_of(recipe))
    (finished,) = capsys.readouterr().out.splitlines()
    assert "is finished" in finished
    recipe["evaluate"]["windows"] = [64]
    kept = (run.folder / "evaluation.json").read_bytes(), (run.folder / "config.yaml").read_bytes()
    pipeline.execute(config_of(recipe))
    finished, told = capsys.readouterr().out.splitlines()
    assert "is finished" in finished
    assert told == (
        "evaluate.windows: [32, 64] in the run, [64] asked for; "
        "`e2ray evaluate` with this recipe: nothing is trained again"
    )
    assert kept == ((run.folder / "evaluation.json").read_bytes(), (run.folder / "config.yaml").read_bytes())


@pytest.mark.parametrize(
    ("changes", "commands"),
    [
        ({"evaluate": {"documents": 3}}, ["evaluate"]),
        ({"export": {"scale": "paper"}}, ["export"]),
        ({"evaluate": {"suites": {"tasks": ["piqa"]}}}, ["suites"]),
        ({"evaluate": {"retrieval": {"seed": 4}}, "export": {"context_lengths": [128]}}, ["evaluate", "export"]),
        ({"evaluate": None}, []),
        (
            {
                "search": {"trials": 4, "baselines": ["e2llm"], "early_stopping": None},
                "pretrain": {"steps": 1, "batch_sequences": 4},
            },
            None,
        ),
    ],
)
def test_a_finished_run_says_which_commands_do_what_the_recipe_now_says_otherwise(
    recipe, trained, capsys, changes, commands
):
    trained("succeeded")
    capsys.readouterr()
    for section, settings in changes.items():
        recipe[section] = settings and recipe.get(section, {}) | settings
    if commands is None:  # a pretraining makes another base
        with pytest.raises(SettingsError, match=r"pretrain: None in the run"):
            pipeline.execute(config_of(recipe))
        return
    pipeline.execute(config_of(recipe))
    _, *told = capsys.readouterr().out.splitlines()
    assert len(told) == bool(commands)
    assert [name for name in ("evaluate", "suites", "export") if told and f"`e2ray {name}`" in told[0]] == commands


@pytest.mark.parametrize("stage", ["evaluate", "suites", "export"])
def test_the_recipe_of_a_run_says_what_its_results_were_made_with(recipe, stage):
    """Not what else a later recipe asks for: `evaluate` asks no suites, and `suites` measures nothing."""
    before = config_of(recipe | {"evaluate": recipe["evaluate"] | {"suites": {"tasks": ["arc_easy"]}}})
    asked = recipe["evaluate"] | {"documents": 7, "suites": {"tasks": ["hellaswag"]}}
    now = config_of(recipe | {"evaluate": asked, "export": {"context_lengths": [64]}})
    after = before.model_copy(update=pipeline._measured_with(before, now, stage))
    assert after.evaluate.documents == (7 if stage == "evaluate" else 2)
    assert after.evaluate.suites.tasks == (("hellaswag",) if stage == "suites" else ("arc_easy",))
    assert after.export.context_lengths == ((64,) if stage == "export" else (32,))
    without = before.model_copy(update={"evaluate": None})
    assert stage != "evaluate" or pipeline._measured_with(without, now, stage)["evaluate"].suites is None


@pytest.mark.parametrize("begun", ["model", "checkpoints"])
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.lr", 0.5),
        ("seed", 3),
        ("data.validation_share", 0.1),
        ("data.validation_corpus", [{"kind": "text", "paths": ["/etc/hostname"]}]),
        ("data.seed", 9),
        ("data.min_tokens", 5),
        ("data.shuffle_shards", 2),
        ("positions", {"preset": "pose", "max_scale": 4}),
    ],
)
def test_what_changes_weights_is_fixed(recipe, tmp_path, begun, path, value):
    run = resolve(config_of(recipe))
    place = run.folder / begun / ("" if begun == "model" else "step-4")
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("{}")
    (run.folder / "config.yaml").write_text(dump(run.config))
    section, _, name = path.partition(".")
    changed = recipe | {section: recipe[section] | {name: value} if name else value}
    for command in (pipeline.execute, check):
        with pytest.raises(SettingsError, match=rf"was begun with other settings: {path.partition('.')[0]}"):
            command(config_of(changed))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("evaluate", None),
        ("export", None),
        ("evaluate", {"documents": 9}),
        ("train.checkpoint_every", 4),
        ("train.log_every", 5),
        ("train.progress_s", 1.0),
        ("data.ledger", True),
        ("cluster", {"max_failures": 0}),
        ("compare", {"lanes": ["e2llm"]}),
    ],
)
def test_what_changes_no_weights_may_be_mended(recipe, path, value):
    recipe["train"] |= {"checkpoint_every": 20, "log_every": 2}
    run = resolve(config_of(recipe))
    (run.folder / "model").mkdir(parents=True)
    (run.folder / "config.yaml").write_text(dump(run.config))
    section, _, name = path.partition(".")
    changed = recipe | {section: recipe.get(section, {}) | {name: value} if name else value}
    asked = resolve(config_of(changed).alone())
    if path == "train.log_every":
        asked = resolve(config_of(changed | {"train": changed["train"] | {"checkpoint_every": 20}}).alone())
    refuse_other_settings(asked, besides=("evaluate", "export"))
