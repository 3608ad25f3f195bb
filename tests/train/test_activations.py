"""Activations found on fake tensors: against torch's own tracker, and few layers against all of them."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from e2ray.config.base import SettingsError
from e2ray.config.model import LlamaModel, LoraSettings, PretrainedModel
from e2ray.core.losses import next_token_nll
from e2ray.core.model import recomputed_layers
from e2ray.testing.models import tiny_model
from e2ray.train import activations as module
from e2ray.train.activations import MASKLESS, Live, Step, activations

SIZES = {"hidden_size": 64, "num_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160}


def llama(num_layers=6, **changes):
    return LlamaModel(num_layers=num_layers, **SIZES, **changes)


def step(rows=2, window=64, dtype=torch.bfloat16, attention=MASKLESS, vocab_size=300):
    return Step(rows, window, dtype, attention, vocab_size)


def test_what_is_allocated_and_freed_is_added_up():
    with FakeTensorMode():
        layer = nn.Linear(8, 8, bias=False)
        with Live(layer) as live:
            one = torch.zeros(100, 8)
            two = layer(one)
            assert live.now == live.most == 2 * 100 * 8 * 4
            view = two[:10]
            del two
            assert live.now == 2 * 100 * 8 * 4 and view.shape == (10, 8)
            del view
            assert (live.now, live.most) == (100 * 8 * 4, 2 * 100 * 8 * 4)


@pytest.mark.parametrize(
    ("share", "attention", "lora"),
    [
        (0.0, MASKLESS, None), (0.34, MASKLESS, None), (0.5, "eager", None), (1.0, "sdpa", None),
        (0.34, "sdpa", LoraSettings(rank=4)),
    ],
)  # fmt: skip
def test_a_few_layers_tell_what_all_of_them_take(share, attention, lora):
    settings = llama(checkpoint_share=share, lora=lora)
    recomputed = recomputed_layers(share, 6)
    whole = module._most(settings, step(attention=attention), 6 - recomputed, recomputed)
    assert activations(settings, step(attention=attention)) == pytest.approx(whole, rel=0.01)


@pytest.mark.filterwarnings("ignore:Expected a tensor:UserWarning")  # of the tracker, for gradients that are none
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_torchs_own_tracker_finds_the_same(share):
    settings, shape = llama(num_layers=2, checkpoint_share=share), step(window=256)
    with FakeTensorMode():
        model = module._model(settings, shape, 0 if share else 2, 2 if share else 0)
    with FakeTensorMode():
        module._make_fake(model)
        tokens = torch.zeros(shape.rows, shape.window, dtype=torch.int64)
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker:
            next_token_nll(model(input_ids=tokens, use_cache=False).logits, tokens).mean().backward()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    held = sum(size for kind, size in peak.items() if str(kind).rpartition(".")[2] in ("ACT", "TEMP", "GRAD"))
    assert activations(settings, shape) == pytest.approx(held, rel=0.02)


def test_they_grow_with_rows_and_window_and_shrink_with_recomputation_and_bf16():
    least = activations(llama(), step())
    assert activations(llama(), step(rows=4)) == pytest.approx(2 * least, rel=0.1)
    assert activations(llama(), step(window=128)) == pytest.approx(2 * least, rel=0.1)
    assert activations(llama(), step(dtype=torch.float32)) > 1.4 * least
    assert activations(llama(checkpoint_share=1.0), step()) < activations(llama(checkpoint_share=0.5), step()) < least
    assert activations(llama(), step(window=512, attention="eager")) > 2 * activations(llama(), step(window=512))


def test_a_loss_with_the_head_in_it_holds_no_logits():
    large = {"vocab_size": 200_000, "window": 256}
    whole, fused = (activations(llama(), replace(step(**large), fused_loss=fused)) for fused in (False, True))
    logits = 2 * 256 * 200_000 * 2
    head = 200_000 * SIZES["hidden_size"]  # its gradient: in float32 while it is added up, and once in bf16
    assert whole > 2 * logits and fused < whole - logits and fused > 6 * head


def test_a_checkpoint_is_measured_by_its_config_alone(tmp_path):
    path = tmp_path / "base"
    tiny_model("llama").save_pretrained(path)
    (path / "model.safetensors").unlink()
    assert activations(PretrainedModel(path=str(path)), step(window=32)) > 0


def test_a_model_that_cannot_run_on_fakes_is_one_line(monkeypatch):
    def reading(*_):
        raise RuntimeError("it looks\nat values")

    monkeypatch.setattr(module, "_logits", reading)
    with pytest.raises(SettingsError, match=r"model: its activations cannot be found without running it \(it looks\)"):
        activations(llama(), step())
