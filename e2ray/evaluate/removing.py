"""Whether a base's scaling is removed, and how far that moves its logits; its name then is in `removed.py`."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from e2ray.config.model import Model, PretrainedModel
from e2ray.core.base import base_facts
from e2ray.core.model import build_model
from e2ray.records.evaluation import RemovedScaling

TEXTS, TEXT_TOKENS, POSITIONS = 4, 2048, 128  # texts, tokens of each at most, and positions of each that are compared


def removed_scaling(settings: Model) -> str | None:
    """Return the rope type of the scaling that is removed from a base; None where it is trained as it is.

    Raises:
        SettingsError: As `base_facts`.
    """
    if not isinstance(settings, PretrainedModel) or settings.base_scaling != "replace":
        return None
    return base_facts(settings).scaling


@torch.no_grad()
def measure_removed(
    settings: PretrainedModel, texts: Sequence[Sequence[int]], *, dtype: torch.dtype, device: torch.device
) -> RemovedScaling:
    """Read texts with a checkpoint as it is and without its scaling, and return how far the logits are apart.

    Args:
        settings: Of the base; its scaling is replaced.
        texts: Token ids, each of at most L tokens.
        dtype: Of the loaded weights.
        device: Where the model is loaded.
    """
    plain = settings.model_copy(update={"lora": None, "checkpoint_share": 0.0})
    with_scaling = _logits(plain, texts, dtype, device, untouched=True)
    without = _logits(plain, texts, dtype, device, untouched=False)
    facts = base_facts(settings)
    assert facts.scaling is not None, "only a scaling that is there is replaced"
    return RemovedScaling(
        scaling=facts.scaling,
        factor=facts.factor,
        tokens=len(without),
        mean_difference=float((with_scaling - without).abs().mean()),
        changed_argmax=float((with_scaling.argmax(dim=1) != without.argmax(dim=1)).float().mean()),
    )


def _logits(
    settings: PretrainedModel,
    texts: Sequence[Sequence[int]],
    dtype: torch.dtype,
    device: torch.device,
    *,
    untouched: bool,
) -> Float[Tensor, "tokens vocab"]:
    """Return the logits at evenly spaced tokens of each text, on the CPU."""
    model = build_model(settings, dtype=dtype, device=device, untouched=untouched).eval()
    rows = []
    for text in texts:
        positions = torch.linspace(0, len(text) - 1, min(len(text), POSITIONS)).long()
        logits = model(input_ids=torch.tensor([list(text)], device=device), use_cache=False).logits[0]
        rows.append(logits[positions.to(device)].float().cpu())
    return torch.cat(rows)
