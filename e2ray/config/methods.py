"""Every method by its name: what a scale does to the frequencies, and what is drawn, as data.

A pair j of head dimensions turns by position * inv_freq[j] * F_j(g), and cosines and sines are multiplied by a
temperature T(g). The formulas are in `core/methods/`, one object for each class of `METHODS`. Rotations of a
pair are its turns within the base context length L: r_j = L * inv_freq[j] / (2 pi).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from e2ray.config import kinds
from e2ray.config.base import LARGEST_SCALE, Settings


class MethodKind(Settings):
    """What a scale does to the frequencies; `trains` says whether rows can be drawn under it."""

    trains: ClassVar[bool] = True
    if TYPE_CHECKING:  # each member has its own, which recipes name where its class has one
        kind: str = ""


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
globals().update({each.__name__: each for each in METHODS})  # other processes find them by name
if TYPE_CHECKING:
    Method = MethodKind
    UntrainedMethod = MethodKind
else:
    Method = kinds.one_of(each for each in METHODS if each.trains)
    UntrainedMethod = kinds.one_of(METHODS)
# What is read without any training, by the name of its lane: all methods that need no settings.
UNTRAINED: dict[str, UntrainedMethod] = {
    each().kind: each() for each in METHODS if not any(field.is_required() for field in each.model_fields.values())
}


@dataclass(frozen=True)
class Draws:
    """Draws that have a name: a preset of a recipe, a trained lane of a comparison, or both.

    Attributes:
        label: Its name in tables and pictures.
        source: The paper, or otherwise whose it is.
        scale: How scales are drawn, without the largest one.
        placement: Where the jumps are.
        more: Further settings of `positions`.
        preset: Whether a recipe may name it; a study tries those that are `published`.
        lane: Whether a comparison may name it.
        published: Whether it is the method of others.
        compared: Its name in comparisons where that says more than its label.
    """

    label: str
    source: str
    scale: Mapping[str, object] = field(default_factory=dict)
    placement: Mapping[str, object] = field(default_factory=dict)
    more: Mapping[str, object] = field(default_factory=dict)
    preset: bool = True
    lane: bool = True
    published: bool = True
    compared: str = ""

    def positions(self, max_scale: float) -> dict[str, object]:
        """Return the settings of `positions` up to a largest scale, plain data."""
        return {"scale": {"max_scale": max_scale, **self.scale}, "placement": dict(self.placement), **self.more}

    @property
    def one_scale(self) -> bool:
        """Whether it trains for its largest scale alone, and is served at it whatever the length of the text."""
        return self.scale.get("kind") == "fixed"


_FIXED, _INTEGERS, _PREFIX, _STILL = (
    {"kind": "fixed"}, {"kind": "uniform_int"}, {"kind": "prefix", "prefix": 4}, {"kind": "none"},
)  # fmt: skip
_BREAK = {"kind": "random_breaks", "num_breaks": 1}
_HALF_NATIVE = {"kind": "log_uniform", "native_share": 0.5}
_YARN = {"method": {"kind": "yarn"}}
_PINNED = {"kind": "sorted_random", "pin_first": True, "pin_last": True}
_OURS = "this project"
# Every name of draws once, in the order of tables.
NAMED: dict[str, Draws] = {
    "e2llm": Draws("E²-LLM", "arXiv:2401.06951", _INTEGERS, _PREFIX, compared="E2-LLM (paper's preset)"),
    "e2llm_no_shift": Draws("E2-LLM without shift", _OURS, _INTEGERS, _STILL, preset=False),
    "e2llm_fixed_scale": Draws("E2-LLM, one fixed scale", _OURS, _FIXED, _PREFIX, preset=False),
    "pi_short": Draws("PI, short rows", _OURS, _FIXED, _STILL, preset=False),
    "pi_long": Draws("PI, long rows", "arXiv:2306.15595", _FIXED, _STILL, preset=False),
    "pose": Draws("PoSE", "arXiv:2309.10400", _FIXED, _BREAK),
    "randpos": Draws("RandPos", "arXiv:2305.16843", _FIXED, {"kind": "sorted_random"}),
    "cream": Draws("CREAM", "arXiv:2406.07138", _FIXED, {"kind": "head_middle_tail"}),
    "clex": Draws("CLEX", "arXiv:2310.16450", _INTEGERS, _PINNED, {"per": "step"}, compared="CLEX-style"),
    "endprompt": Draws("EndPrompt", "EndPrompt (May 2026)", _FIXED, {"kind": "terminal"}),
    "pi": Draws("PI", "arXiv:2306.15595, on short rows", _FIXED, _STILL, lane=False),
    "native": Draws("native", "training as usual", _FIXED | {"max_scale": 1.0}, _STILL, lane=False),
    "e2yarn": Draws("E²-LLM under YaRN", _OURS, _INTEGERS, _PREFIX, _YARN, lane=False, published=False),
    "recommended": Draws("recommended", _OURS, _HALF_NATIVE, _BREAK, _YARN, lane=False, published=False),
    "best": Draws("best of the search", "a study's recipe", preset=False),
}
PRESETS = tuple(name for name, draws in NAMED.items() if draws.preset)
PUBLISHED = tuple(name for name in PRESETS if NAMED[name].published)
TRAINED = tuple(name for name, draws in NAMED.items() if draws.lane)
if TYPE_CHECKING:
    UntrainedLane = str
else:
    UntrainedLane = Literal[tuple(UNTRAINED)]


def untrained_model(lane: str) -> str:
    """Return the model name, in the rows of an evaluation, of the base as a lane reads it without training."""
    return f"base_{lane}"
