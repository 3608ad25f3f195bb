"""One update of packed rows: every predicted token of the batch weighs the same, however the batch is cut."""

import pytest
import torch

from e2ray.config.base import SettingsError
from e2ray.config.model import LlamaModel
from e2ray.config.positions import PositionSettings
from e2ray.config.train import TrainSettings
from e2ray.core.losses import plain_ids, predicted, token_nll
from e2ray.core.model import build_model
from e2ray.core.positions import draw
from e2ray.train.engine import Engine
from e2ray.train.worker import refuse_flash_of_rows

CPU = torch.device("cpu")
WINDOW, ROWS, VOCABULARY = 24, 4, 50
LENGTHS = [[10, 9], [24], [2, 2, 2], [1, 20]]

pytestmark = pytest.mark.usefixtures("one_rank")


def engine_of(micro, *, zero_stage=1):
    model = LlamaModel(
        hidden_size=32, num_layers=2, num_heads=2, num_key_value_heads=2, intermediate_size=48, base_context_length=24
    )
    settings = TrainSettings(
        steps=1, batch_sequences=ROWS, micro_batch_sequences=micro, lr=1e-2, log_every=1, checkpoint_every=1,
        zero_stage=zero_stage, clip_norm=0.0, weight_decay=0.0,
    )  # fmt: skip
    built = build_model(model, dtype=torch.float32, vocab_size=VOCABULARY, seed=1).train()
    return Engine(built, settings, device=CPU, dtype=torch.float32)


def batch():
    tokens = torch.randint(VOCABULARY, (ROWS, WINDOW), generator=torch.Generator().manual_seed(2))
    rows = []
    for lengths in LENGTHS:
        fill = WINDOW - sum(lengths)
        rows.append(torch.cat([*(torch.arange(length) for length in lengths), -1 - torch.arange(fill)]))
    positions = PositionSettings.model_validate({"preset": "pose", "max_scale": 4})
    drawn = draw(positions, seed=0, step=0, indices=range(ROWS), window=WINDOW, base_context_length=WINDOW)
    return tokens, torch.stack(rows), drawn


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_an_update_of_packed_rows_is_that_of_the_mean_over_predicted_tokens(micro):
    tokens, places, drawn = batch()
    engine = engine_of(micro)
    with engine.hook.applied(drawn.scale, drawn.offsets):
        nll = token_nll(
            engine.ds.module(input_ids=tokens, position_ids=plain_ids(places), use_cache=False).logits, tokens
        )
    wanted = predicted(places)
    mean = (nll * wanted).sum() / wanted.sum()
    gradient = torch.autograd.grad(mean, [parameter for _, parameter in engine.parameters()])
    found = engine.update(tokens, drawn, lr=1e-2, places=places)
    torch.testing.assert_close(found, ((nll * wanted).sum(1) / wanted.sum(1)).detach(), rtol=1e-5, atol=1e-6)
    norm = torch.nn.utils.get_total_norm(gradient)
    assert engine.grad_norm == pytest.approx(float(norm), rel=1e-4)


def test_flash_attention_of_several_packed_rows_is_refused():
    engine = engine_of(2)
    refuse_flash_of_rows(engine)
    engine.ds.module.config._attn_implementation = "flash_attention_2"
    with pytest.raises(SettingsError, match=r"micro_batch_sequences: flash attention keeps packed documents apart one"):
        refuse_flash_of_rows(engine)
    engine.micro_sequences = 1
    refuse_flash_of_rows(engine)
