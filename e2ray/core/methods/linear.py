"""Position interpolation: all pairs are divided alike."""

from jaxtyping import Float
from torch import Tensor

from e2ray.core.methods.base import Frequencies, FrequencyMethod, Rope, Scales, kept_of


class Linear(FrequencyMethod):
    """F_j = 1 / g."""

    label = "linear"
    source = "position interpolation (arXiv:2306.15595), E2-LLM (arXiv:2401.06951)"

    def factors(self, base: Float[Tensor, " pairs"], scale: Scales, base_context_length: int) -> Frequencies:
        """Return 1 / g for every pair."""
        return (1 / scale)[..., None].expand(*scale.shape, len(base))

    def to_transformers(
        self, rope: Rope, base: Float[Tensor, " pairs"], scale: float, base_context_length: int
    ) -> Rope:
        """Return transformers' `linear`."""
        return kept_of(rope) | {"rope_type": "linear", "factor": float(scale)}
