"""NTK-aware scaling: a larger base frequency, for all texts or growing with the text."""

import torch
from jaxtyping import Float
from torch import Tensor

from e2ray.core.methods.base import Frequencies, FrequencyMethod, Rope, Scales, kept_of


class Ntk(FrequencyMethod):
    """F_j = g ** (-2j / (d - 2)) for d dimensions of a head, that is d / 2 pairs."""

    label = "NTK"
    source = "NTK-aware scaled RoPE, as code that reads LLaMA has it (June 2023)"

    def factors(self, base: Float[Tensor, " pairs"], scale: Scales, base_context_length: int) -> Frequencies:
        """Return 1 for the first pair, falling to 1 / g for the last."""
        pairs = torch.arange(len(base), dtype=torch.float64, device=base.device)
        return scale[..., None] ** (-pairs / max(len(base) - 1, 1))

    def to_transformers(
        self, rope: Rope, base: Float[Tensor, " pairs"], scale: float, base_context_length: int
    ) -> Rope:
        """Return plain RoPE of a larger base frequency, rope_theta * g ** (d / (d - 2))."""
        dimension = 2 * len(base)
        grown = float(rope["rope_theta"]) * float(scale) ** (dimension / (dimension - 2))
        return kept_of(rope) | {"rope_type": "default", "rope_theta": grown}


class DynamicNtk(Ntk):
    """NTK at the scale that a text of n tokens needs: g * n / L - (g - 1) beyond L, 1 up to there."""

    label = "dynamic NTK"
    source = "transformers' `dynamic`"
    needs_length = True

    @staticmethod
    def scale_of(scale: float, length: int, base_context_length: int) -> float:
        """Return the scale of NTK for a text.

        Args:
            scale: g >= 1, of the longest text served.
            length: n, tokens of the text.
            base_context_length: L in tokens.
        """
        return max(1.0, scale * length / base_context_length - (scale - 1))

    def to_transformers(
        self, rope: Rope, base: Float[Tensor, " pairs"], scale: float, base_context_length: int
    ) -> Rope:
        """Return transformers' `dynamic`, whose scale is that of the longest text; L is the config's own length."""
        return kept_of(rope) | {"rope_type": "dynamic", "factor": float(scale)}
