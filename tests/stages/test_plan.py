"""What `e2ray plan` shows: for a GPU by name, for the one that is here, and for CPUs; and what it refuses."""

import pytest
import torch

from e2ray.config.base import SettingsError
from e2ray.config.gpus import GPUS, Gpu
from e2ray.config.load import validate
from e2ray.stages import checks
from e2ray.stages.plan import budget_of, gpu_for, plan, size, too_large
from e2ray.stages.run import resolve
from e2ray.testing.recipes import PRETRAIN, recipe
from e2ray.testing.shards import write_shards


def config_of(tmp_path, *, use_gpu="auto", workers=2, **changes):
    made = recipe(tmp_path, texts=str(tmp_path / "*.txt"), pretrain=PRETRAIN)
    made["train"] = {"steps": 10, "batch_sequences": 8, "micro_batch_sequences": 4, "zero_stage": 2}
    made["cluster"] = {"num_workers": workers, "use_gpu": use_gpu}
    for path, value in changes.items():
        section, _, name = path.partition("__")
        made[section][name] = value
    return validate(made, source="recipe")


@pytest.fixture
def card(monkeypatch):
    """A GPU of this machine: its name and its bytes."""

    def install(name, memory):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: type("Card", (), {"total_memory": memory}))

    return install


def test_parts_workers_and_assumptions_are_shown(tmp_path, capsys):
    plan(config_of(tmp_path), gpu="A100", table=None, mfu=None)
    shown = " ".join(capsys.readouterr().out.split())
    assert "small: 0.0 million numbers, 0.0 trained, bfloat16, ZeRO stage 2; 4 rows of 32 tokens in a forward" in shown
    for part in ("weights", "gradients", "optimizer", "buckets", "activations", "together", "in its process"):
        assert part in shown
    assert "at the worst moment of a step, on 2 workers" in shown
    assert "if 33% of its 312 TFLOPS are reached (--mfu), which is assumed; USD 1.3 for a GPU and hour" in shown
    assert shown.endswith("It fits.")


def test_workers_that_do_not_divide_the_batch_are_left_out(tmp_path, capsys):
    plan(config_of(tmp_path), gpu="L4", table=None, mfu=None)
    rows = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert rows[-4:] == ["1", "2", "4", "8"]


def test_cpus_share_the_memory_of_this_machine_and_have_no_hours(tmp_path, capsys):
    plan(config_of(tmp_path), gpu=None, table=None, mfu=None)
    shown = capsys.readouterr().out
    assert "float32" in shown and "Nobody knows beforehand how fast CPUs train" in shown
    assert budget_of(config_of(tmp_path, workers=2), None).room < budget_of(config_of(tmp_path, workers=1), None).room


def test_the_gpu_that_is_here_is_taken_with_its_own_memory(tmp_path, card):
    card("NVIDIA H100 80GB HBM3", 64 * 2**30)
    name, found = gpu_for(config_of(tmp_path), None, GPUS)
    assert (name, found) == ("NVIDIA H100 80GB HBM3", GPUS["H100"].model_copy(update={"memory_gib": 64.0}))
    assert gpu_for(config_of(tmp_path, use_gpu=False), None, GPUS) == ("CPU", None)
    card("NVIDIA V1", 2**30)
    with pytest.raises(SettingsError, match="--gpu-table: NVIDIA V1 is not known; name its tflops"):
        gpu_for(config_of(tmp_path), None, GPUS)


def test_what_does_not_fit_is_one_line_with_the_nearest_settings(tmp_path):
    budget = budget_of(config_of(tmp_path), Gpu(tflops=1.0, memory_gib=1.5005))
    need = budget.need(2)
    line = too_large(budget, need)
    assert line.startswith(
        f"train: needs {size(need.memory.on_device)} on each worker, which has {size(budget.room)}; set "
    )
    assert "train.micro_batch_sequences: 1" in line
    budget.room = 10
    assert too_large(budget, need).endswith("no setting fits; take larger GPUs, a shorter data.window or model.lora")


def test_a_check_refuses_what_the_gpu_here_cannot_hold(tmp_path, card):
    (tmp_path / "one.txt").write_text("Some words for a tokenizer. " * 200)
    run = resolve(config_of(tmp_path))
    checks.refuse_too_large(run)  # without a GPU nothing is known
    card("NVIDIA A100-SXM4-80GB", int(1.5001 * 2**30))
    with pytest.raises(SettingsError, match=r"^train: needs .* on each worker, which has .*; (set|no setting fits)"):
        checks.refuse_too_large(run)
    card("NVIDIA A100-SXM4-80GB", 80 * 2**30)
    checks.refuse_too_large(run)


def test_the_vocabulary_is_that_of_shards_where_there_are_any(tmp_path):
    documents = [torch.arange(400, dtype=torch.int32).remainder(64).numpy()] * 3
    write_shards(tmp_path / "shards", documents, window=32, vocab_size=64)
    made = config_of(tmp_path, data__shards=str(tmp_path / "shards"))
    assert budget_of(made, GPUS["L4"]).vocab_size == 64


@pytest.mark.parametrize(
    ("held", "told"), [(0, "0.00 MB"), (1_500_000, "1.50 MB"), (999_999_999, "1,000 MB"), (16_060_522_496, "16.1 GB")]
)
def test_bytes_for_people(held, told):
    assert size(held) == told
