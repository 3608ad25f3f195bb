"""Objectives on closed forms: what a row's figure is, what the loss is, and what packed rows give a model."""

import math

import pytest
import torch

from e2ray.config.train import ObjectiveSettings
from e2ray.core.positions import Draw
from e2ray.core.reach import BUCKETS
from e2ray.train.batch import Batch
from e2ray.train.objectives import Mixture, Reader, next_token, objective_of, packed_next_token

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


def batch_of(rows, places=None, weight=1.0):
    return Batch(rows, Draw(torch.ones(len(rows)), torch.zeros_like(rows)), places, token_weight=weight)


@pytest.mark.parametrize("boost", [0.0, 2.0])
def test_next_token_is_the_mean_over_rows_of_one_text(boost):
    found = next_token(Reader(Sure(boost)), batch_of(tokens()))
    assert found.nll.tolist() == pytest.approx([nll(boost)] * 3) and found.loss.item() == pytest.approx(nll(boost))
    assert found.figures == {}
    found.loss.backward()


def test_packed_rows_weigh_what_they_predict_and_tell_their_documents_apart():
    model, boost, weight = Sure(1.5), 1.5, 0.25
    places = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, -1, -2], [0, 0, 0, -1, -2, -3]])
    found = packed_next_token(Reader(model), batch_of(tokens(), places, weight))
    counts = torch.tensor([4, 3, 0])  # predicted tokens: not a document's first, nor what fills a row
    assert found.nll.tolist() == pytest.approx([nll(boost), nll(boost), 0.0])
    assert found.loss.item() == pytest.approx(weight * int(counts.sum()) * nll(boost))
    assert model.given["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 1], [0, 0, 0, 0, 1, 2]]


def test_rows_of_one_text_are_given_no_positions():
    model = Sure(1.0)
    next_token(Reader(model), batch_of(tokens()))
    assert model.given == {}
    assert objective_of(packed=False) is next_token and objective_of(packed=True) is packed_next_token


def teacher_of(boost):
    """A teacher that is sure of the next token, and asks for no gradient."""
    return lambda tokens, **given: Sure(boost)(tokens).detach()


def kl(taught, boost):
    wanted = torch.tensor([taught] + [0.0] * (VOCABULARY - 1)).log_softmax(0)
    student = torch.tensor([boost] + [0.0] * (VOCABULARY - 1)).log_softmax(0)
    return float((wanted.exp() * (wanted - student)).sum())


@pytest.mark.parametrize(("next_weight", "distill"), [(1.0, 0.5), (0.0, 1.0), (0.25, 2.0)])
@pytest.mark.parametrize("packed", [False, True])
def test_a_mixture_adds_its_parts_by_their_weights_and_tells_them_apart(next_weight, distill, packed):
    settings = ObjectiveSettings(next_token=next_weight, distill=distill)
    places = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, -1, -2], [0, 1, 2, 3, 4, 5]]) if packed else None
    weight = 1 / 12 if packed else 1.0  # of 12 predicted tokens
    found = Mixture(settings, teacher=teacher_of(3.0))(Reader(Sure(1.0)), batch_of(tokens(), places, weight))
    assert found.nll.tolist() == pytest.approx([nll(1.0)] * 3)
    assert found.figures["distill_loss"].tolist() == pytest.approx([kl(3.0, 1.0)] * 3, rel=1e-5)
    assert found.loss.item() == pytest.approx(next_weight * nll(1.0) + distill * kl(3.0, 1.0), rel=1e-5)


def test_a_mixture_of_the_next_token_alone_is_the_next_token():
    text = tokens()
    plain, mixed = (
        next_token(Reader(Sure(1.0)), batch_of(text)),
        Mixture(ObjectiveSettings())(Reader(Sure(1.0)), batch_of(text)),
    )
    assert torch.equal(plain.nll, mixed.nll) and torch.equal(plain.loss, mixed.loss)


def test_weights_by_reach_are_those_of_the_drawn_distances():
    offsets = torch.tensor([[0, 0, 0, 13, 13, 13]])
    by_reach = torch.zeros(BUCKETS)
    by_reach[:2], by_reach[4] = torch.tensor([0.5, 1.0]), 4.0
    drawn = Draw(torch.ones(1), offsets)
    model = Sure(0.5)
    settings = ObjectiveSettings(distance_weights=True)
    found = Mixture(settings, weights=by_reach)(Reader(model), Batch(tokens(rows=1), drawn))
    # what predicts tokens 1 to 5 sees spans of 1, 2, 3, 17 and 18 tokens
    assert found.loss.item() == pytest.approx(nll(0.5) * (0.5 + 1 + 1 + 4 + 4) / 5)
    assert found.nll.item() == pytest.approx(nll(0.5))
