"""What a recipe needs on how many workers, and the nearest settings with which it fits."""

import pytest

from e2ray.config.gpus import GPUS, Gpu
from e2ray.config.load import validate
from e2ray.testing.recipes import recipe
from e2ray.train.budget import COMPILED, EAGER, Budget

GPU = Gpu(tflops=100.0, memory_gib=40.0, usd_per_hour=2.0)


def budget(tmp_path, *, room=None, gpu=GPU, workers=4, mfu=None, model=None, train=None, data=None):
    made = recipe(tmp_path)
    made["model"] |= model or {}
    made["data"] |= data or {}
    made["train"] = {"steps": 100, "batch_sequences": 32, "micro_batch_sequences": 8, "zero_stage": 1} | (train or {})
    made["cluster"] = {"num_workers": workers, "use_gpu": True}
    config = validate(made, source="recipe")
    return Budget(config, vocab_size=320, gpu=gpu, room=room, mfu=mfu)


def test_sizes_are_those_of_the_model_with_its_adapters(tmp_path):
    whole = budget(tmp_path).sizes
    adapted = budget(tmp_path, model={"lora": {"rank": 2}}).sizes
    assert whole.total == whole.trained == 320 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert whole.largest == 320 * 32
    assert adapted.trained == 2 * 4 * 2 * (32 + 32) and adapted.total == whole.total + adapted.trained


def test_hours_follow_from_arithmetic_workers_recomputation_and_the_share_that_is_reached(tmp_path):
    made = budget(tmp_path)
    one, four = made.need(1), made.need(4)
    flops = made.work.flops(32) * 100 * 32 * 32
    assert one.hours == pytest.approx(flops / (100e12 * EAGER) / 3600)
    assert four.hours == pytest.approx(one.hours / 4) and four.usd == pytest.approx(one.usd) == pytest.approx(
        2 * one.hours
    )
    assert budget(tmp_path, mfu=EAGER / 2).need(1).hours == pytest.approx(2 * one.hours)
    assert budget(tmp_path, model={"checkpoint_share": 1.0}).need(1).hours == pytest.approx(4 / 3 * one.hours)
    assert budget(tmp_path, train={"compile": True}).need(1).hours == pytest.approx(EAGER / COMPILED * one.hours)


def test_on_cpus_nobody_knows_hours_and_without_a_price_none_is_told(tmp_path):
    need = budget(tmp_path, gpu=None, room=10**9).need(4)
    assert need.hours is None and need.usd is None and need.memory.host == {}
    assert budget(tmp_path, gpu=GPUS["L4"]).need(4).usd is None


def needs(made, **changes):
    train, model = made._changed(changes)
    return made.need(4, train=train, model=model).memory.on_device


def test_the_nearest_settings_are_the_first_of_the_ladder_that_fit(tmp_path):
    made = budget(tmp_path, data={"window": 128})
    ladder = [
        {"train.micro_batch_sequences": 4},
        {"train.micro_batch_sequences": 1},
        {"train.micro_batch_sequences": 1, "train.fused_loss": True},
        {"train.micro_batch_sequences": 1, "train.fused_loss": True, "model.checkpoint_share": 1.0},
        {
            "train.micro_batch_sequences": 1,
            "train.fused_loss": True,
            "model.checkpoint_share": 1.0,
            "train.zero_stage": 2,
        },
    ]
    sizes = [needs(made, **settings) for settings in ladder]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 5
    for settings, size in zip(ladder, sizes, strict=True):
        change = budget(tmp_path, data={"window": 128}, room=size).nearest()
        assert change.settings == settings and change.need.memory.on_device == size and change.need.fits


def test_more_workers_come_last_and_what_never_fits_is_none(tmp_path):
    made = budget(tmp_path, workers=1, train={"micro_batch_sequences": 1, "zero_stage": 2}, room=1)
    assert made.nearest() is None
    offloaded = {"train.offload": "optimizer", "train.fused_loss": True, "model.checkpoint_share": 1.0}
    train, model = made._changed(offloaded)
    room = made.need(8, train=train, model=model).memory.on_device
    assert made.need(1, train=train, model=model).memory.on_device > room
    change = budget(tmp_path, workers=1, train={"micro_batch_sequences": 1, "zero_stage": 2}, room=room).nearest()
    assert change.settings == offloaded | {"cluster.num_workers": change.need.num_workers}
    assert change.need.num_workers in (2, 4, 8)


def test_packed_rows_bring_a_mask_unless_attention_is_told_where_documents_begin(tmp_path):
    data = {"pack": "best_fit", "window": 512}
    masked = budget(tmp_path, data=data).need(4)
    told = budget(tmp_path, data=data, model={"attention": "flash_attention_2"}).need(4)
    assert masked.memory.device["activations"] > 1.2 * told.memory.device["activations"]


def test_disk_is_that_of_checkpoints_and_the_model(tmp_path):
    made = budget(tmp_path, train={"keep_checkpoints": 3})
    assert made.checkpoint_bytes == 12 * made.sizes.trained
    assert made.disk_bytes == 4 * made.checkpoint_bytes + 2 * made.sizes.total
    assert made.writing_bytes == 4 * made.sizes.total


def test_a_teacher_is_held_beside_the_model_unless_it_lies_under_adapters(tmp_path):
    taught = {"objective": {"next_token": 0.5, "distill": 0.5}}
    whole, adapted = (
        budget(tmp_path, train=taught, model=model).need(4).memory.device["teacher"]
        for model in ({}, {"lora": {"rank": 2}})
    )
    logits = 8 * 32 * 320 * 2  # rows, tokens, vocabulary, bytes
    assert adapted == logits and whole == logits + 2 * budget(tmp_path).sizes.total
    assert "teacher" not in budget(tmp_path).need(4).memory.device


def test_what_a_model_cannot_do_is_no_rung_of_the_ladder(tmp_path):
    made = budget(tmp_path, model={"lora": {"rank": 2, "targets": ["q_proj", "lm_head"]}, "tie_embeddings": False})
    made.room = made.need(4, model=made.config.model.model_copy(update={"checkpoint_share": 1.0})).memory.on_device - 1
    assert "train.fused_loss" not in made.nearest().settings
