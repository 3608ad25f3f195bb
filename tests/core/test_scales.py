"""From a context length to a scale, as servers, lanes and draws ask for it."""

import pytest

from e2ray.config.positions import PositionSettings
from e2ray.core.scales import (
    default_scales,
    default_windows,
    drawn_scale,
    lane_scale,
    paper_scale,
    reaching_scale,
    request_scale,
)


def test_defaults_are_the_papers_protocol():
    assert default_windows(128, 16.0) == (128, 256, 512, 1024, 2048)
    assert default_scales(20) == (1.0, 2.0, 4.0, 8.0, 16.0)
    assert (paper_scale(64, 128), paper_scale(320, 128)) == (1.0, 2.5)


def test_the_scale_told_to_servers_reaches_the_context_length():
    lengths = range(1, 5000, 7)
    assert all(reaching_scale(length, 49) * 49 >= length for length in lengths)
    assert any(paper_scale(length, 49) * 49 < length for length in lengths)
    assert all(reaching_scale(length, 49) == pytest.approx(paper_scale(length, 49), rel=1e-15) for length in lengths)


def test_draws_of_one_scale_are_read_at_that_one():
    assert drawn_scale(PositionSettings.model_validate({"preset": "pi", "max_scale": 16}), 512, 128) == 16.0
    assert drawn_scale(PositionSettings.model_validate({"preset": "e2llm", "max_scale": 16}), 512, 128) == 4.0


@pytest.mark.parametrize(
    ("lane", "window", "scale"),
    [("base", 2048, 1.0), ("e2llm", 64, 1.0), ("e2llm", 2048, 16.0), ("pose", 128, 16.0), ("yarn", 512, 4.0)],
)
def test_a_lane_is_served_at_the_scale_it_was_made_for(lane, window, scale):
    assert lane_scale(lane, window, 128, 16.0) == scale


def test_a_request_without_measured_scales_is_read_at_the_papers():
    assert request_scale(300, 128, None) == paper_scale(300, 128)
