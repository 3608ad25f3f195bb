"""AdamW that leaves all as it is where a gradient is no usable number, and what of a model decays."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return AdamW's groups: matrices decay, vectors (norms, biases) do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Skipping:
    """An optimizer that leaves weights, moments and its counter alone where the gradient's norm is beyond float32.

    `norm` returns it; its square counts too, since the second moment would hold it. In ZeRO stages 1 to 3 DeepSpeed
    skips most such updates itself, but stage 3 lets norms pass whose square is infinite, and stage 0 all of them.
    """

    norm: Callable[[], Tensor | float]
    skipped: bool | None = None  # None: not known yet, in the update that is being made

    def step(self, closure: Any = None) -> Any:
        """Make an update, or note in `skipped` that there is none; DeepSpeed calls this once for each group."""
        if self.skipped is None:
            # Reading the norm waits for the device; in the stages 1 to 3 DeepSpeed has just done so too.
            norm = torch.as_tensor(self.norm(), dtype=torch.float32)
            self.skipped = not bool(norm.square().isfinite())
        return None if self.skipped else super().step(closure)  # type: ignore[misc]


class SkippingAdamW(Skipping, torch.optim.AdamW):
    """Torch's AdamW that can skip."""
