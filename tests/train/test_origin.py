"""A model says what it was trained from, and another recipe or another base is told."""

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.methods import LinearMethod
from e2ray.config.model import LlamaModel, PretrainedModel
from e2ray.config.positions import PositionSettings
from e2ray.config.train import ObjectiveSettings, TrainSettings
from e2ray.core.model_folder import seal, trained_method
from e2ray.records.folders import ModelFolder
from e2ray.train.origin import base_identity, ended_early, origin, refuse_other_base, refuse_other_training
from e2ray.train.task import Task

SIZES = {"hidden_size": 32, "num_heads": 2, "num_key_value_heads": 2, "num_layers": 1, "intermediate_size": 48}


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return PretrainedModel(path=str(folder), base_context_length=24)


@pytest.fixture
def task(tmp_path, base):
    return Task(
        name="run",
        folder=tmp_path / "run",
        shards=tmp_path / "shards",
        tokenizer_hash="a" * 64,
        vocab_size=50,
        window=24,
        base_context_length=24,
        seed=5,
        model=base,
        positions=PositionSettings.model_validate({"preset": "pose", "max_scale": 4}),
        train=TrainSettings(steps=6, batch_sequences=4, lr=1e-2),
        rows_digest="0" * 64,
    )


def write_model(task):
    """Write what stands beside the weights of a model that the task has trained."""
    folder = task.folder / "model"
    folder.mkdir(parents=True)
    seal(folder, None, training=origin(json.loads(json.dumps(task.identity(*base_identity(task.model))))))


def test_a_model_of_the_very_training_passes(task):
    write_model(task)
    refuse_other_training(task)
    refuse_other_training(replace(task, show_progress=False, prefetch_bytes=1))
    refuse_other_base(task.folder / "model", task.model)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 6},
        {"rows_digest": "1" * 64},
        {"window": 12},
        {"train": TrainSettings(steps=7, batch_sequences=4, lr=1e-2)},
        {"positions": PositionSettings.model_validate({"preset": "pose", "max_scale": 2})},
        {"model": LlamaModel(**SIZES, base_context_length=24)},
    ],
)
def test_a_model_of_another_training_is_told(task, changes):
    write_model(task)
    with pytest.raises(SettingsError, match=r"run/model: is of another training: .*choose another name"):
        refuse_other_training(replace(task, **changes))


def test_text_that_has_changed_since_may_be_measured(task):
    write_model(task)
    refuse_other_training(replace(task, rows_digest="1" * 64), by_rows=False)
    with pytest.raises(SettingsError, match=r"another training: data.tokenizer: .*or remove the folder to train anew"):
        refuse_other_training(replace(task, rows_digest="1" * 64, tokenizer_hash="b" * 64), by_rows=False)
    with pytest.raises(SettingsError, match=r"another training: seed: 5 in the run, 6 asked for"):
        refuse_other_training(replace(task, seed=6), by_rows=False)


def test_weights_under_a_name_of_their_own_are_what_a_base_is_named_by(base, tmp_path):
    folder = tmp_path / "base"
    (folder / "model.safetensors").rename(folder / "own.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "own.safetensors"}))
    before = base_identity(base)
    weights = load_file(folder / "own.safetensors")
    weights["model.norm.weight"][3] += 1
    save_file(weights, folder / "own.safetensors", {"format": "pt"})
    assert base_identity(base)[0] != before[0] and base_identity(base)[1] == before[1]


def test_weights_that_are_not_there_yet_name_nothing(task, base, tmp_path):
    write_model(task)
    (tmp_path / "base" / "model.safetensors").unlink()
    assert base_identity(base)[0] is None
    refuse_other_base(task.folder / "model", base)


@pytest.mark.parametrize("index", ["{}", "[1]", '{"weight_map": 3}'])
def test_a_damaged_index_is_one_line(base, tmp_path, index):
    (tmp_path / "base" / "model.safetensors").unlink()
    (tmp_path / "base" / "model.safetensors.index.json").write_text(index)
    with pytest.raises(SettingsError, match=r"index\.json: is damaged, wanted weight_map"):
        base_identity(base)


def test_a_model_of_another_run_is_told(task, tmp_path):
    write_model(task)
    task.folder.rename(tmp_path / "alien")
    with pytest.raises(SettingsError, match=r"alien/model: is of another training"):
        refuse_other_training(replace(task, folder=tmp_path / "alien"))


def test_a_model_without_a_record_is_taken(task):
    (task.folder / "model").mkdir(parents=True)
    refuse_other_training(task)
    refuse_other_base(task.folder / "model", task.model)
    seal(task.folder / "model", None)
    refuse_other_training(task)


def test_another_base_is_told_by_its_weights_and_by_its_config(task, base, tmp_path):
    write_model(task)
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"attention_dropout": 0.5}))
    with pytest.raises(
        SettingsError, match=r"base: has other settings in config\.json than the base that .*run/model was trained"
    ):
        refuse_other_base(task.folder / "model", base)
    cosmetic = {"transformers_version": "6.0", "_name_or_path": "/elsewhere", "eos_token_id": 7, "some_note": "mine"}
    path.write_text(json.dumps(config | cosmetic, indent=9))
    refuse_other_base(task.folder / "model", base)
    (tmp_path / "base" / "consolidated.safetensors").write_bytes(b"unread")
    refuse_other_base(task.folder / "model", base)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.norm.weight"][3] += 1
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(SettingsError, match="base: has other weights than"):
        refuse_other_base(task.folder / "model", base)


def seal_as_before(folder, training):
    """Seal a model as a version did that knew no versions of files."""
    seal(folder, None)
    record = ModelFolder(folder).record
    content = json.loads(record.read_text())
    written = {key: value for key, value in content.items() if key not in ("schema_version", "digest")}
    files.write_sealed(record, written | {"training": training})


def without(told, *paths):
    """Return a record as an earlier version wrote it, which knew no such settings."""
    told = json.loads(json.dumps(told.plain()))
    for path in paths:
        *parents, last = path.split(".")
        place = told
        for part in parents:
            place = place[part]
        del place[last]
    return told


def test_a_record_that_holds_a_digest_of_the_settings_alone_says_nothing(task):
    folder = task.folder / "model"
    folder.mkdir(parents=True)
    seal_as_before(folder, {"settings": "ab" * 32, "base_weights": None, "base_config": None})
    refuse_other_training(task)
    refuse_other_base(folder, task.model)
    assert ended_early(task) is None and trained_method(folder) == LinearMethod()


def test_what_earlier_versions_left_unsaid_was_linear_and_the_next_token(task):
    told = origin(task.identity(*base_identity(task.model)))
    folder = task.folder / "model"
    folder.mkdir(parents=True)
    seal_as_before(folder, without(told, "settings.positions.method", "settings.train.objective"))
    refuse_other_training(task)
    assert trained_method(folder) == LinearMethod()
    yarn = PositionSettings.model_validate({"preset": "pose", "max_scale": 4, "method": {"kind": "yarn"}})
    with pytest.raises(SettingsError, match=r"is of another training: positions\.method\.\w+: .* in the run"):
        refuse_other_training(replace(task, positions=yarn))
    distilled = task.train.model_copy(update={"objective": ObjectiveSettings(distill=1)})
    with pytest.raises(SettingsError, match=r"train\.objective\.distill: 0\.0 in the run, 1\.0 asked for"):
        refuse_other_training(replace(task, train=distilled))


def test_a_model_tells_by_which_method_it_reads_a_scale(task):
    method = {"kind": "yarn", "fast": 20, "temperature": {"kind": "log", "coefficient": 0.2}}
    positions = PositionSettings.model_validate({"preset": "pose", "max_scale": 4, "method": method})
    write_model(replace(task, positions=positions))
    assert trained_method(task.folder / "model") == positions.method
