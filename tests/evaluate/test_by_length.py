import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from e2ray.config.base import SettingsError
from e2ray.core.rope import RotaryHook
from e2ray.evaluate import by_length
from e2ray.evaluate.by_length import length_cells, length_passes, merged_passes, token_nlls
from e2ray.evaluate.perplexity import DivergedWeights
from e2ray.testing.models import inverse_frequencies_divided

VOCABULARY = 64


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCABULARY, size=length).astype(np.int32) for length in (64, 70, 64, 90)]


def passes(model, documents, *, window=64, scale=1.0, batch_tokens=128):
    hook = RotaryHook(model)
    try:
        return token_nlls(model, hook, documents, window=window, scale=scale, batch_tokens=batch_tokens, device="cpu")
    finally:
        hook.remove()


def naive(model, document, length):
    """The NLL of each token of a window of its own, from whole float64 log-probabilities."""
    tokens = torch.from_numpy(document[:length].astype(np.int64))[None]
    with torch.no_grad():
        logits = model(tokens).logits[0].double()
    logs = torch.log_softmax(logits[:-1], dim=-1)
    return -logs[torch.arange(length - 1), tokens[0, 1:]].numpy()


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_one_pass_gives_what_a_pass_for_each_length_gives(model, documents, scale):
    lengths = [2, 8, 16, 32, 64]
    cells = length_cells(passes(model, documents, scale=scale), lengths, last=6, scale=scale, model="tuned")
    for cell, length in zip(cells, lengths, strict=True):
        with inverse_frequencies_divided(model, scale):
            each = [naive(model, document, length)[-6:] for document in documents]
        assert cell.nll == pytest.approx(float(np.mean(each)), rel=1e-6)
        assert (cell.context_length, cell.documents, cell.last) == (length, 4, min(6, length - 1))
        assert cell.tokens == 4 * min(6, length - 1)
        assert cell.low <= cell.nll <= cell.high


def test_buckets_hold_each_position_once(model, documents):
    nll = passes(model, documents)
    lengths = [8, 16, 40, 64]
    cells = length_cells(nll, lengths, last=4, scale=1.0, model="tuned")
    widths = np.diff([1, *lengths])
    assert sum(cell.bucket_nll * width for cell, width in zip(cells, widths, strict=True)) == pytest.approx(
        nll.mean(axis=0).sum(), rel=1e-6
    )
    assert cells[1].bucket_nll == pytest.approx(nll[:, 7:15].mean(), rel=1e-6)


def test_batching_changes_nothing_and_the_mode_is_put_back(model, documents):
    model.train()
    one, many = passes(model, documents, batch_tokens=1), passes(model, documents, batch_tokens=10**6)
    assert model.training
    model.eval()
    np.testing.assert_allclose(one, many, rtol=0, atol=1e-5)


def test_a_document_shorter_than_the_window_is_refused(model, documents):
    with pytest.raises(SettingsError, match="a document has 64 tokens, wanted at least the window of 80"):
        passes(model, documents, window=80)


@pytest.mark.parametrize("lengths", [[], [1], [8, 8], [16, 8], [65]])
def test_lengths_out_of_range_are_refused(lengths):
    with pytest.raises(ValueError, match=r"lengths must be increasing and lie in \[2, 64\]"):
        length_cells(np.zeros((2, 63), np.float32), lengths, last=4, scale=1.0, model="tuned")


def test_a_single_document_shows_no_spread():
    (cell,) = length_cells(np.ones((1, 15), np.float32), [16], last=4, scale=1.0, model="tuned")
    assert (cell.low, cell.high, cell.nll) == (None, None, 1.0)


def test_weights_that_have_diverged_are_named():
    nll = np.full((2, 15), math.nan, np.float32)
    with pytest.raises(DivergedWeights, match="base model, context length 16, scale 2: NLL is nan"):
        length_cells(nll, [16], last=4, scale=2.0, model="base")


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_a_token_between_the_scored_ones_that_has_diverged_is_named_too(wrong):
    nll = np.ones((2, 15), np.float32)
    nll[1, 5] = wrong  # of no context's last four, but of the bucket of 16
    with pytest.raises(DivergedWeights, match=f"tuned model, context length 16, scale 1: NLL is {wrong}"):
        length_cells(nll, [4, 16], last=4, scale=1.0, model="tuned")


def shares(model, documents, which, scales=(1.0, 4.0), **options):
    hook = RotaryHook(model)
    try:
        return length_passes(
            model,
            hook,
            [documents[number] for number in which],
            windows=(16, 64),
            scales=scales,
            batch_tokens=128,
            device="cpu",
            name="tuned",
            numbers=which,
            **options,
        )
    finally:
        hook.remove()


def test_shares_of_several_workers_are_the_passes_of_one(model, documents):
    together = merged_passes([shares(model, documents, [0, 2]), shares(model, documents, [1, 3])])
    alone = shares(model, documents, [0, 1, 2, 3])
    assert [(one.model, one.scale) for one in together] == [("tuned", 1.0), ("tuned", 4.0)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.documents, [0, 1, 2, 3])
        np.testing.assert_allclose(one.nll, other.nll, rtol=1e-5, atol=1e-6)


def test_a_scale_that_does_not_fit_is_left_out_told_and_left_out_for_all_workers(model, documents, monkeypatch):
    real = by_length.token_nlls

    def starved(*args, scale, **options):
        if scale == 1.0:
            raise torch.OutOfMemoryError("no")
        return real(*args, scale=scale, **options)

    monkeypatch.setattr(by_length, "token_nlls", starved)
    told = []
    partly = shares(model, documents, [0, 2], progress=told.append)
    monkeypatch.undo()
    assert [one.scale for one in partly] == [4.0]
    assert told == [
        "tuned: NLL by length at scale 1 left out: it does not fit into memory; "
        "lower evaluate.batch_tokens or give the workers more"
    ]
    assert [one.scale for one in merged_passes([shares(model, documents, [1, 3]), partly])] == [4.0]


def test_a_window_that_does_not_fit_leaves_the_shorter_lengths(model, documents, monkeypatch):
    real = by_length.token_nlls

    def starved(*args, window, scale, **options):
        if window > 16 and scale == 1.0:
            raise torch.OutOfMemoryError("no")
        return real(*args, window=window, scale=scale, **options)

    whole = shares(model, documents, [1, 3])
    monkeypatch.setattr(by_length, "token_nlls", starved)
    told = []
    partly = shares(model, documents, [0, 2], progress=told.append)
    assert [(one.scale, one.window) for one in partly] == [(1.0, 16), (4.0, 64)]
    assert told == [
        "tuned: NLL by length at scale 1 beyond 16 tokens left out: it does not fit into memory; "
        "lower evaluate.batch_tokens or give the workers more"
    ]
    together = merged_passes([whole, partly])
    assert [(one.scale, one.nll.shape) for one in together] == [(1.0, (4, 15)), (4.0, (4, 63))]
    np.testing.assert_array_equal(together[0].nll[[1, 3]], whole[0].nll[:, :15])


def test_other_errors_are_not_taken_for_a_lack_of_memory(model, documents, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("something else")

    monkeypatch.setattr(by_length, "token_nlls", broken)
    with pytest.raises(RuntimeError, match="something else"):
        shares(model, documents, [0])
