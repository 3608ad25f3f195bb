"""The space that a study searches where its recipe names none: draws, methods, objectives and the learning rate."""

from e2ray.config.positions import PositionSettings
from e2ray.config.search import Choice, FloatRange, IntRange, Space, Value

SCALE, PLACEMENT, METHOD = "positions.scale.", "positions.placement.", "positions.method."
JUMP, TEMPERATURE = f"{PLACEMENT}jump.", f"{METHOD}temperature."
When = dict[str, tuple[Value, ...]]


def family(positions: PositionSettings, *, window: int, lr: float, packed: bool = False) -> Space:
    """Return the default space: the family of draws, methods, objectives, and a factor of 3 around the learning rate.

    Every trial keeps the largest scale of the recipe's positions; `window` bounds what fits into a row. Packed rows
    hold several texts, for which there are no weights by distance.
    """
    chunks = tuple(n for n in (2, 4, 8, 16, 32) if window % n == 0 and n <= window // 2)
    space: Space = {"train.lr": FloatRange(low=lr / 3, high=min(lr * 3, 1.0), log=True)}
    space |= _scales(positions.max_scale) | _placements(window, chunks)
    space["positions.per"] = Choice(options=("sequence", "step"))
    space |= _methods()
    space["train.objective.distill"] = FloatRange(low=0.0, high=1.0)
    if not packed:
        space["train.objective.distance_weights"] = Choice(options=(False, True))
    return space | _ends_and_chunks(window, chunks)


def _beta(section: str) -> Space:
    """Return the two shapes of a beta distribution."""
    shape = FloatRange(low=0.3, high=5.0, log=True, when={f"{section}kind": ("beta",)})
    return {f"{section}a": shape, f"{section}b": shape}


def _scales(max_scale: float) -> Space:
    """Return how scales are drawn up to a largest one."""
    kinds = ("uniform_int", "uniform", "log_uniform", "power", "beta", "fixed")
    return {
        f"{SCALE}kind": Choice(options=kinds if max_scale == int(max_scale) else kinds[1:]),
        f"{SCALE}native_share": FloatRange(low=0.0, high=0.8),
        f"{SCALE}exponent": FloatRange(low=-3.0, high=1.0, when={f"{SCALE}kind": ("power",)}),
        **_beta(SCALE),
    }


def _placements(window: int, chunks: tuple[int, ...]) -> Space:
    """Return where the jumps are in a window, and how far they go."""
    kinds = ["prefix", "random_breaks", "none", "sorted_random"]
    kinds += ["head_middle_tail", "terminal"] if window >= 16 else []
    kinds += ["chunks"] if chunks else []
    kind, jumping = f"{PLACEMENT}kind", [kind for kind in ("prefix", "random_breaks", "terminal") if kind in kinds]
    prefix, breaks = max(2, window // 4), max(2, min(16, window // 8))
    return {
        kind: Choice(options=tuple(kinds)),
        f"{PLACEMENT}prefix": IntRange(low=1, high=prefix, log=True, when={kind: ("prefix",)}),
        f"{PLACEMENT}num_breaks": IntRange(low=1, high=breaks, log=True, when={kind: ("random_breaks",)}),
        f"{PLACEMENT}pin_first": Choice(options=(False, True), when={kind: ("sorted_random",)}),
        f"{PLACEMENT}pin_last": Choice(options=(False, True), when={kind: ("sorted_random",)}),
        f"{JUMP}kind": Choice(options=("uniform", "ends", "beta"), when={kind: tuple(jumping)}),
        f"{JUMP}p": FloatRange(low=0.0, high=1.0, when={f"{JUMP}kind": ("ends",)}),
        **_beta(JUMP),
    }


def _ends_and_chunks(window: int, chunks: tuple[int, ...]) -> Space:
    """Return the settings of placements that need a longer window, or one that splits into equal chunks."""
    kind, space = f"{PLACEMENT}kind", Space()
    if window >= 16:
        longest, ends = max(4, window // 4), When({kind: ("head_middle_tail", "terminal")})
        space[f"{PLACEMENT}tokens"] = IntRange(low=2, high=longest, log=True, when=ends)
        space[f"{PLACEMENT}sigma"] = FloatRange(low=0.05, high=1.0, log=True, when={kind: ("head_middle_tail",)})
    if chunks:
        space[f"{PLACEMENT}num_chunks"] = Choice(options=chunks, when={kind: ("chunks",)})
    return space


def _methods() -> Space:
    """Return the settings of the method: what a scale does to the frequencies."""
    ramped = When({f"{METHOD}kind": ("yarn", "ramp_power")})  # methods with two ends and a temperature
    return {
        f"{METHOD}kind": Choice(options=("linear", "yarn", "ramp_power", "ntk")),
        f"{METHOD}fast": FloatRange(low=4.0, high=64.0, log=True, when=ramped),
        f"{METHOD}slow": FloatRange(low=0.25, high=3.0, log=True, when=ramped),
        f"{TEMPERATURE}kind": Choice(options=("log", "none"), when=ramped),
        f"{TEMPERATURE}coefficient": FloatRange(low=0.0, high=0.3, when={f"{TEMPERATURE}kind": ("log",)}),
    }
