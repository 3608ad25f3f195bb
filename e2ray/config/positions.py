"""One family of position draws as data: scale distribution x placement x jump distribution x frequency method.

Every published short-window method is a point of this family (a preset), so that a search can move
between published methods and past them. The densities are in the docstrings; `core/positions.py`
draws from them. G is the largest scale, T the room of a row: floor(max(0, g * L - R)) tokens for scale g,
base context length L and window R. u is uniform on [0, 1).
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from e2ray.config.base import LARGEST_SCALE, Plain, Settings
from e2ray.config.methods import NAMED, PRESETS, LinearMethod, Method

MaxScale = Annotated[
    float, Field(ge=1, le=LARGEST_SCALE, description="Largest scale G; serves contexts up to G * L tokens.")
]
NativeShare = Annotated[float, Field(ge=0, le=1, description="Share of the draws at exactly scale 1.")]


class FixedScale(Settings):
    """Every draw is G."""

    kind: Literal["fixed"] = "fixed"
    max_scale: MaxScale
    native_share: NativeShare = 0.0


class UniformIntScale(Settings):
    """Integers 1 to G, all equally likely: the scale distribution of E2-LLM (Eq. 6)."""

    kind: Literal["uniform_int"] = "uniform_int"
    max_scale: MaxScale
    native_share: NativeShare = 0.0

    @field_validator("max_scale")
    @classmethod
    def _whole(cls, value: float) -> float:
        if value != int(value):
            raise ValueError(f"must be a whole number for uniform_int, got {value}")
        return value


class UniformScale(Settings):
    """1 + (G - 1) * u: a real scale, uniform on [1, G)."""

    kind: Literal["uniform"] = "uniform"
    max_scale: MaxScale
    native_share: NativeShare = 0.0


class LogUniformScale(Settings):
    """G ** u: as many draws between 1 and 2 as between 8 and 16."""

    kind: Literal["log_uniform"] = "log_uniform"
    max_scale: MaxScale
    native_share: NativeShare = 0.0


class PowerScale(Settings):
    """Density proportional to g ** exponent on [1, G]; -1 is log-uniform, 0 is uniform."""

    kind: Literal["power"] = "power"
    max_scale: MaxScale
    exponent: float = Field(ge=-10, le=10, description="Exponent a of the density g ** a.")
    native_share: NativeShare = 0.0


class BetaScale(Settings):
    """1 + (G - 1) * Beta(a, b)."""

    kind: Literal["beta"] = "beta"
    max_scale: MaxScale
    a: float = Field(gt=0, le=100, description="First shape parameter of the beta distribution.")
    b: float = Field(gt=0, le=100, description="Second shape parameter of the beta distribution.")
    native_share: NativeShare = 0.0


class ScaleWeight(Settings):
    """One scale of a choice and how often it is drawn, relative to the others."""

    scale: float = Field(ge=1, le=LARGEST_SCALE, description="The scale.")
    weight: float = Field(gt=0, le=1e9, description="Its weight; weights need not sum to 1.")


class ChoiceScale(Settings):
    """One of the listed scales, each as likely as its weight."""

    kind: Literal["choice"] = "choice"
    choices: tuple[ScaleWeight, ...] = Field(min_length=1, strict=False, description="Scales and weights.")
    native_share: NativeShare = 0.0

    @field_validator("choices")
    @classmethod
    def _distinct(cls, value: tuple[ScaleWeight, ...]) -> tuple[ScaleWeight, ...]:
        if len({choice.scale for choice in value}) != len(value):
            raise ValueError(f"must name each scale once, got {[choice.scale for choice in value]}")
        return value

    @property
    def max_scale(self) -> float:
        """The largest scale listed."""
        return max(choice.scale for choice in self.choices)


Scale = Annotated[
    FixedScale | UniformIntScale | UniformScale | LogUniformScale | PowerScale | BetaScale | ChoiceScale,
    Field(discriminator="kind"),
]


class UniformJump(Settings):
    """A whole number of tokens, uniform on {0, ..., T}."""

    kind: Literal["uniform"] = "uniform"


class BetaJump(Settings):
    """round(T * Beta(a, b)) tokens."""

    kind: Literal["beta"] = "beta"
    a: float = Field(gt=0, le=100, description="First shape parameter of the beta distribution.")
    b: float = Field(gt=0, le=100, description="Second shape parameter of the beta distribution.")


class EndsJump(Settings):
    """T with probability p, else uniform on {0, ..., T}."""

    kind: Literal["ends"] = "ends"
    p: float = Field(ge=0, le=1, description="Probability of the full room T.")


Jump = Annotated[UniformJump | BetaJump | EndsJump, Field(discriminator="kind")]


class NonePlacement(Settings):
    """No jumps: tokens stand side by side (position interpolation on a short row; native at scale 1)."""

    kind: Literal["none"] = "none"


class PrefixPlacement(Settings):
    """One jump behind the first `prefix` tokens, which never move: the shift of E2-LLM (Eq. 7)."""

    kind: Literal["prefix"] = "prefix"
    prefix: int = Field(4, ge=0, description="Leading tokens that are never shifted.")
    jump: Jump = UniformJump()


class RandomBreaksPlacement(Settings):
    """Jumps at `num_breaks` distinct random places in 1..R-1, sorted: PoSE's chunks."""

    kind: Literal["random_breaks"] = "random_breaks"
    num_breaks: int = Field(1, ge=1, description="Breaks in the window; one break makes two chunks.")
    jump: Jump = UniformJump()


class SortedRandomPlacement(Settings):
    """R of the integers {0, ..., R+T-1} without replacement, sorted: RandPos; both ends pinned: CLEX."""

    kind: Literal["sorted_random"] = "sorted_random"
    pin_first: bool = Field(False, description="The first token always stands at 0.")
    pin_last: bool = Field(False, description="The last token always stands at R + T - 1.")


class HeadMiddleTailPlacement(Settings):
    """Head and tail of `tokens` at both ends of R + T, the rest one block in between: CREAM.

    The block's centre is a Gaussian about the middle, truncated to the free range.
    """

    kind: Literal["head_middle_tail"] = "head_middle_tail"
    tokens: int = Field(32, ge=1, description="Tokens of the head, and of the tail.")
    sigma: float = Field(0.2, gt=0, le=10, description="Standard deviation as a share of the free range.")


class TerminalPlacement(Settings):
    """The last `tokens` tokens move by the jump, by default the whole room T: EndPrompt."""

    kind: Literal["terminal"] = "terminal"
    tokens: int = Field(32, ge=1, description="Tokens of the terminal segment.")
    jump: Jump = EndsJump(p=1.0)


class ChunksPlacement(Settings):
    """Equal chunks, each starting anywhere in its own share of R + T: LOGO's continuous chunks."""

    kind: Literal["chunks"] = "chunks"
    num_chunks: int = Field(16, ge=1, description="Chunks in the window.")


Placement = Annotated[
    NonePlacement
    | PrefixPlacement
    | RandomBreaksPlacement
    | SortedRandomPlacement
    | HeadMiddleTailPlacement
    | TerminalPlacement
    | ChunksPlacement,
    Field(discriminator="kind"),
]


def preset(name: str, max_scale: float) -> dict[str, object]:
    """Return the settings of a method as plain data (`scale`, `placement`, `per`, `method`).

    `e2yarn`, the paper's draws under YaRN, and `recommended`, what this project has measured best, are ours.
    `max_scale`, at least 1, is what the method trains for; `native` ignores it.
    """
    if name not in PRESETS:
        raise ValueError(f"must be one of {', '.join(PRESETS)}, got {name!r}")
    return NAMED[name].positions(max_scale)


def _with_presets(schema: Plain) -> None:
    """Add the form with `preset` to the JSON schema of `PositionSettings`, whose fields are the resolved form."""
    shared: Plain = {"additionalProperties": False, "type": "object"}
    properties = schema.pop("properties")
    assert isinstance(properties, dict)
    resolved: Plain = shared | {"properties": properties, "required": schema.pop("required")}
    named: Plain = {
        "preset": {"enum": list(PRESETS), "description": "A published method, or one of ours."},
        "max_scale": {"type": "number", "minimum": 1, "description": "The scale it trains for; native takes none."},
        "placement": properties["placement"],
        "per": properties["per"],
        "method": properties["method"],
    }
    native: Plain = {"properties": {"preset": {"const": "native"}}}
    preset_form: Plain = shared | {
        "properties": named,
        "required": ["preset"],
        "anyOf": [native, {"required": ["max_scale"]}],
    }
    for key in shared:
        schema.pop(key)
    schema["anyOf"] = [resolved, preset_form]


class PositionSettings(Settings):
    """How positions are drawn for training rows.

    Either `preset` and `max_scale`, or `scale` and `placement`. A preset is expanded at once, so the
    resolved settings hold only what it stands for; `placement`, `per` or `method` beside a preset replace its own.
    """

    model_config = ConfigDict(json_schema_extra=_with_presets)

    scale: Scale = Field(description="Distribution of the scale g, which divides positions.")
    placement: Placement = Field(description="Where in the window the jumps are.")
    per: Literal["sequence", "step"] = Field(
        "sequence", description="One draw per training row, or one shared by all rows of a step."
    )
    method: Method = Field(LinearMethod(), description="What a scale does to the frequencies of the pairs.")

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, value: object) -> object:
        if not isinstance(value, dict) or "preset" not in value:
            return value
        rest = dict(value)
        name, max_scale = rest.pop("preset"), rest.pop("max_scale", None)
        if "scale" in rest:
            raise ValueError("takes either preset or scale, not both; leave preset out")
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
        if name == "native":
            max_scale = 1.0 if max_scale is None else max_scale
        if isinstance(max_scale, bool) or not isinstance(max_scale, int | float) or max_scale < 1:
            raise ValueError(f"preset {name!r} needs max_scale, a number of at least 1, got {max_scale!r}")
        return preset(name, max_scale) | rest

    @property
    def max_scale(self) -> float:
        """The largest scale that can be drawn."""
        return self.scale.max_scale

    def serve_at(self, ratio: float) -> float:
        """Return the scale at which a model of these draws reads a text of `ratio` * L tokens.

        Where scales come from a list it is the smallest of them that reaches the text, else the largest; where they
        come from a range, or are always 1, it is the paper's, W / L.
        """
        drawn: set[float] = set()
        if isinstance(self.scale, FixedScale):
            drawn = {self.scale.max_scale}
        elif isinstance(self.scale, ChoiceScale):
            drawn = {choice.scale for choice in self.scale.choices}
        if drawn and self.scale.native_share:
            drawn |= {1.0}
        if not drawn or max(drawn) == 1:
            return max(1.0, ratio)
        return min((scale for scale in drawn if scale >= ratio * (1 - 1e-9)), default=max(drawn))

    def check_window(self, window: int) -> None:
        """Raise ValueError if the placement does not fit a window of `window` tokens."""
        placement, requirement = self.placement, None
        match placement:
            case PrefixPlacement() if placement.prefix >= window:
                requirement = f"prefix below the window ({window}), got {placement.prefix}"
            case RandomBreaksPlacement() if placement.num_breaks > window - 1:
                requirement = f"num_breaks of at most {window - 1} (window - 1), got {placement.num_breaks}"
            case HeadMiddleTailPlacement() if 2 * placement.tokens >= window:
                requirement = f"2 * tokens below the window ({window}), got tokens = {placement.tokens}"
            case TerminalPlacement() if placement.tokens >= window:
                requirement = f"tokens below the window ({window}), got {placement.tokens}"
            case ChunksPlacement() if window % placement.num_chunks:
                requirement = f"num_chunks that divides the window ({window}), got {placement.num_chunks}"
        if requirement:
            raise ValueError(f"{placement.kind} needs {requirement}")
