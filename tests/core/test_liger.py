"""Liger's kernels: only on a GPU, only where they are, and never for positions or the loss."""

import pytest

from e2ray.config.base import SettingsError
from e2ray.config.model import LoraSettings
from e2ray.core import liger as module
from e2ray.core.adapters import with_adapters
from e2ray.core.liger import refuse_liger, use_liger
from e2ray.testing.models import tiny_model


@pytest.mark.parametrize(
    ("device", "installed", "complaint"),
    [
        ("cpu", True, "needs a GPU, the device is cpu"),
        ("cuda", False, r"liger-kernel is not installed \(pip install e2ray\[gpu\]\)"),
        ("cuda", True, "Liger has no kernels for llama"),
    ],
)
def test_kernels_that_are_not_there_are_refused(device, installed, complaint, monkeypatch):
    monkeypatch.setattr(module, "_apply_liger_kernel_to_instance", (lambda **_: None) if installed else None)
    monkeypatch.setattr(module, "MODEL_TYPE_TO_APPLY_LIGER_FN", {"other": None})
    with pytest.raises(SettingsError, match=rf"^model\.liger: {complaint}; leave it out$"):
        use_liger(tiny_model("llama"), device=device)
    if "llama" not in complaint:
        with pytest.raises(SettingsError, match=complaint):
            refuse_liger(device)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_norms_and_feed_forward_layers_of_the_plain_model_are_asked_for_alone(lora, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_apply_liger_kernel_to_instance", lambda **given: asked.append(given))
    monkeypatch.setattr(module, "MODEL_TYPE_TO_APPLY_LIGER_FN", {"llama": None})
    plain = tiny_model("llama")
    use_liger(with_adapters(plain, lora) if lora else plain, device="cuda")
    assert asked[0].pop("model") is plain
    assert [name for name, wanted in asked[0].items() if wanted] == ["rms_norm", "swiglu"]
