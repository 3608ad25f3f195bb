"""What only a GPU can show: run by `make test-gpu`."""

import pytest
import torch

from e2ray.config.base import SettingsError
from e2ray.config.model import LlamaModel
from e2ray.config.positions import PositionSettings
from e2ray.config.train import TrainSettings
from e2ray.core.attention import IMPLEMENTATIONS
from e2ray.core.methods.registry import method_of
from e2ray.core.model import build_model
from e2ray.core.positions import draw
from e2ray.core.proof import prove, prove_apart
from e2ray.train.ahead import ahead
from e2ray.train.batch import Batch
from e2ray.train.engine import Engine
from e2ray.train.loop import Meter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.usefixtures("one_rank"),
]
GPU, WINDOW, ROWS, VOCABULARY = torch.device("cuda"), 128, 4, 200


def engine_of(attention="auto", method="linear", **changes):
    sizes = {"hidden_size": 128, "num_layers": 2, "num_heads": 2, "num_key_value_heads": 2, "intermediate_size": 256}
    model = LlamaModel(base_context_length=WINDOW, attention=attention, **sizes)
    options = {"batch_sequences": ROWS, "micro_batch_sequences": 2, "precision": "bf16", "zero_stage": 2}
    settings = TrainSettings(steps=10, log_every=1, checkpoint_every=1, **{**options, **changes})
    built = build_model(model, dtype=torch.bfloat16, vocab_size=VOCABULARY, seed=1, runs_on=GPU).train()
    positions = PositionSettings.model_validate({"preset": "pose", "max_scale": 4, "method": {"kind": method}})
    made = method_of(positions.method)
    return Engine(built, settings, device=GPU, dtype=torch.bfloat16, method=made, base_context_length=WINDOW)


def batches(count=3, *, packed=False):
    positions = PositionSettings.model_validate({"preset": "pose", "max_scale": 4})
    for step in range(count):
        drawn = draw(positions, seed=0, step=step, indices=range(ROWS), window=WINDOW, base_context_length=WINDOW)
        tokens = torch.randint(VOCABULARY, (ROWS, WINDOW), generator=torch.Generator().manual_seed(step))
        index = torch.arange(WINDOW).remainder(WINDOW // 2 + 7 * step).repeat(ROWS, 1) if packed else None
        yield Batch(tokens, drawn, index)


def losses(engine, **options):
    found = [float(engine.update(batch, lr=1e-3).mean()) for batch in ahead(batches(**options), engine)]
    engine.hook.remove()
    engine.ds.destroy()
    return found


@pytest.mark.parametrize("attention", list(IMPLEMENTATIONS))
@pytest.mark.parametrize("packed", [False, True])
def test_every_attention_that_is_there_is_proven_and_trains_alike(attention, packed):
    try:
        engine = engine_of(attention)
    except SettingsError as error:
        pytest.skip(str(error))
    prove(engine.logits, engine.hook, engine.ds.module, vocab_size=VOCABULARY, device=GPU)
    prove_apart(engine.logits, engine.hook, engine.ds.module, vocab_size=VOCABULARY, device=GPU)
    assert losses(engine, packed=packed) == pytest.approx(losses(engine_of("eager"), packed=packed), rel=2e-2)


def test_what_is_copied_ahead_is_what_was_read():
    engine = engine_of()
    for batch, there in zip(batches(), ahead(batches(), engine), strict=True):
        moved = torch.cat([part.tokens for part in there.there])
        assert moved.device.type == "cuda" and torch.equal(moved.cpu(), batch.tokens)


@pytest.mark.parametrize("changes", [{"compile": True}, {"fused_loss": True}, {"zero_stage": 1}, {"zero_stage": 3}])
def test_other_ways_of_a_step_train_alike(changes):
    assert losses(engine_of(**changes)) == pytest.approx(losses(engine_of()), rel=2e-2)


def test_draws_and_sums_do_not_wait_for_the_gpu():
    engine = engine_of(method="yarn")
    batch, *_ = ahead(batches(2), engine)
    nll = engine.update(batch, lr=1e-3)
    meter = Meter(engine, WINDOW)
    hidden = torch.zeros(2, WINDOW, 128, device=GPU, dtype=torch.bfloat16)
    ids = torch.arange(WINDOW, device=GPU)[None]
    (rotary,) = engine.hook.rotary_modules
    part = batch.there[0]
    torch.cuda.set_sync_debug_mode("error")
    try:
        with engine.hook.applied(part.draw.scale, part.draw.offsets):
            rotary(hidden, ids)
        meter.add(batch, nll, 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
