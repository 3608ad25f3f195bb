"""What every frequency method provides."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from e2ray.config.base import Settings, SettingsError
from e2ray.config.methods import (
    FactorsMethod,
    LogTemperature,
    NoTemperature,
    RampPowerMethod,
    Temperature,
    YarnMethod,
)

Rope = dict[str, Any]  # rope parameters as a config of transformers has them, flat or by layer type
Scales = Float[Tensor, "*rows"]
Frequencies = Float[Tensor, "*rows pairs"]


class FrequencyMethod(ABC):
    """What a scale does to the frequencies of a rotary module and to the temperature of its attention.

    Attributes:
        label: Its name in tables and pictures.
        source: The paper or program that it is from.
        needs_length: Whether its frequencies depend on the length of a text.
        num_pairs: Of the heads that it is made for, None where it fits any.
    """

    label: ClassVar[str]
    source: ClassVar[str]
    needs_length: ClassVar[bool] = False
    num_pairs: int | None = None

    def __init__(self, settings: Settings | None = None) -> None:
        """Take the settings, which a method that has none may go without."""
        self.settings = settings

    @abstractmethod
    def factors(self, base: Float[Tensor, " pairs"], scale: Scales, base_context_length: int) -> Frequencies:
        """Return F_j(g), what each pair's frequency is multiplied by, 0 to 1.

        Args:
            base: The module's own inverse frequencies in rad per position, fastest first, float64.
            scale: g >= 1, float64; one number or one per row.
            base_context_length: L in tokens.

        Returns:
            float64, one row of pairs for each scale; 1 everywhere at g = 1.
        """

    def temperature(self, scale: Scales) -> Scales:
        """Return T(g), what cosines and sines are multiplied by, in the dtype and shape of `scale`."""
        return torch.ones_like(scale)

    def refuse_pairs(self, *pairs: int) -> None:
        """Raise SettingsError if the method does not fit rotary modules with these numbers of pairs."""
        for count in pairs:
            if self.num_pairs not in (None, count):
                raise SettingsError(
                    f"positions.method.factors: has {self.num_pairs} numbers, the model's heads have {count} pairs; "
                    "give one for each"
                )

    def frequencies(self, base: Float[Tensor, " pairs"], scale: Scales, base_context_length: int) -> Frequencies:
        """Return the inverse frequencies under a scale, float32, rounded once.

        Args:
            base: The module's own, rad per position, fastest first.
            scale: g >= 1; one number or one per row.
            base_context_length: L in tokens.

        Raises:
            SettingsError: If the method does not fit the module's number of pairs.
        """
        return (base.double() * self.factors(base.double(), scale.double(), base_context_length)).float()

    def to_transformers(
        self, rope: Rope, base: Float[Tensor, " pairs"], scale: float, base_context_length: int
    ) -> Rope:
        """Return rope parameters with which transformers, unhooked, reads as the hook does at a scale.

        Args:
            rope: Those of the base's config, for the layers that see far; plain RoPE.
            base: Inverse frequencies that they make, rad per position, float32.
            scale: g >= 1.
            base_context_length: L in tokens.

        Raises:
            SettingsError: If no rope type of transformers can express it.
        """
        return self.to_longrope(rope, base, scale, base_context_length)

    def to_longrope(self, rope: Rope, base: Float[Tensor, " pairs"], scale: float, base_context_length: int) -> Rope:
        """Return the same as `longrope`: factors per pair for short texts and for long ones, and an attention factor.

        Some classes, Phi-3 among them, know no other type. Arguments and errors are those of `to_transformers`.
        """
        kept = self.factors(base.double(), torch.tensor(float(scale), dtype=torch.float64), base_context_length)
        if not bool((kept > 0).all()):
            raise SettingsError(
                f"{self.label}: some of its pairs stand still, which no rope type of transformers can say; "
                "read it with e2ray, or choose another method"
            )
        factors = (1 / kept).tolist()  # exactly 1 for a pair that is left alone
        return kept_of(rope) | {
            "rope_type": "longrope",
            "factor": float(scale),
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": float(self.temperature(torch.tensor(float(scale), dtype=torch.float64))),
            "original_max_position_embeddings": base_context_length,
        }


Tempered = TypeVar("Tempered", YarnMethod, RampPowerMethod, FactorsMethod)


class TemperedMethod(FrequencyMethod, Generic[Tempered]):
    """A method whose settings name a temperature."""

    def __init__(self, settings: Tempered) -> None:
        """Take the settings."""
        self.settings: Tempered = settings

    def temperature(self, scale: Scales) -> Scales:
        """Return the temperature that the settings name."""
        return temperature_of(self.settings.temperature, scale)


def kept_of(rope: Rope) -> Rope:
    """Return the rope parameters beside the type: base frequency, and the share of a head that is rotated."""
    return {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if rope.get(key) is not None}


def temperature_of(settings: Temperature, scale: Scales) -> Scales:
    """Return T(g) of a setting."""
    match settings:
        case NoTemperature():
            return torch.ones_like(scale)
        case LogTemperature():
            return settings.coefficient * scale.log() + 1


def rotations(base: Float[Tensor, " pairs"], base_context_length: int) -> Float[Tensor, " pairs"]:
    """Return how often each pair turns within L tokens."""
    return base_context_length * base / (2 * math.pi)


def pair_of(base: Float[Tensor, " pairs"], turns: float, base_context_length: int) -> float:
    """Return the index, real and counted from 0, at which a pair would turn `turns` times within L.

    The logarithm of the rotations is linear in the pair's index for plain RoPE; between the pairs of another, and
    beyond its ends, the line through the nearest two is taken.
    """
    logs = rotations(base, base_context_length).log()
    log_turns = math.log(turns)
    last = len(logs) - 1
    if not last:
        return 0.0 if log_turns <= float(logs[0]) else -1.0
    below = int((logs > log_turns).sum())  # pairs that turn more often
    start = min(max(below - 1, 0), last - 1)
    step = float(logs[start] - logs[start + 1])
    return start + float(logs[start] - log_turns) / step
