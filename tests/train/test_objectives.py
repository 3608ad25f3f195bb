"""Objectives on closed forms: what a row's figure is, what the loss is, and what packed rows give a model."""

import math

import pytest
import torch

from e2ray.train.objectives import MicroBatch, next_token, objective_of, packed_next_token

VOCABULARY = 7


class Sure:
    """A model that gives the token behind each token `boost` more than all others, and keeps what it was asked."""

    def __init__(self, boost):
        self.boost, self.given = boost, {}

    def __call__(self, tokens, **given):
        self.given = given
        logits = torch.zeros(*tokens.shape, VOCABULARY, requires_grad=True)
        wanted = torch.nn.functional.one_hot(tokens.roll(-1, dims=1), VOCABULARY)
        return logits + self.boost * wanted


def nll(boost):
    return math.log(math.exp(boost) + VOCABULARY - 1) - boost


def tokens(rows=3, window=6):
    return torch.randint(VOCABULARY, (rows, window), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("boost", [0.0, 2.0])
def test_next_token_is_the_mean_over_rows_of_one_text(boost):
    found, loss = next_token(Sure(boost), MicroBatch(tokens()))
    assert found.tolist() == pytest.approx([nll(boost)] * 3) and loss.item() == pytest.approx(nll(boost))
    loss.backward()


def test_packed_rows_weigh_what_they_predict_and_tell_their_documents_apart():
    model, boost, weight = Sure(1.5), 1.5, 0.25
    places = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, -1, -2], [0, 0, 0, -1, -2, -3]])
    found, loss = packed_next_token(model, MicroBatch(tokens(), places, weight))
    counts = torch.tensor([4, 3, 0])  # predicted tokens: not a document's first, nor what fills a row
    assert found.tolist() == pytest.approx([nll(boost), nll(boost), 0.0])
    assert loss.item() == pytest.approx(weight * int(counts.sum()) * nll(boost))
    assert model.given["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 1], [0, 0, 0, 0, 1, 2]]


def test_rows_of_one_text_are_given_no_positions():
    model = Sure(1.0)
    next_token(model, MicroBatch(tokens()))
    assert model.given == {}
    assert objective_of(packed=False) is next_token and objective_of(packed=True) is packed_next_token
