"""Methods that name a factor for each pair: LongRoPE's searched lists and Giraffe's truncated basis."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from e2ray.config.methods import FactorsMethod
from e2ray.core.methods.base import Frequencies, FrequencyMethod, Scales, TemperedMethod, rotations

SLOWEST, LEAST = 1 / 16, 1 / 8  # rotations in L that slow pairs get, and below which they do not turn


class Factors(TemperedMethod[FactorsMethod]):
    """F_j = factors[j] ** (-ln g / ln G) for a list found at scale G."""

    label = "LongRoPE"
    source = "LongRoPE (arXiv:2402.13753), LongRoPE2 (arXiv:2502.20082)"

    def __init__(self, settings: FactorsMethod) -> None:
        """Take the list."""
        super().__init__(settings)
        self.num_pairs = len(settings.factors)

    def factors(self, base: Float[Tensor, " pairs"], scale: Scales, base_context_length: int) -> Frequencies:
        """Return the list to the power that makes it whole at its own scale.

        Raises:
            SettingsError: If its length is not the number of pairs.
        """
        self.refuse_pairs(len(base))
        listed = torch.tensor(self.settings.factors, dtype=torch.float64, device=base.device)
        return listed ** (-scale.log() / math.log(self.settings.max_scale))[..., None]


class Truncated(FrequencyMethod):
    """Fast pairs stay, slow ones turn once in 16 L, and the slowest not at all: the same at every scale above 1."""

    label = "truncated"
    source = "Giraffe (arXiv:2308.10882), as its code has it"

    def factors(self, base: Float[Tensor, " pairs"], scale: Scales, base_context_length: int) -> Frequencies:
        """Return 1, the factor that brings a pair to 1/16 rotation, or 0."""
        turns = rotations(base, base_context_length)
        slow = torch.where(turns >= LEAST, SLOWEST / turns, torch.zeros_like(turns))
        kept = torch.where(turns >= 1, torch.ones_like(turns), slow)
        return torch.where(scale[..., None] > 1, kept, torch.ones_like(kept))
