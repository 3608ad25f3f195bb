"""Compiled decoder layers: one graph whatever is drawn, the same numbers, and nothing compiled outside a step."""

from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from e2ray.config.base import SettingsError
from e2ray.config.model import LlamaModel
from e2ray.config.positions import PositionSettings
from e2ray.core import compiled as compiled_module
from e2ray.core.compiled import CompiledLayers, decoder_layers, refuse_compile
from e2ray.core.methods.registry import method_of
from e2ray.core.model import build_model
from e2ray.core.positions import draw
from e2ray.core.rope import RotaryHook

WINDOW, ROWS, VOCABULARY = 32, 2, 40

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # which Dynamo looks at


@pytest.fixture(autouse=True)
def without_code(monkeypatch):
    """Trace as always, but generate no machine code, which takes half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def model_of(checkpoint_share=0.0):
    settings = LlamaModel(
        hidden_size=32, num_layers=4, num_heads=2, num_key_value_heads=2, intermediate_size=48,
        base_context_length=WINDOW, checkpoint_share=checkpoint_share,
    )  # fmt: skip
    return build_model(settings, dtype=torch.float32, vocab_size=VOCABULARY, seed=1).train()


def gradients(model, hook, tokens, drawn):
    model.zero_grad()
    with hook.applied(drawn.scale, drawn.offsets):
        logits = model(input_ids=tokens, use_cache=False).logits
        logits.logsumexp(-1).mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize(("share", "graphs"), [(0.0, 1), (0.5, 2), (1.0, 1)])
def test_layers_are_one_graph_over_draws_and_methods_and_compute_the_same(share, graphs):
    model = model_of(share)
    layers = CompiledLayers(model)
    tokens = torch.randint(VOCABULARY, (ROWS, WINDOW), generator=torch.Generator().manual_seed(0))
    for kind in ("linear", "yarn", "ntk"):
        positions = PositionSettings.model_validate({"preset": "pose", "max_scale": 8, "method": {"kind": kind}})
        hook = RotaryHook(model, method_of(positions.method), base_context_length=WINDOW)
        for step in range(4):
            drawn = draw(positions, seed=0, step=step, indices=range(ROWS), window=WINDOW, base_context_length=WINDOW)
            with layers.used(True):
                found = gradients(model, hook, tokens, drawn)
            for mine, other in zip(found, gradients(model, hook, tokens, drawn), strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)
        hook.remove()
    assert counters["stats"]["unique_graphs"] == graphs and not counters["graph_break"]
    assert not counters["recompiles"]


def test_layers_run_as_they_are_outside():
    model = model_of()
    layers = CompiledLayers(model)
    tokens = torch.zeros(1, WINDOW, dtype=torch.int64)
    model(input_ids=tokens, use_cache=False)
    with layers.used(True), layers.used(False):
        model(input_ids=tokens, use_cache=False)
    assert not counters["stats"]
    with layers.used(True):
        with layers.used(False):
            pass
        model(input_ids=tokens, use_cache=False)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_model_without_layers_of_its_own_is_refused():
    with pytest.raises(SettingsError, match=r"train\.compile: Linear has no decoder layers that can be compiled alone"):
        CompiledLayers(nn.Linear(2, 2))
    assert len(decoder_layers(model_of())) == 4


@pytest.mark.parametrize(
    ("device", "message"), [("cuda", "Triton, which builds"), ("cpu", r"there is no C\+\+ compiler \(no-such-compiler")]
)
def test_what_cannot_compile_is_told_before_anything_is_loaded(device, message, monkeypatch):
    monkeypatch.setattr(compiled_module, "has_triton", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SettingsError, match=rf"train\.compile: {message}.*; install it or leave train\.compile out"):
        refuse_compile(device)
