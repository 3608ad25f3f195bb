"""A recipe in which nothing is left out is written and read as the recipe that it was made of."""

import pytest

from e2ray.config.load import dump, validate
from e2ray.config.resolved import ResolvedConfig, ResolvedEvaluate, filled
from e2ray.config.run import RunConfig


def test_a_filled_section_knows_what_was_named_and_what_was_put_in():
    named = RunConfig.model_fields["evaluate"].default.model_copy(update={"documents": 3})
    whole = filled(ResolvedEvaluate, named, windows=(32, 64), scales=(1.0,), stride=8)
    assert (whole.documents, whole.windows, whole.stride) == (3, (32, 64), 8)
    assert whole.model_fields_set == {"documents", "windows", "scales", "stride"}
    assert (
        whole.model_dump() == named.model_copy(update={"windows": (32, 64), "scales": (1.0,), "stride": 8}).model_dump()
    )


@pytest.fixture
def recipe(small):
    return small | {"train": {"steps": 8, "batch_sequences": 4}}


def test_a_resolved_recipe_is_written_as_any_other(recipe):
    recipe["evaluate"] = {"windows": [32], "scales": [1], "stride": 8}
    recipe["export"] = {"context_lengths": [32]}
    config = validate(recipe, source="test")
    whole = ResolvedConfig.read(config)
    assert dump(whole) == dump(config)
    assert list(whole.model_dump()) == list(config.model_dump())
    assert validate(whole.model_dump(mode="json"), source="test") == config


def test_what_a_recipe_leaves_out_stays_out(recipe):
    config = validate(recipe | {"evaluate": None, "export": None}, source="test")
    whole = ResolvedConfig.read(config)
    assert (whole.evaluate, whole.export) == (None, None)
