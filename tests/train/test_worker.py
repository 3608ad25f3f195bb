"""A whole training without Ray: draws, engine, checkpoints, and the Hugging Face folder made from one."""

import errno
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.model import LlamaModel, LoraSettings, PretrainedModel
from e2ray.config.positions import PositionSettings
from e2ray.core.model import build_model
from e2ray.core.positions import draw
from e2ray.data.order import local_indices
from e2ray.data.shards import Rows
from e2ray.data.tokenizer import load_tokenizer
from e2ray.testing.tasks import CPU, SIZES, VOCABULARY, WINDOW, rows, run, small_task
from e2ray.train import checkpoint, steps, worker
from e2ray.train.assemble import write_model
from e2ray.train.ledger import read_ledger, replayed
from e2ray.train.loop import Diverged
from e2ray.train.record import note_skipped, read_metrics

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def task(tmp_path):
    return small_task(tmp_path, preset="pose", steps=6, checkpoint_every=3)


def write(task, folder, *, dtype=torch.float32):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<eos>": 0}, unk_token="<eos>")), eos_token="<eos>"
    )
    tokenizer.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    tokenizer.save_pretrained(task.shards / "tokenizer")
    write_model(
        task.model,
        steps.latest(task.folder / "checkpoints"),
        folder,
        dtype=dtype,
        vocab_size=task.vocab_size,
        seed=task.seed,
        tokenizer=task.shards / "tokenizer",
    )
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(20)[None]).logits


def base_folder(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=WINDOW,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_training_runs_without_ray_and_the_model_folder_holds_its_last_weights(task, tmp_path):
    assert run(task) == 6
    lines = read_metrics(task.folder)
    assert [line.step for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {line.scale_mean for line in lines} == {4.0}
    model = write(task, tmp_path / "model")
    state = checkpoint.read_state(task.folder / "checkpoints" / "step-6")
    saved = {
        entry.name: entry.weight for entry in checkpoint.read_parameters(task.folder / "checkpoints/step-6", state)
    }
    parameters = dict(model.named_parameters())
    assert parameters.keys() == saved.keys()
    assert all(torch.equal(parameters[name], saved[name]) for name in saved)
    assert model.config.rope_parameters["rope_type"] == "default"  # weights are free of the scale
    assert load_tokenizer(tmp_path / "model").chat_template == {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}


def test_gradient_checkpointing_changes_memory_and_not_losses(task, tmp_path):
    run(task)
    frugal = task.model.model_copy(update={"checkpoint_share": 0.5})
    other = replace(task, folder=tmp_path / "frugal", model=frugal)
    run(other)
    plain, recomputed = read_metrics(task.folder), read_metrics(other.folder)
    assert [line.loss for line in plain] == pytest.approx([line.loss for line in recomputed], rel=1e-6)


def test_adapters_train_alone_and_are_merged_into_the_model_folder(task, tmp_path):
    base = base_folder(tmp_path)
    lora = LoraSettings(rank=4, alpha=16.0, targets=("q_proj", "v_proj"))
    adapted = replace(task, model=PretrainedModel(path=str(base), base_context_length=WINDOW, lora=lora))
    run(adapted)
    state = checkpoint.read_state(steps.latest(task.folder / "checkpoints"))
    assert all("lora_" in name for name in state.parameters)
    model = write(adapted, tmp_path / "model")
    before, after = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters()), dict(model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{n}.self_attn.{p}_proj.weight" for n in (0, 1) for p in "qv"}
    # The merged weights are W + alpha / rank * B A, computed here by hand from the checkpoint.
    found = {
        entry.name.replace("base_model.model.", "").replace(".default", ""): entry.weight
        for entry in checkpoint.read_parameters(steps.latest(task.folder / "checkpoints"), state)
    }
    for name in changed:
        stem = name.removesuffix(".weight")
        delta = found[f"{stem}.lora_B.weight"] @ found[f"{stem}.lora_A.weight"] * (16 / 4)
        torch.testing.assert_close(after[name], before[name] + delta, rtol=0, atol=1e-6)


def test_a_tokenizer_larger_than_the_model_is_refused(task, tmp_path):
    small = PretrainedModel(path=str(base_folder(tmp_path)), base_context_length=WINDOW)
    with pytest.raises(SettingsError, match="has 50 token embeddings, the tokenizer 51 tokens"):
        run(replace(task, model=small, vocab_size=51))


def test_everything_random_is_seeded_by_step_and_rank(task):
    def torch_draws(rank, start):
        found = []
        for _ in worker.drawn(rows(start, 4, batch=2), task, rank=rank, num_workers=2, start_step=start):
            found.append(torch.rand(1).item())
        return found

    assert torch_draws(0, 0)[2:] == torch_draws(0, 2)
    assert len(set(torch_draws(0, 0) + torch_draws(1, 0))) == 8


def test_ranks_draw_what_one_rank_draws_for_their_rows(task):
    whole = next(worker.drawn(rows(3, 4, batch=4), task, rank=0, num_workers=1, start_step=3)).draw
    for rank in (0, 1):
        mine = local_indices(rank, 2, 4)
        part = next(worker.drawn(rows(3, 4, batch=2), task, rank=rank, num_workers=2, start_step=3)).draw
        assert torch.equal(part.offsets, whole.offsets[mine.start : mine.stop])
        assert torch.equal(part.scale, whole.scale[mine.start : mine.stop])


def test_the_ledger_tells_the_rows_and_draws_that_were_trained_on(task):
    noted = replace(task, ledger=True, train=task.train.model_copy(update={"checkpoint_every": 2}))
    run(noted, until=4)
    found = read_ledger(task.folder).to_pylist()
    assert [(row["step"], row["index"], row["row"]) for row in found] == [(s, i, i) for s in range(4) for i in range(4)]
    for row in found:
        key = {"seed": task.seed, "step": row["step"], "indices": [row["index"]]}
        wanted = draw(task.positions, **key, window=WINDOW, base_context_length=WINDOW)
        assert row["scale"] == float(wanted.scale[0])
        assert torch.equal(replayed(row, WINDOW), wanted.offsets[0])
    run(noted)
    assert len(read_ledger(task.folder)) == 6 * 4


def stopped_at_4(task, **train):
    """Return the task after four of its six updates, with checkpoints at steps 2 and 4."""
    task = replace(task, train=task.train.model_copy(update={"checkpoint_every": 2, "zero_stage": 2} | train))
    run(task, until=4)
    return task


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 6}, "seed: 5 in the run, 6 asked for"),
        ({"rows_digest": "1" * 64}, "data.rows"),
        ({"model": LlamaModel(**SIZES | {"num_heads": 4}, base_context_length=WINDOW)}, "model.num_heads: 2"),
        ({"positions": PositionSettings.model_validate({"preset": "e2llm", "max_scale": 4})}, "positions."),
        ({"base_context_length": 12}, "base_context_length: 24"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_by_name(task, change, told):
    task = stopped_at_4(task)
    with pytest.raises(SettingsError, match=f"step-4: is of another training: {told}"):
        run(replace(task, **change))


@pytest.mark.parametrize(("name", "value"), [("lr", 2e-2), ("weight_decay", 0.5), ("steps", 8), ("schedule", "linear")])
def test_a_checkpoint_of_other_settings_is_refused_by_name(task, name, value):
    task = stopped_at_4(task)
    with pytest.raises(SettingsError, match=rf"step-4: is of another training: train\.{name}: .*, '?{value}"):
        run(replace(task, train=task.train.model_copy(update={name: value})))


def test_where_and_how_fast_may_change(task):
    task = stopped_at_4(task)
    free = {"zero_stage": 1, "micro_batch_sequences": 4, "keep_checkpoints": 1, "progress_s": 9.0}
    assert run(replace(task, train=task.train.model_copy(update=free))) == 6


def test_a_checkpoint_under_the_name_of_another_step_is_refused(task):
    task = stopped_at_4(task)
    folder = task.folder / "checkpoints"
    (folder / "step-4").rename(folder / "step-5")
    (folder / "step-2").rename(folder / "step-1")
    (folder / "latest").write_text("step-5\n")
    with pytest.raises(SettingsError, match="step-5: holds the state after 4 updates; no older one is whole either"):
        run(task)


PART = "part-00000-000.safetensors"


@pytest.mark.parametrize(
    "change", [flip, Path.unlink, lambda path: path.write_bytes(b"")], ids=["bit", "lost", "empty"]
)
@pytest.mark.parametrize("damaged", [PART, "state.json", "manifest.json", "probe.safetensors"])
def test_behind_a_damaged_checkpoint_the_training_goes_on_from_the_one_before(task, damaged, change, capsys):
    task = stopped_at_4(task)
    change(task.folder / "checkpoints" / "step-4" / damaged)
    assert run(task) == 6
    assert f"step-4/{damaged}" in (said := capsys.readouterr().out) and "looking for an older checkpoint" in said
    broken = [line.loss for line in read_metrics(task.folder)]
    other = replace(task, folder=task.folder.with_name("unbroken"))
    run(other)
    assert [line.loss for line in read_metrics(other.folder)] == broken  # in every bit


@pytest.mark.parametrize(
    "text", ['{"files": {"a": NaN}, "digest": 1}', '{"files": {"\\ud800": 1}, "digest": 1}', "[" * 9999]
)
def test_a_manifest_that_nobody_writes_is_damage(task, text, capsys):
    task = stopped_at_4(task)
    (task.folder / "checkpoints" / "step-4" / "manifest.json").write_text(text)
    assert run(task) == 6
    assert "step-4/manifest.json" in capsys.readouterr().out


def test_a_checkpoint_that_the_disk_does_not_give_back_is_damage(task, monkeypatch, capsys):
    task = stopped_at_4(task)
    read = files.sha256

    def sha256(path):
        if "/step-4/" in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(files, "sha256", sha256)
    assert run(task) == 6
    assert "step-4: cannot be read: Input/output error; looking for an older" in capsys.readouterr().out


def test_a_checkpoint_of_another_version_is_no_damage(task):
    task = stopped_at_4(task)
    for step in (2, 4):
        folder = task.folder / "checkpoints" / f"step-{step}"
        state = json.loads((folder / "state.json").read_text()) | {"format": 1}
        (folder / "state.json").write_text(json.dumps(state))
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["state.json"] = files.fingerprint(folder / "state.json").model_dump()
        manifest.pop("digest")
        files.write_sealed(folder / "manifest.json", manifest)
    with pytest.raises(SettingsError, match=r"step-4/state\.json: has format 1, .*finish the run with the ver") as told:
        run(task)
    assert "remove" not in str(told.value)


def test_a_checkpoint_of_a_newer_version_is_no_damage_and_stays(task):
    task = stopped_at_4(task)
    path = task.folder / "checkpoints" / "step-4" / "manifest.json"
    manifest = {key: value for key, value in json.loads(path.read_text()).items() if key != "digest"}
    files.write_sealed(path, manifest | {"schema_version": 7})
    newer = path.read_bytes()
    with pytest.raises(
        SettingsError, match=r"step-4/manifest\.json: was written by a newer e2ray, in schema version 7"
    ):
        run(task)
    assert path.read_bytes() == newer and len(read_metrics(task.folder)) == 4


def test_where_all_checkpoints_are_damaged_nothing_is_begun_anew(task):
    task = stopped_at_4(task)
    for step in (2, 4):
        (task.folder / "checkpoints" / f"step-{step}" / "part-00000-000.safetensors").unlink()
    with pytest.raises(SettingsError, match=r"step-4/part.*missing.*no older one is whole either: remove"):
        run(task)
    assert len(read_metrics(task.folder)) == 4


def test_a_lost_pointer_stops_the_training_and_keeps_its_lines(task):
    task = stopped_at_4(task)
    (task.folder / "checkpoints" / "latest").unlink()
    with pytest.raises(SettingsError, match="latest: is lost"):
        run(task)
    assert len(read_metrics(task.folder)) == 4


def test_a_folder_of_another_name_among_the_checkpoints_is_left_alone(task):
    (task.folder / "checkpoints" / "step-of-mine").mkdir(parents=True)
    task = stopped_at_4(task, keep_checkpoints=1)
    assert sorted(path.name for path in (task.folder / "checkpoints").iterdir()) == ["latest", "step-4", "step-of-mine"]


def test_adapters_on_another_base_are_refused(task, tmp_path):
    base = base_folder(tmp_path)
    lora = LoraSettings(rank=2, targets=("q_proj",))
    task = stopped_at_4(replace(task, model=PretrainedModel(path=str(base), base_context_length=WINDOW, lora=lora)))
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 4] += 1e-3
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(SettingsError, match=r"is of another training: model\.base_weights"):
        run(task)
    with pytest.raises(SettingsError, match="answers otherwise than the model that was trained"):
        write(task, tmp_path / "model")


def test_the_base_may_lie_somewhere_else(task, tmp_path):
    base = base_folder(tmp_path)
    task = stopped_at_4(replace(task, model=PretrainedModel(path=str(base), base_context_length=WINDOW)))
    base.rename(tmp_path / "moved")
    moved = PretrainedModel(path=str(tmp_path / "moved"), base_context_length=WINDOW)
    assert run(replace(task, model=moved)) == 6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_written_from_other_weights_is_refused(task, tmp_path, precision):
    task = replace(task, train=task.train.model_copy(update={"precision": precision, "lr": 5e-2}))
    run(task)
    folder = task.folder / "checkpoints" / "step-6"
    write(task, tmp_path / "model")
    other = replace(task, folder=tmp_path / "other", seed=6)
    run(other)
    shutil.copy(other.folder / "checkpoints" / "step-6" / "probe.safetensors", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["probe.safetensors"] = files.fingerprint(folder / "probe.safetensors").model_dump()
    manifest.pop("digest")
    files.write_sealed(folder / "manifest.json", manifest)
    with pytest.raises(SettingsError, match="answers otherwise than the model that was trained"):
        write(task, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_written_model_is_read_only_as_it_was_written(task, tmp_path):
    run(task)
    write(task, tmp_path / "model")
    settings = PretrainedModel(path=str(tmp_path / "model"), base_context_length=WINDOW)
    build_model(settings, dtype=torch.float32)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "e2ray/probe.safetensors"):
        path = tmp_path / "model" / name
        content = path.read_bytes()
        flip(path)
        with pytest.raises(SettingsError, match=f"{name}: is damaged"):
            build_model(settings, dtype=torch.float32)
        path.write_bytes(content)


def test_a_checkpoint_of_a_run_of_another_name_is_refused(task):
    task = stopped_at_4(task)
    other = replace(task, folder=task.folder.with_name("other"))
    shutil.copytree(task.folder / "checkpoints", other.folder / "checkpoints")
    with pytest.raises(SettingsError, match="of another training: name: 'run' in the run, 'other' asked for"):
        run(other)


POISON = VOCABULARY - 1  # a token whose embedding is so large that rows which hold it have no gradient


@pytest.fixture
def poisoned(task, tmp_path):
    """A task on a base that cannot stand one token."""
    folder = base_folder(tmp_path)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = 3e38
    model.save_pretrained(folder)
    train = task.train.model_copy(update={"steps": 8, "checkpoint_every": 4, "schedule": "constant"})
    return replace(task, model=PretrainedModel(path=str(folder), base_context_length=WINDOW), train=train, ledger=True)


def with_poison_at(*steps):
    def read(start, stop, *, batch):
        for step, found in enumerate(rows(start, stop, batch=batch), start):
            found.tokens[found.tokens == POISON] = 0
            if step in steps:
                found.tokens[1, 7] = POISON
            yield Rows(found.ids + 10 * step, found.tokens, None)

    return read


def weights_of(folder):
    found = steps.latest(folder / "checkpoints")
    return {path.name: path.read_bytes() for path in found.glob("part-*")}


def test_steps_whose_rows_have_no_gradient_are_skipped_told_and_counted(poisoned):
    assert run(poisoned, with_poison_at(2, 3, 6)) == 8
    lines = read_metrics(poisoned.folder)
    assert [line.step for line in lines if line.skipped_steps] == [3, 4, 7]
    assert [line.grad_norm is None for line in lines] == [bool(line.skipped_steps) for line in lines]
    noted = [json.loads(line) for line in (poisoned.folder / "skipped.jsonl").read_text().splitlines()]
    assert [(one["step"], [row["row"] for row in one["rows"]]) for one in noted] == [
        (step, [10 * (step - 1) + place for place in range(4)]) for step in (3, 4, 7)
    ]
    for one in noted:
        key = {"seed": poisoned.seed, "step": one["step"] - 1, "indices": range(4)}
        wanted = draw(poisoned.positions, **key, window=WINDOW, base_context_length=WINDOW)
        assert [row["scale"] for row in one["rows"]] == wanted.scale.tolist()
        assert all(
            torch.equal(replayed(row, WINDOW), offsets)
            for row, offsets in zip(one["rows"], wanted.offsets, strict=True)
        )
    assert len(read_ledger(poisoned.folder)) == 8 * 4  # every step
    state = checkpoint.read_state(poisoned.folder / "checkpoints" / "step-8")
    assert (state.skipped_steps, state.skipped_in_a_row) == (3, 0)
    for path in poisoned.folder.rglob("*.json*"):
        assert not re.search(r"\b(NaN|-?Infinity)\b", path.read_text()), path


@pytest.mark.parametrize("bad", [(2, 3, 6), (3, 4), (0, 1)])
def test_a_restart_between_skipped_steps_changes_no_bit(poisoned, tmp_path, bad):
    run(poisoned, with_poison_at(*bad))
    stopped = replace(poisoned, folder=tmp_path / "stopped")
    run(stopped, with_poison_at(*bad), until=4)
    note_skipped(stopped.folder, 5, [])  # behind the checkpoint
    (stopped.folder / "skipped.jsonl").open("a").write('{"step"')  # torn by a kill
    run(stopped, with_poison_at(*bad))
    assert weights_of(stopped.folder) == weights_of(poisoned.folder)
    assert (stopped.folder / "skipped.jsonl").read_text() == (poisoned.folder / "skipped.jsonl").read_text()
    mine, its = ([(line.loss, line.skipped_steps) for line in read_metrics(one.folder)] for one in (stopped, poisoned))
    assert mine == its


@pytest.mark.parametrize(("bad", "most"), [((4, 5, 6), 3), ((3, 4), 2), ((1,), 1)])
def test_too_many_skipped_steps_in_a_row_end_a_run_and_its_restart(poisoned, bad, most):
    task = replace(poisoned, train=poisoned.train.model_copy(update={"max_skipped_steps": most}))
    told = rf"^steps? {bad[0] + 1}.* {most} in a row end the run \(max_skipped_steps\).*skipped\.jsonl"
    for _ in range(2):  # the count in a row outlives a restart
        with pytest.raises(Diverged, match=told):
            run(task, with_poison_at(*bad))
        noted = [json.loads(line)["step"] for line in (task.folder / "skipped.jsonl").read_text().splitlines()]
        assert noted == [step + 1 for step in bad]
    more = replace(task, train=task.train.model_copy(update={"max_skipped_steps": most + 1}))
    assert run(more, with_poison_at(*bad)) == 8


@pytest.mark.parametrize("decay", [1e39, 1e60])
def test_a_state_that_the_last_update_made_infinite_is_not_saved(task, decay, monkeypatch):
    monkeypatch.setattr(worker.Task, "identity", lambda *_: {})  # else the wild settings would be another training
    run(replace(task, train=task.train.model_copy(update={"steps": 3})))
    good = weights_of(task.folder)
    changes = {"steps": 4, "weight_decay": decay, "lr": 1.0, "schedule": "constant"}
    wild = replace(task, train=task.train.model_copy(update=changes))
    with pytest.raises(Diverged, match=r"^step 4: the weight of model\..* is not finite .*step-3 is the last good"):
        run(wild)
    assert steps.latest(task.folder / "checkpoints").name == "step-3" and weights_of(task.folder) == good
    assert sorted(path.name for path in (task.folder / "checkpoints").iterdir()) == ["latest", "step-3"]
    assert run(task) == 6  # it goes on from there


def test_a_first_checkpoint_that_is_not_finite_leaves_none(task):
    wild = replace(task, train=task.train.model_copy(update={"steps": 1, "weight_decay": 1e39, "lr": 1.0}))
    with pytest.raises(Diverged, match=r"^step 1: the weight of [^;]*so the state is not saved; lower train\.lr"):
        run(wild)
    assert steps.step_folders(task.folder / "checkpoints") == []


@pytest.mark.parametrize("kind", checkpoint.KINDS)
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_weight_or_moment_that_is_not_finite_is_not_saved(task, kind, value):
    engine, folder = worker.begin(task, device=CPU), task.folder / "checkpoints"
    states = list(engine.fresh_states())
    states = [replace(state, exp_avg=state.exp_avg.clone(), exp_avg_sq=state.exp_avg_sq.clone()) for state in states]
    engine.load(iter(states), optimizer_step=0)
    checkpoint.save(engine, folder, step=1, facts={}, keep=1)
    getattr(states[5], kind).view(-1)[3] = value
    engine.load(iter(states), optimizer_step=0)
    with pytest.raises(Diverged, match=rf"^step 2: the {kind} of {states[5].name} is not finite .*step-1 is the last"):
        checkpoint.save(engine, folder, step=2, facts={}, keep=1)
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-1"]
    assert steps.latest(folder).name == "step-1"


@pytest.mark.parametrize(("dtype", "value"), [(torch.float32, 3e38), (torch.bfloat16, 3.4e38)], ids=["merge", "cast"])
def test_a_model_that_overflows_when_merged_or_cast_is_not_written(task, tmp_path, dtype, value):
    adapted = task
    if dtype == torch.float32:  # finite adapters with a product that is not
        lora = LoraSettings(rank=2, targets=("q_proj",))
        base = PretrainedModel(path=str(base_folder(tmp_path)), base_context_length=WINDOW, lora=lora)
        adapted = replace(task, model=base)
    run(replace(adapted, train=task.train.model_copy(update={"steps": 1})))
    found = steps.latest(task.folder / "checkpoints")
    (part,) = found.glob("part-*")
    tensors = load_file(part)
    for name, tensor in tensors.items():
        if name.startswith("weight/"):
            tensor.view(-1)[:] = value if dtype == torch.float32 else tensor.view(-1)
            tensor.view(-1)[0] = value
    save_file(tensors, part)
    manifest = json.loads((found / "manifest.json").read_text())
    manifest["files"][part.name] = {"bytes": part.stat().st_size, "sha256": files.sha256(part)}
    files.write_json(found / "manifest.json", {"files": manifest["files"], "digest": files.digest(manifest["files"])})
    with pytest.raises(Diverged, match=r"step-1: model\..* is not finite as merged (float32|bfloat16), so no model"):
        write(adapted, tmp_path / "model", dtype=dtype)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("num_bytes", "file"), [(8192, "checkpoints/"), (1500, "run/"), (20, "run/environment")])
def test_a_training_that_finds_no_room_ends_in_one_line(task, limited, num_bytes, file):
    wanted = rf"\A\S+{file}\S*: a file may not grow that large here; raise the limit .* choose another storage\Z"
    with limited(num_bytes), pytest.raises(SettingsError, match=wanted):
        run(task)
    assert steps.latest(task.folder / "checkpoints") is None
    assert run(task) == 6  # with room again
    assert [line.step for line in read_metrics(task.folder)] == [1, 2, 3, 4, 5, 6]
