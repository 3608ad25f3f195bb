"""The names of methods: one registry, which settings, comparisons, studies and the docs read."""

from pathlib import Path

import pytest

from e2ray.config.compare import CompareSettings, lane_positions
from e2ray.config.methods import NAMED, PRESETS, PUBLISHED, TRAINED, UNTRAINED
from e2ray.config.positions import PositionSettings
from e2ray.core.methods.registry import lane_labels, names_page

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_docs_hold_the_names_that_the_code_has():
    assert names_page() in (DOCS / "positions.md").read_text(encoding="utf-8")


def test_every_lane_is_called_something_of_its_own():
    labels = lane_labels()
    assert [*labels] == ["base", *UNTRAINED, *TRAINED]
    assert len({*labels.values()}) == len(labels)
    default = CompareSettings()
    assert {*default.lanes, *default.untrained, "base", "best"} == {*labels}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_the_registry_says_it_draws(name):
    drawn = PositionSettings.model_validate({"preset": name, "max_scale": 8})
    assert drawn == PositionSettings.model_validate(NAMED[name].positions(8))
    if name in TRAINED:
        assert drawn == lane_positions(name, 8)


def test_what_is_published_is_tried_by_a_study_and_ours_is_not():
    assert set(PRESETS) - set(PUBLISHED) == {"e2yarn", "recommended"}
