"""What a scale does to the frequencies: the second axis of the family, as data.

A pair j of head dimensions turns by position * inv_freq[j] * F_j(g), and cosines and sines are multiplied by a
temperature T(g). The formulas stand in `core/methods/`, one object for each class of `METHODS`. Rotations of a
pair are its turns within the base context length L: r_j = L * inv_freq[j] / (2 pi).
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from e2ray.config import kinds
from e2ray.config.base import LARGEST_SCALE, Settings


class MethodKind(Settings):
    """What a scale does to the frequencies; `trains` says whether rows can be drawn under it."""

    trains: ClassVar[bool] = True
    kind: str = ""  # each member says its own


class NoTemperature(Settings):
    """T(g) = 1: attention as it is."""

    kind: Literal["none"] = "none"


class LogTemperature(Settings):
    """T(g) = coefficient * ln(g) + 1: YaRN's (arXiv:2309.00071, Eq. 22), with 0.1."""

    kind: Literal["log"] = "log"
    coefficient: float = Field(0.1, ge=-1, le=1, description="What ln(g) is multiplied by.")


Temperature = Annotated[NoTemperature | LogTemperature, Field(discriminator="kind")]


class LinearMethod(MethodKind):
    """F_j = 1 / g: positions are divided, as in position interpolation and E2-LLM."""

    kind: Literal["linear"] = "linear"


class NtkMethod(MethodKind):
    """F_j = g ** (-2j / (d - 2)): a larger base frequency; the fastest pair stays, the slowest is divided by g."""

    kind: Literal["ntk"] = "ntk"


class _Ramped(MethodKind):
    """A method that keeps fast pairs, divides slow ones by g, and does something between in between."""

    fast: float = Field(32.0, gt=0, le=1e6, description="Rotations in L from which on a pair keeps its frequency.")
    slow: float = Field(1.0, gt=0, le=1e6, description="Rotations in L up to which a pair is divided by g.")
    temperature: Temperature = LogTemperature()

    @model_validator(mode="after")
    def _in_order(self) -> "_Ramped":
        if self.fast <= self.slow:
            raise ValueError(f"fast: must be above slow ({self.slow:g} rotations), got {self.fast:g}")
        return self


class YarnMethod(_Ramped):
    """F_j = k_j + (1 - k_j) / g, k_j from 1 to 0 between `fast` and `slow`, linear in j: YaRN (arXiv:2309.00071)."""

    kind: Literal["yarn"] = "yarn"


class RampPowerMethod(_Ramped):
    """F_j = g ** -(q (q + 1) / (n (n + 1))), q = clip(j - l, 0, n): MrRoPE-Pro (arXiv:2601.22181).

    l is the last pair of at least `fast` rotations, l + n the first of fewer than `slow`.
    """

    kind: Literal["ramp_power"] = "ramp_power"


class FactorsMethod(MethodKind):
    """F_j = factors[j] ** (-ln g / ln max_scale): LongRoPE's list, found by search at one scale (arXiv:2402.13753)."""

    kind: Literal["factors"] = "factors"
    factors: tuple[float, ...] = Field(
        strict=False, min_length=1, description="What divides each pair's frequency at max_scale, fastest pair first."
    )
    max_scale: float = Field(gt=1, le=LARGEST_SCALE, description="The scale that the list was found for.")
    temperature: Temperature = LogTemperature()

    @field_validator("factors")
    @classmethod
    def _at_least_one(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 1 <= each <= LARGEST_SCALE for each in value):
            raise ValueError(f"must be 1 to {LARGEST_SCALE} each, got {min(value):g} to {max(value):g}")
        return value


class TruncatedMethod(MethodKind):
    """Pairs that turn at least once in L stay; slower ones turn once in 16 L, or not at all below 1/8 rotation.

    The same at every g > 1. Source: Giraffe (arXiv:2308.10882) and its code.
    """

    kind: Literal["truncated"] = "truncated"


class DynamicNtkMethod(MethodKind):
    """NTK at g * n / L - (g - 1) for a text of n > L tokens, transformers' `dynamic`; untrained only: it needs n."""

    trains: ClassVar[bool] = False
    kind: Literal["dynamic_ntk"] = "dynamic_ntk"


# Every method once, in the order of tables, and its object.
METHODS: dict[type[MethodKind], str] = {
    LinearMethod: "e2ray.core.methods.linear.Linear",
    NtkMethod: "e2ray.core.methods.ntk.Ntk",
    DynamicNtkMethod: "e2ray.core.methods.ntk.DynamicNtk",
    YarnMethod: "e2ray.core.methods.ramped.Yarn",
    RampPowerMethod: "e2ray.core.methods.ramped.RampPower",
    FactorsMethod: "e2ray.core.methods.listed.Factors",
    TruncatedMethod: "e2ray.core.methods.listed.Truncated",
}
globals().update({each.__name__: each for each in METHODS})  # by which other processes find them
if TYPE_CHECKING:
    Method = MethodKind
    UntrainedMethod = MethodKind
else:
    Method = kinds.one_of(each for each in METHODS if each.trains)
    UntrainedMethod = kinds.one_of(METHODS)
# What is read without any training, by the name of its lane: all that need no settings.
UNTRAINED: dict[str, UntrainedMethod] = {
    each().kind: each() for each in METHODS if not any(field.is_required() for field in each.model_fields.values())
}
