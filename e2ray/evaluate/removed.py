"""What a base is called and how far it moved where its own scaling was removed before the training.

With `base_scaling: replace` the model that is trained, and measured as the base, is not the checkpoint as it was
published: a yarn factor changes angles and scores within L too. So its logits are compared with the checkpoint's
before the training, and wherever figures of a base are shown they are those of "base, its yarn scaling removed".
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from e2ray.config.model import Model, PretrainedModel

FILE = "removed_scaling.json"
TEXTS, TEXT_TOKENS, POSITIONS = 4, 2048, 128  # texts, tokens of each at most, and positions of each that are compared


@dataclass(frozen=True)
class Removed:
    """How far a base's logits within L move when its scaling is removed.

    Attributes:
        scaling: Rope type of the scaling.
        factor: Of the scaling; None where it names none.
        tokens: Tokens whose logits were compared.
        mean_difference: Mean absolute difference of logits.
        changed_argmax: Share of tokens after which another one is the likeliest.
    """

    scaling: str
    factor: float | None
    tokens: int
    mean_difference: float
    changed_argmax: float

    def row(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def removed_scaling(settings: Model) -> str | None:
    """Return the rope type of the scaling that is removed from a base; None where it is trained as it is.

    Raises:
        SettingsError: As `base_facts`.
    """
    from e2ray.core.model import base_facts  # reports need names alone, not what loads models

    if not isinstance(settings, PretrainedModel) or settings.base_scaling != "replace":
        return None
    return base_facts(settings).scaling


def base_name(scaling: str | None, *, untouched: bool = False) -> str:
    """Return what figures of a base are called.

    Args:
        scaling: Rope type of the scaling that was removed from it; None where it is the checkpoint itself.
        untouched: Whether to say of a base that is the checkpoint that it was left as it is.
    """
    if scaling is None:
        return "base, untouched" if untouched else "base"
    return f"base, its {scaling} scaling removed"


def base_words(scaling: str | None) -> str:
    """Return the base in running text; arguments as `base_name`."""
    return "the untouched base" if scaling is None else f"the base without its {scaling} scaling"


def scaling_of(removed: Mapping[str, Any] | None) -> str | None:
    """Return the rope type that a `removed_scaling` of a verdict or a file names."""
    return str(removed["scaling"]) if removed else None


def sentence(removed: Mapping[str, Any]) -> str:
    """Return in words what removing a scaling did."""
    factor = f" (factor {removed['factor']:g})" if removed["factor"] is not None else ""
    return (
        f"The base is read without its {removed['scaling']} scaling{factor}: within L its logits differ from the "
        f"published checkpoint's by {removed['mean_difference']:.2g} on average, and the likeliest next token is "
        f"another one after {removed['changed_argmax']:.1%} of {removed['tokens']:,} tokens."
    )


@torch.no_grad()
def measure_removed(
    settings: PretrainedModel, texts: Sequence[Sequence[int]], *, dtype: torch.dtype, device: torch.device
) -> Removed:
    """Read texts with a checkpoint as it is and without its scaling, and return how far the logits are apart.

    Args:
        settings: Of the base; its scaling is replaced.
        texts: Token ids, each of at most L tokens.
        dtype: To load it with.
        device: Where to.
    """
    from e2ray.core.model import base_facts

    plain = settings.model_copy(update={"lora": None, "gradient_checkpointing": False})
    with_scaling = _logits(plain, texts, dtype, device, untouched=True)
    without = _logits(plain, texts, dtype, device, untouched=False)
    facts = base_facts(settings)
    assert facts.scaling is not None, "only a scaling that is there is replaced"
    return Removed(
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
    """Return the logits behind evenly spaced tokens of each text, on the CPU."""
    from e2ray.core.model import build_model

    model = build_model(settings, dtype=dtype, device=device, untouched=untouched).eval()
    found = []
    for text in texts:
        places = torch.linspace(0, len(text) - 1, min(len(text), POSITIONS)).long()
        logits = model(input_ids=torch.tensor([list(text)], device=device), use_cache=False).logits[0]
        found.append(logits[places.to(device)].float().cpu())
    return torch.cat(found)
