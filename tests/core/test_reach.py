"""How far contexts reach: spans by hand, under shifts and in packed rows; and weights that make reaches count alike."""

import pytest
import torch

from e2ray.config.positions import PositionSettings
from e2ray.core.positions import draw
from e2ray.core.reach import BUCKETS, MOST, reaches, weights


def test_a_span_counts_tokens_of_the_text_that_the_row_stands_for():
    offsets = torch.tensor([[0, 0, 6, 6, 6], [3, 3, 3, 3, 3]])
    assert reaches(offsets).tolist() == [[0, 1, 3, 3], [0, 1, 1, 2]]  # spans 1, 2, 9, 10 and 1, 2, 3, 4


def test_documents_of_a_packed_row_reach_no_further_than_themselves():
    offsets = torch.tensor([[0, 0, 30, 30, 30, 30]])
    places = torch.tensor([[0, 1, 2, 0, 1, -1]])
    assert reaches(offsets, places).tolist() == [[0, 1, 5, 0, 1]]  # spans 1, 2, 33, 1, 2


def test_a_reach_that_no_drawn_row_has_weighs_most():
    scale = {"kind": "choice", "choices": [{"scale": 1, "weight": 10.0**9}, {"scale": 16, "weight": 1.0}]}
    positions = PositionSettings.model_validate({"scale": scale, "placement": {"kind": "prefix", "prefix": 4}})
    found = weights(positions, window=64, base_context_length=64)
    assert found[8] == MOST and found[5] < MOST


@pytest.mark.parametrize("per", ["sequence", "step"])
@pytest.mark.parametrize("preset", ["e2llm", "pose", "randpos", "native"])
def test_every_reach_that_comes_up_weighs_the_same_in_sum(preset, per):
    positions = PositionSettings.model_validate({"preset": preset, "max_scale": 16, "per": per})
    found = weights(positions, window=64, base_context_length=64)
    drawn = torch.cat(
        [draw(positions, seed=9, step=n, indices=[0], window=64, base_context_length=64).offsets for n in range(2000)]
    )
    by_token = found[reaches(drawn)]
    assert by_token.mean().item() == pytest.approx(1, abs=0.05)  # other rows than the weights were made of
    sums = torch.zeros(BUCKETS).index_add_(0, reaches(drawn).flatten(), by_token.flatten())
    even = sums[(sums > 0) & (found < 0.999 * MOST)]
    assert even.max() < 1.5 * even.min()  # rare reaches are rare in 2,000 rows
    assert found.max() <= MOST
