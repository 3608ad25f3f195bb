"""Which base a recipe names: what other runs may share, by what its weights follow from."""

import pytest

from e2ray import pipeline
from e2ray.config.load import validate
from e2ray.run import resolve


@pytest.fixture
def base(small):
    """Return a function that tells the base's folder of a recipe with changes in some of its sections."""
    training = {"steps": 8, "batch_sequences": 8}

    def of(**changes):
        recipe = small | {"pretrain": training, "train": training}
        for section, values in changes.items():
            recipe[section] = recipe[section] | values
        return resolve(validate(recipe, source="test")).base

    return of


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"lora": {"rank": 4}}},
        {"model": {"gradient_checkpointing": True}},
        {"model": {"attention": "eager"}},
        {"pretrain": {"keep_checkpoints": 7}},
        {"pretrain": {"progress_s": 0.5}},
        {"pretrain": {"micro_batch_sequences": 2}},
        {"pretrain": {"zero_stage": 1, "offload": "optimizer"}},
        {"data": {"ledger": True, "prefetch_mib": 3}},
        {"train": {"lr": 0.5}},
        {"positions": {"max_scale": 8}},
    ],
)
def test_what_the_base_does_not_follow_from_names_no_other(base, change):
    assert base(**change) == base()


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"num_layers": 3}},
        {"pretrain": {"lr": 0.5}},
        {"pretrain": {"steps": 9}},
        {"pretrain": {"precision": "bf16"}},
        {"data": {"validation_share": 0.1}},
        {"data": {"shuffle_shards": 2}},
    ],
)
def test_what_the_base_follows_from_names_another(base, change):
    assert base(**change) != base()


def test_a_base_is_pretrained_without_the_adapters_of_the_recipe(small, monkeypatch):
    training = {"steps": 8, "batch_sequences": 8}
    recipe = small | {"pretrain": training, "train": training, "model": small["model"] | {"lora": {"rank": 4}}}
    run, trained = resolve(validate(recipe, source="test")), []
    monkeypatch.setattr(pipeline, "_train", lambda run, folder, shards, model, *_: trained.append(model))
    base = pipeline.base_of(run, "shards")
    assert [model.lora for model in trained] == [None]
    assert base.lora is not None  # the adapters are the fine-tuning's own
