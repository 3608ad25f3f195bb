"""A whole training without Ray: draws, engine, checkpoints, and the Hugging Face folder made from one."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from e2ray.config.base import SettingsError
from e2ray.config.model import LlamaModel, LoraSettings, PretrainedModel
from e2ray.config.positions import PositionSettings
from e2ray.config.train import TrainSettings
from e2ray.core.positions import draw
from e2ray.data.order import local_indices
from e2ray.data.shards import Rows
from e2ray.train import checkpoint, worker
from e2ray.train.assemble import write_model
from e2ray.train.ledger import read_ledger, replayed
from e2ray.train.record import read_metrics

WINDOW, VOCABULARY = 24, 50
SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_key_value_heads": 2, "intermediate_size": 48}
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def task(tmp_path):
    return worker.Task(
        name="run",
        folder=tmp_path / "run",
        shards=tmp_path / "shards",
        tokenizer_hash="a" * 64,
        vocab_size=VOCABULARY,
        window=WINDOW,
        base_context_length=WINDOW,
        seed=5,
        model=LlamaModel(**SIZES, base_context_length=WINDOW),
        positions=PositionSettings.model_validate({"preset": "pose", "max_scale": 4}),
        train=TrainSettings(
            steps=6, batch_sequences=4, micro_batch_sequences=2, lr=1e-2, log_every=1, checkpoint_every=3, zero_stage=1
        ),
        digest="0" * 64,
        show_progress=False,
    )


def rows(start, stop, *, batch):
    for step in range(start, stop):
        tokens = np.random.default_rng(step).integers(0, VOCABULARY, (batch, WINDOW), dtype=np.int32)
        yield Rows(np.arange(batch), tokens, None)


def run(task):
    task.folder.mkdir(exist_ok=True)
    opened = partial(rows, batch=task.train.batch_sequences)
    return worker.run(task, device=CPU, open_rows=lambda start, stop: opened(start, stop))


def write(task, folder):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<eos>": 0}, unk_token="<eos>")), eos_token="<eos>"
    )
    tokenizer.save_pretrained(task.shards / "tokenizer")
    write_model(
        task.model,
        checkpoint.latest(task.folder / "checkpoints"),
        folder,
        dtype=torch.float32,
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
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {line["scale_mean"] for line in lines} == {4.0}
    model = write(task, tmp_path / "model")
    state = checkpoint.read_state(task.folder / "checkpoints" / "step-6")
    saved = {
        entry.name: entry.weight for entry in checkpoint.read_parameters(task.folder / "checkpoints/step-6", state)
    }
    parameters = dict(model.named_parameters())
    assert parameters.keys() == saved.keys()
    assert all(torch.equal(parameters[name], saved[name]) for name in saved)
    assert model.config.rope_parameters["rope_type"] == "default"  # weights are free of the scale


def test_gradient_checkpointing_changes_memory_and_not_losses(task, tmp_path):
    run(task)
    frugal = task.model.model_copy(update={"gradient_checkpointing": True})
    other = replace(task, folder=tmp_path / "frugal", model=frugal)
    run(other)
    plain, recomputed = read_metrics(task.folder), read_metrics(other.folder)
    assert [line["loss"] for line in plain] == pytest.approx([line["loss"] for line in recomputed], rel=1e-6)


def test_adapters_train_alone_and_are_merged_into_the_model_folder(task, tmp_path):
    base = base_folder(tmp_path)
    lora = LoraSettings(rank=4, alpha=16.0, targets=("q_proj", "v_proj"))
    adapted = replace(task, model=PretrainedModel(path=str(base), base_context_length=WINDOW, lora=lora))
    run(adapted)
    state = checkpoint.read_state(checkpoint.latest(task.folder / "checkpoints"))
    assert all("lora_" in name for name in state["parameters"])
    model = write(adapted, tmp_path / "model")
    before, after = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters()), dict(model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{n}.self_attn.{p}_proj.weight" for n in (0, 1) for p in "qv"}
    # The merged weights are W + alpha / rank * B A, computed here by hand from the checkpoint.
    found = {
        entry.name.replace("base_model.model.", "").replace(".default", ""): entry.weight
        for entry in checkpoint.read_parameters(checkpoint.latest(task.folder / "checkpoints"), state)
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
    noted = replace(task, ledger=True, train=task.train.model_copy(update={"steps": 4, "checkpoint_every": 2}))
    run(noted)
    found = read_ledger(task.folder).to_pylist()
    assert [(row["step"], row["index"], row["row"]) for row in found] == [(s, i, i) for s in range(4) for i in range(4)]
    for row in found:
        key = {"seed": task.seed, "step": row["step"], "indices": [row["index"]]}
        wanted = draw(task.positions, **key, window=WINDOW, base_context_length=WINDOW)
        assert row["scale"] == float(wanted.scale[0])
        assert torch.equal(replayed(row, WINDOW), wanted.offsets[0])
    run(replace(noted, train=task.train))
    assert len(read_ledger(task.folder)) == 6 * 4


@pytest.mark.parametrize(("num_bytes", "file"), [(8192, "checkpoints/"), (1500, "run/"), (20, "tensorboard/")])
def test_a_training_that_finds_no_room_ends_in_one_line(task, limited, num_bytes, file):
    wanted = rf"\A\S+{file}\S*: a file may not grow that large here; raise the limit .* choose another storage\Z"
    with limited(num_bytes), pytest.raises(SettingsError, match=wanted):
        run(task)
    assert checkpoint.latest(task.folder / "checkpoints") is None
    assert run(task) == 6  # with room again
    assert [line["step"] for line in read_metrics(task.folder)] == [1, 2, 3, 4, 5, 6]
