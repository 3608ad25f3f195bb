"""How far a base reads by itself: on models trained to read so far and no further, and in words."""

import re

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from e2ray.core.rope import RotaryHook
from e2ray.evaluate import base_length
from e2ray.evaluate.base_length import base_windows, measure_base, read_up_to, told
from e2ray.records.base_length import WindowRead

VOCABULARY = 32


def text(length, rng, period):
    """Noise that repeats itself after `period` tokens, so that who looks back further knows what comes."""
    noise = rng.integers(2, VOCABULARY, period)
    return np.tile(noise, length // period + 1)[:length]


@pytest.fixture(scope="module")
def model():
    """A model that has learned to look back 16 tokens, on rows of 32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    found, rng = LlamaForCausalLM(config), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(found.parameters(), lr=3e-3)
    for _ in range(250):
        rows = torch.from_numpy(np.stack([text(32, rng, 12) for _ in range(16)]))
        loss = found(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found.eval()


def measured(model, claimed):
    rng = np.random.default_rng(7)
    return measure_base(
        model,
        RotaryHook(model),
        [text(600, rng, 12) for _ in range(4)],
        base_context_length=claimed,
        batch_tokens=1024,
        device="cpu",
    )


def test_a_base_that_claims_what_it_reads_is_told_so(model):
    found = measured(model, 32)
    assert 32 <= found.measured < 64 and not found.is_longest
    assert told(found).startswith(f"base: reads {found.measured} tokens at scale 1 (NLL by window 8: ")


def test_a_base_that_claims_more_than_it_reads_is_warned_of_with_the_setting(model):
    found = measured(model, 256)
    assert 32 <= found.measured <= 64
    wanted = rf"^warning: base: reads {found.measured} tokens .*, L is 256; .* set model\.base_context_length to \d+$"
    assert re.search(wanted, told(found))


def test_a_base_that_claims_less_is_no_warning(model):
    found = measured(model, 16)
    assert found.measured == 32 and found.is_longest
    assert told(found).startswith("base: reads 32 tokens at least at scale 1")


def test_without_long_text_nothing_is_claimed(model):
    found = measure_base(
        model, RotaryHook(model), [np.zeros(9, int)], base_context_length=64, batch_tokens=64, device="cpu"
    )
    assert found.measured is None and "was not measured" in told(found)


def test_it_says_what_it_reads_and_what_it_found_so_far(model):
    lines = []
    rng = np.random.default_rng(7)
    texts = [text(70, rng, 12) for _ in range(4)]
    measure_base(
        model, RotaryHook(model), texts, base_context_length=32, batch_tokens=1024, device="cpu", progress=lines.append
    )
    assert lines[0] == "base: reading 4 documents at 8, 16, 24, 32, 40, 48, 64 tokens each"
    assert [re.sub(r"NLL \S+ ", "NLL ", line) for line in lines[1:]] == [
        f"base: NLL at {window} tokens" for window in (8, 16, 24, 32, 40, 48, 64)
    ]


def rows_of(*seen):
    return [WindowRead(window=window, nll=nll, low=low) for window, nll, low in seen]


def test_a_window_that_reads_a_little_worse_or_not_surely_worse_is_still_read():
    sure = rows_of(
        (8, 3.0, 0.4), (16, 2.5, 0.0), (24, 2.53, -0.01), (32, 2.515, 0.005), (48, 2.7, 0.1), (64, 2.6, 0.02)
    )
    assert read_up_to(sure) == 32
    assert read_up_to(rows_of((16, 2.5, 0.0), (32, 2.6, -0.01), (48, 2.7, 0.1))) == 32
    assert read_up_to(rows_of((16, 2.5, None), (32, 2.6, None))) == 16  # one document tells no chance


def test_behind_a_window_that_is_read_worse_nothing_is_read():
    assert read_up_to(rows_of((16, 2.9, 0.3), (32, 2.6, 0.05), (64, 2.5, 0.0), (96, 4.0, 1.0), (128, 2.6, -0.1))) == 64


@pytest.mark.parametrize("seed", range(6))
def test_a_model_that_reads_nothing_is_not_warned_of(seed):
    """Of noise no window is better than another but by chance."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    rng = np.random.default_rng(seed)
    model = LlamaForCausalLM(config).eval()
    found = measure_base(
        model,
        RotaryHook(model),
        [rng.integers(0, VOCABULARY, 300) for _ in range(16)],
        base_context_length=128,
        batch_tokens=1024,
        device="cpu",
    )
    assert found.measured >= 128 and not told(found).startswith("warning")


def test_windows_are_parts_of_l_that_several_documents_fill():
    assert base_windows(128, [10_000] * 4) == (32, 64, 96, 128, 160, 192, 256)
    assert base_windows(128, [10_000, 130, 130, 130, 20]) == (32, 64, 96, 128)
    assert base_windows(16, [100, 90]) == (8, 12, 16, 20, 24, 32)
    assert base_windows(128, []) == ()


def test_what_does_not_fit_into_memory_is_left_out(model, memory_for):
    memory_for(base_length, 48)
    found = measured(model, 64)
    assert [row.window for row in found.rows] == [16, 32, 48]
    assert found.reason == "64 tokens do not fit into memory"
    memory_for(base_length, 0)
    assert told(measured(model, 64)) == (
        "base: how far it reads was not measured, since 16 tokens do not fit into memory (L 64)"
    )


def test_a_window_without_a_finite_number_ends_the_measuring(model, monkeypatch):
    real = base_length.token_nlls

    def overflowing(*args, window, **options):
        return real(*args, window=window, **options) + (np.inf if window >= unreadable else 0)

    monkeypatch.setattr(base_length, "token_nlls", overflowing)
    unreadable = 64
    found = measured(model, 64)
    assert found.measured in (32, 48) and found.reason == "its NLL at 64 tokens is no finite number"
    unreadable = 16
    assert "was not measured, since its NLL at 16 tokens is no finite number" in told(measured(model, 64))


def test_one_document_alone_is_no_reason_to_warn(model):
    rng = np.random.default_rng(7)
    found = measure_base(
        model, RotaryHook(model), [text(600, rng, 12)], base_context_length=256, batch_tokens=1024, device="cpu"
    )
    assert found.measured < 256
    assert told(found).startswith("base: reads ") and told(found).endswith("which tells nothing apart from chance")
