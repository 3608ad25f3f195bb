"""What a training keeps of each parameter, and the precision that it is computed in; known without an engine."""

from dataclasses import dataclass

import torch
from torch import Tensor

from e2ray.config.train import TrainSettings


@dataclass(frozen=True)
class ParameterState:
    """One trainable parameter in full: the fp32 weight and Adam's moments, all of the weight's shape, on the CPU."""

    name: str
    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


def precision_of(settings: TrainSettings, device: torch.device) -> torch.dtype:
    """Return the dtype of weights in the forward pass: bfloat16 or float32."""
    if settings.precision == "auto":
        precision = "bf16" if device.type == "cuda" and settings.zero_stage > 0 else "fp32"
    else:
        precision = settings.precision
    return torch.bfloat16 if precision == "bf16" else torch.float32
