"""From values of searched settings to a recipe, and the check of a space against the settings it names.

A parameter is a dotted path into the recipe. Where a path ends in `kind`, another value makes its section another
class: what the new class also has is kept from the recipe, the rest is dropped, and what it needs must be searched
too. So the published methods and everything between them are points of one space.
"""

import json
import random
from collections.abc import Iterator, Mapping
from itertools import product
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from e2ray.config.base import Settings
from e2ray.config.positions import PositionSettings
from e2ray.config.search import Choice, FloatRange, IntRange, Parameter, Space, Value

Recipe = dict[str, Any]
SHARED = ("name", "storage", "seed", "search", "cluster", "evaluate", "export", "pretrain", "data", "model")
OWN = ("model.lora.",)  # below a shared section, and yet a trial's own
UNSEARCHED = (  # the budget, by which trials are compared, and what changes no loss
    "train.steps",
    "train.batch_sequences",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.progress_s",
    "train.watch_every",
    "train.watch_documents",
    "train.stop.price_at_base",
    "train.zero_stage",
    "train.offload",
    "train.precision",
    "train.micro_batch_sequences",
)
RAMPED = ("yarn", "ramp_power")  # methods with two ends and a temperature
RANDOM_POINTS = 200  # of a space that are tried before any trial
SHOWN_LENGTH = 200


def assign(recipe: Mapping[str, Any], params: Mapping[str, Value], root: type[Settings]) -> Recipe:
    """Return a recipe with the values of searched settings put in their places.

    Args:
        recipe: A resolved recipe as plain data (no presets).
        params: Values by dotted path.
        root: The class of a recipe, which tells what a section of another `kind` keeps.

    Raises:
        ValueError: If a path leads through a plain value.
    """
    made = json.loads(json.dumps(recipe))
    for path in sorted(params, key=lambda path: (path.count("."), not path.endswith(".kind"))):
        *parents, last = path.split(".")
        place: Any = made
        classes: list[type[BaseModel]] = [root]
        for depth, part in enumerate(parents):
            classes = [found for cls in classes for found in _sections(cls, part)]
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ValueError(f"{path}: {'.'.join(parents[: depth + 1])} is {place!r}, not a section")
        if last == "kind" and place.get("kind") != params[path]:
            kept = _keys_of(classes, params[path])
            for key in [key for key in place if key not in kept]:
                del place[key]
        place[last] = params[path]
    return made


def active(space: Space, path: str, params: Mapping[str, Value]) -> bool:
    """Return whether a parameter applies beside the values that were chosen before it."""
    return all(key in params and params[key] in values for key, values in space[path].when.items())


def in_order(space: Space) -> list[str]:
    """Return the paths of a space, each behind those its conditions name.

    Raises:
        ValueError: If a condition names no parameter of the space, or conditions go in a circle.
    """
    ordered: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [path for path in waiting if all(key in ordered for key in space[path].when)]
        for path in waiting:
            for key in space[path].when:
                if key not in space:
                    raise ValueError(
                        f"{path}: when: {key} is no parameter of the space; add it or take the condition out"
                    )
        if not ready:
            raise ValueError(f"{waiting[0]}: when: its conditions go in a circle through {', '.join(waiting)}")
        ordered += ready
        waiting = [path for path in waiting if path not in ordered]
    return ordered


def express(
    space: Space, recipe: Mapping[str, Any], root: type[Settings], target: Mapping[str, Any]
) -> dict[str, Value]:
    """Return the values that turn the recipe into `target`'s positions; empty if the space cannot.

    Args:
        space: The searched settings.
        recipe: A resolved recipe as plain data.
        root: The class of a recipe.
        target: The same recipe with other `positions`.
    """
    params: dict[str, Value] = {}
    for path in in_order(space):
        if not active(space, path, params):
            continue
        value = lookup(target, path)
        parameter = space[path]
        if value is MISSING or not contains(parameter, value):
            return {}
        if isinstance(parameter, Choice):
            value = next(option for option in parameter.options if _same(option, value))
        params[path] = value
    return params if validated(assign(recipe, params, root), root) == validated(target, root) else {}


MISSING = object()


def lookup(recipe: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path, or MISSING."""
    place: Any = recipe
    for part in path.split("."):
        if not isinstance(place, Mapping) or part not in place:
            return MISSING
        place = place[part]
    return place


def contains(parameter: Parameter, value: Any) -> bool:
    """Return whether a parameter can take a value."""
    if isinstance(parameter, Choice):
        return any(_same(option, value) for option in parameter.options)
    return isinstance(value, int | float) and not isinstance(value, bool) and parameter.low <= value <= parameter.high


def _same(option: Value, value: Any) -> bool:
    """Return whether two values are one setting: 1 is 1.0 and not true."""
    return isinstance(option, bool) == isinstance(value, bool) and option == value


def random_points(space: Space, count: int, seed: int) -> Iterator[dict[str, Value]]:
    """Yield points of a space, each parameter uniform over what it can take."""
    generator, order = random.Random(seed), in_order(space)
    for _ in range(count):
        params: dict[str, Value] = {}
        for path in order:
            if active(space, path, params):
                params[path] = _random_value(space[path], generator)
        yield params


def _random_value(parameter: Parameter, generator: random.Random) -> Value:
    if isinstance(parameter, Choice):
        return generator.choice(parameter.options)
    if isinstance(parameter, IntRange):
        return generator.randint(parameter.low, parameter.high)
    return generator.uniform(parameter.low, parameter.high)


def validated(recipe: Mapping[str, Any], root: type[Settings]) -> Recipe:
    """Return a recipe as its class resolves it, as plain data."""
    return root.model_validate(dict(recipe)).model_dump(mode="json")


def check(space: Space, recipe: Mapping[str, Any], root: type[Settings]) -> None:
    """Check a space against the settings it names, by putting both ends of every parameter into the recipe.

    Args:
        space: The searched settings.
        recipe: The resolved recipe they belong to, as plain data, without its `search` section.
        root: The class of a recipe.

    Raises:
        ValueError: For the first parameter that names no setting, or a value that the setting refuses.
    """
    for path, parameter in space.items():
        _check_path(path, root)
        if not isinstance(parameter, Choice):
            if parameter.low >= parameter.high:
                raise ValueError(f"{path}: low must be below high, got {parameter.low:g} and {parameter.high:g}")
            if parameter.log and parameter.low <= 0:
                raise ValueError(f"{path}: log needs low above 0, got {parameter.low:g}")
    order = in_order(space)
    for path in order:
        for end, value in ends(space[path]):
            for params in _contexts(space, order, path, value):
                _check_value(recipe, root, path, end, value, params)
    for params in random_points(space, RANDOM_POINTS, seed=0):
        try:
            root.model_validate(assign(recipe, params, root))
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in detail["loc"])
            text = str(detail.get("ctx", {}).get("error", detail["msg"]))[:SHOWN_LENGTH]
            shown = ", ".join(
                f"{path} = {value!r}" for path, value in params.items() if _matters(recipe, root, params, path)
            )
            raise ValueError(
                f"{shown or where}: values that each fit do not fit together: {text}; narrow the space, or part it "
                "with `when`"
            ) from None


def _matters(recipe: Mapping[str, Any], root: type[Settings], params: Mapping[str, Value], path: str) -> bool:
    """Return whether the recipe is sound as soon as this value is left out."""
    try:
        root.model_validate(assign(recipe, {key: value for key, value in params.items() if key != path}, root))
    except ValueError:
        return False
    return True


def ends(parameter: Parameter) -> list[tuple[str, Value]]:
    """Return the values to check, with the key each one stands under."""
    if isinstance(parameter, Choice):
        return [("options", option) for option in parameter.options]
    return [("low", parameter.low), ("high", parameter.high)]


def _check_path(path: str, root: type[Settings]) -> None:
    section = path.split(".")[0]
    if path in UNSEARCHED:
        raise ValueError(
            f"{path}: is the same for all trials, or they could not be compared; set it in search.trial or the recipe"
        )
    if section in SHARED and not path.startswith(OWN):
        raise ValueError(
            f"{path}: is shared by all trials (their rows, documents and base model); search settings of positions, "
            "train or model.lora"
        )
    classes: list[type[BaseModel]] = [root]
    *parents, last = path.split(".")
    for part in parents:
        classes = [found for cls in classes for found in _sections(cls, part)]
    fields = [cls.model_fields[last] for cls in classes if last in cls.model_fields]
    if not fields:
        known = sorted({name for cls in classes for name in cls.model_fields})
        wanted = f"{'.'.join(parents)} has {', '.join(known)}" if known else f"there is no section {'.'.join(parents)}"
        raise ValueError(f"{path}: is no setting; {wanted}")
    if any(_classes(field.annotation) for field in fields):
        raise ValueError(f"{path}: is a section; search its settings, e.g. {path}.kind")


def _check_value(
    recipe: Mapping[str, Any], root: type[Settings], path: str, end: str, value: Value, params: dict[str, Value]
) -> None:
    try:
        root.model_validate(assign(recipe, params, root))
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in detail["loc"])
        text = str(detail.get("ctx", {}).get("error", detail["msg"])).replace("Input should be", "wanted")
        if detail["type"] == "missing":
            name = where.rsplit(".", 1)[-1]
            raise ValueError(
                f"{path}: {end}: {value!r} needs {name}, which neither the recipe nor the space sets; add "
                f"{path.rsplit('.', 1)[0]}.{name} to the space"
            ) from None
        raise ValueError(f"{path}: {end}: got {value!r}: {text[:SHOWN_LENGTH]}") from None


def _contexts(space: Space, order: list[str], path: str, value: Value) -> Iterator[dict[str, Value]]:
    """Yield complete choices with `path` at `value`, one for each way its own conditions can be met.

    What those depend on stands at a value that allows it, everything else at its first one.
    """
    conditions = space[path].when
    for met in product(*conditions.values()):
        chosen = dict(zip(conditions, met, strict=True)) | {path: value}
        wanted: dict[str, tuple[Value, ...]] = {name: (v,) for name, v in chosen.items()}
        for name in reversed(order):
            if name in wanted and name != path:
                for key, values in space[name].when.items():
                    wanted[key] = tuple(v for v in wanted.get(key, values) if v in values)
        params: dict[str, Value] = {}
        for name in order:
            if active(space, name, params):
                allowed = wanted[name] if name in wanted else tuple(v for _, v in ends(space[name]))
                possible = [v for v in allowed if contains(space[name], v)]
                if possible:
                    params[name] = possible[0]
        if any(name not in params for name in chosen):
            raise ValueError(f"{path}: when: {dict(zip(conditions, met, strict=True))} never comes up in the space")
        yield params


def _keys_of(classes: list[type[BaseModel]], kind: Value) -> set[str]:
    return {
        name
        for cls in classes
        if "kind" in cls.model_fields and cls.model_fields["kind"].default == kind
        for name in cls.model_fields
    }


def _sections(cls: type[BaseModel], name: str) -> list[type[BaseModel]]:
    field = cls.model_fields.get(name)
    return _classes(field.annotation) if field else []


def _classes(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings classes that an annotation names."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return [cls for part in get_args(annotation) for cls in _classes(part)]
    if origin is Annotated:
        return _classes(get_args(annotation)[0])
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def family(positions: PositionSettings, *, window: int, lr: float, packed: bool = False) -> Space:
    """Return the default space: the family of draws, methods, objectives, and a factor of 3 around the learning rate.

    Args:
        positions: The recipe's, whose largest scale every trial keeps.
        window: Tokens of a row, which bounds what fits into it.
        lr: The recipe's learning rate.
        packed: Whether rows hold several texts, for which there are no weights by distance.
    """
    scale, placement, jump = "positions.scale.", "positions.placement.", "positions.placement.jump."
    method, heat = "positions.method.", "positions.method.temperature."
    kinds = ["uniform_int", "uniform", "log_uniform", "power", "beta", "fixed"]
    if positions.max_scale != int(positions.max_scale):
        kinds.remove("uniform_int")
    placements = ["prefix", "random_breaks", "none", "sorted_random", "head_middle_tail", "terminal", "chunks"]
    chunks = [n for n in (2, 4, 8, 16, 32) if window % n == 0 and n <= window // 2]
    if not chunks:
        placements.remove("chunks")
    if window < 16:
        placements = [kind for kind in placements if kind not in ("head_middle_tail", "terminal")]

    def where(key: str, *values: Value) -> dict[str, tuple[Value, ...]]:
        return {key: values}

    at, jumps = placement + "kind", jump + "kind"
    jumping = [kind for kind in ("prefix", "random_breaks", "terminal") if kind in placements]
    space: Space = {
        "train.lr": FloatRange(low=lr / 3, high=min(lr * 3, 1.0), log=True),
        scale + "kind": Choice(options=tuple(kinds)),
        scale + "native_share": FloatRange(low=0.0, high=0.8),
        scale + "exponent": FloatRange(low=-3.0, high=1.0, when=where(scale + "kind", "power")),
        scale + "a": FloatRange(low=0.3, high=5.0, log=True, when=where(scale + "kind", "beta")),
        scale + "b": FloatRange(low=0.3, high=5.0, log=True, when=where(scale + "kind", "beta")),
        at: Choice(options=tuple(placements)),
        placement + "prefix": IntRange(low=1, high=max(2, window // 4), log=True, when=where(at, "prefix")),
        placement + "num_breaks": IntRange(
            low=1, high=max(2, min(16, window // 8)), log=True, when=where(at, "random_breaks")
        ),
        placement + "pin_first": Choice(options=(False, True), when=where(at, "sorted_random")),
        placement + "pin_last": Choice(options=(False, True), when=where(at, "sorted_random")),
        jumps: Choice(options=("uniform", "ends", "beta"), when=where(at, *jumping)),
        jump + "p": FloatRange(low=0.0, high=1.0, when=where(jumps, "ends")),
        jump + "a": FloatRange(low=0.3, high=5.0, log=True, when=where(jumps, "beta")),
        jump + "b": FloatRange(low=0.3, high=5.0, log=True, when=where(jumps, "beta")),
        "positions.per": Choice(options=("sequence", "step")),
        method + "kind": Choice(options=("linear", "yarn", "ramp_power", "ntk")),
        method + "fast": FloatRange(low=4.0, high=64.0, log=True, when=where(method + "kind", *RAMPED)),
        method + "slow": FloatRange(low=0.25, high=3.0, log=True, when=where(method + "kind", *RAMPED)),
        heat + "kind": Choice(options=("log", "none"), when=where(method + "kind", *RAMPED)),
        heat + "coefficient": FloatRange(low=0.0, high=0.3, when=where(heat + "kind", "log")),
        "train.objective.distill": FloatRange(low=0.0, high=1.0),
    }
    if not packed:
        space["train.objective.distance_weights"] = Choice(options=(False, True))
    if "head_middle_tail" in placements:
        space[placement + "tokens"] = IntRange(
            low=2, high=max(4, window // 4), log=True, when=where(at, "head_middle_tail", "terminal")
        )
        space[placement + "sigma"] = FloatRange(low=0.05, high=1.0, log=True, when=where(at, "head_middle_tail"))
    if chunks:
        space[placement + "num_chunks"] = Choice(options=tuple(chunks), when=where(at, "chunks"))
    return space
