"""Methods that keep the fast pairs, divide the slow ones, and ramp in between: YaRN and MrRoPE-Pro."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from e2ray.config.methods import RampPowerMethod, YarnMethod
from e2ray.core.methods.base import Frequencies, Rope, Scales, TemperedMethod, kept_of, pair_of, rotations


class Yarn(TemperedMethod[YarnMethod]):
    """F_j = k_j + (1 - k_j) / g, with k_j falling from 1 to 0 between two places among the pairs."""

    label = "YaRN"
    source = "YaRN (arXiv:2309.00071)"

    def factors(self, base: Float[Tensor, " pairs"], scale: Scales, base_context_length: int) -> Frequencies:
        """Return the ramp between 1 and 1 / g.

        Its ends are whole indices of pairs, rounded outwards and kept within the head, as in transformers.
        """
        first = max(math.floor(pair_of(base, self.settings.fast, base_context_length)), 0)
        last = min(math.ceil(pair_of(base, self.settings.slow, base_context_length)), 2 * len(base) - 1)
        pairs = torch.arange(len(base), dtype=torch.float64, device=base.device)
        divided = ((pairs - first) / (last - first or 0.001)).clamp(0, 1)
        return (1 - divided) + divided / scale[..., None]

    def to_transformers(
        self, rope: Rope, base: Float[Tensor, " pairs"], scale: float, base_context_length: int
    ) -> Rope:
        """Return transformers' `yarn`, all of it written out."""
        return kept_of(rope) | {
            "rope_type": "yarn",
            "factor": float(scale),
            "beta_fast": self.settings.fast,
            "beta_slow": self.settings.slow,
            "attention_factor": float(self.temperature(torch.tensor(float(scale), dtype=torch.float64))),
            "original_max_position_embeddings": base_context_length,
        }


class RampPower(TemperedMethod[RampPowerMethod]):
    """F_j = g ** -(q (q + 1) / (n (n + 1))): radices that grow from pair to pair."""

    label = "MrRoPE-Pro"
    source = "MrRoPE (arXiv:2601.22181), its Pro form"

    def factors(self, base: Float[Tensor, " pairs"], scale: Scales, base_context_length: int) -> Frequencies:
        """Return 1 up to the last fast pair, 1 / g from the first slow one on."""
        turns = rotations(base, base_context_length)
        last_fast = int((turns >= self.settings.fast).sum()) - 1
        first_slow = int((turns >= self.settings.slow).sum())
        steps = first_slow - last_fast
        pairs = torch.arange(len(base), dtype=torch.float64, device=base.device)
        within = (pairs - last_fast).clamp(0, steps)
        return scale[..., None] ** (-within * (within + 1) / (steps * (steps + 1)))
