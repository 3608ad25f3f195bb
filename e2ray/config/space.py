"""From values of searched settings to a recipe, and the check of a space against the settings it names.

A parameter is a dotted path into the recipe. Where a path ends in `kind`, another value makes its section another
class: the settings that the new class shares are kept, the rest are dropped, and those it requires must be searched
too. So the published methods and everything between them are points of one space.
"""

import random
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from e2ray.config.base import Settings
from e2ray.config.search import Choice, IntRange, Parameter, Space, Value
from e2ray.config.uris import LISTS
from e2ray.config.words import first_of

SHARED = ("name", "storage", "seed", "search", "cluster", "evaluate", "export", "pretrain", "data", "model")
OWN = ("model.lora.",)  # in a shared section, and still a trial's own
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
    "train.reduce_dtype",
    "train.deepspeed",
    "train.compile",
    "train.fused_loss",
)
RANDOM_POINTS = 200  # of a space that are tried before any trial
SHOWN_LENGTH = 200


def assign(recipe: Mapping[str, object], params: Mapping[str, object], root: type[Settings]) -> dict[str, object]:
    """Return a resolved recipe, plain data without presets, with values set by dotted path.

    `root`, the class of a recipe, determines what a section of another `kind` keeps.

    Raises:
        ValueError: If a path leads through a plain value.
    """
    made = {key: _copied(value) for key, value in recipe.items()}
    for path in sorted(params, key=lambda path: (path.count("."), not path.endswith(".kind"))):
        *parents, last = path.split(".")
        section = made
        for depth, part in enumerate(parents):
            inner = section.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{path}: {'.'.join(parents[: depth + 1])} is {inner!r}, not a section")
            section = inner
        if last == "kind" and section.get("kind") != params[path]:
            for key in section.keys() - _keys_of(root, tuple(parents), params[path]):
                del section[key]
        section[last] = params[path]
    return made


def _copied(value: object) -> object:
    """Return plain data with all its sections copied; a section that is validated stays the same object."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, LISTS) else value


def active(space: Space, path: str, params: Mapping[str, Value]) -> bool:
    """Return whether a parameter applies beside the values that were chosen before it."""
    return all(key in params and params[key] in values for key, values in space[path].when.items())


def in_order(space: Space) -> list[str]:
    """Return the paths of a space, each after those that its conditions name.

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
    space: Space, recipe: Mapping[str, object], root: type[Settings], target: Mapping[str, object]
) -> dict[str, Value]:
    """Return the values that turn a resolved recipe into one with `target`'s positions; empty if the space cannot."""
    params: dict[str, Value] = {}
    for path in in_order(space):
        if not active(space, path, params):
            continue
        value, parameter = lookup(target, path), space[path]
        if not contains(parameter, value):
            return {}
        if isinstance(parameter, Choice):
            params[path] = next(option for option in parameter.options if _same(option, value))
        elif isinstance(value, int | float):
            params[path] = value
    return params if validated(assign(recipe, params, root), root) == validated(target, root) else {}


MISSING = object()


def lookup(recipe: Mapping[str, object], path: str) -> object:
    """Return the value at a dotted path, or MISSING."""
    value: object = recipe
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def contains(parameter: Parameter, value: object) -> bool:
    """Return whether a parameter can take a value."""
    if isinstance(parameter, Choice):
        return any(_same(option, value) for option in parameter.options)
    return isinstance(value, int | float) and not isinstance(value, bool) and parameter.low <= value <= parameter.high


def _same(option: Value, value: object) -> bool:
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


def validated(recipe: Mapping[str, object], root: type[Settings]) -> dict[str, object]:
    """Return a recipe as its class resolves it, as plain data."""
    return root.model_validate(dict(recipe)).model_dump(mode="json")


def check(space: Space, recipe: Mapping[str, object], root: type[Settings]) -> None:
    """Check a space against the settings it names, by putting both ends of every parameter into the recipe.

    The recipe is resolved, plain data, without its `search` section.

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
    recipe = _settled(recipe, root, {path.partition(".")[0] for path in space})
    for path in order:
        for end, value in ends(space[path]):
            for params in _contexts(space, order, path, value):
                _check_value(recipe, root, path, end, value, params)
    for params in random_points(space, RANDOM_POINTS, seed=0):
        try:
            root.model_validate(assign(recipe, params, root))
        except ValidationError as error:
            where, text, _ = first_of(error)
            shown = ", ".join(
                f"{path} = {value!r}" for path, value in params.items() if _matters(recipe, root, params, path)
            )
            raise ValueError(
                f"{shown or where}: values that each fit do not fit together: {text[:SHOWN_LENGTH]}; narrow the space, "
                "or part it with `when`"
            ) from None


def _settled(recipe: Mapping[str, object], root: type[Settings], searched: set[str]) -> dict[str, object]:
    """Return a recipe whose unsearched sections are validated, once for hundreds of points of a space."""
    whole = root.model_validate(dict(recipe))
    return {name: value if name in searched else getattr(whole, name) for name, value in recipe.items()}


def _matters(recipe: Mapping[str, object], root: type[Settings], params: Mapping[str, Value], path: str) -> bool:
    """Return whether the recipe is valid without this value."""
    try:
        root.model_validate(assign(recipe, {key: value for key, value in params.items() if key != path}, root))
    except ValueError:
        return False
    return True


def ends(parameter: Parameter) -> list[tuple[str, Value]]:
    """Return the values to check, each with its key."""
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
    *parents, last = path.split(".")
    classes = _classes_at(root, tuple(parents))
    fields = [cls.model_fields[last] for cls in classes if last in cls.model_fields]
    if not fields:
        known = sorted({name for cls in classes for name in cls.model_fields})
        hint = f"{'.'.join(parents)} has {', '.join(known)}" if known else f"there is no section {'.'.join(parents)}"
        raise ValueError(f"{path}: is no setting; {hint}")
    if any(_classes(field.annotation) for field in fields):
        raise ValueError(f"{path}: is a section; search its settings, e.g. {path}.kind")


def _check_value(
    recipe: Mapping[str, object], root: type[Settings], path: str, end: str, value: Value, params: dict[str, Value]
) -> None:
    try:
        root.model_validate(assign(recipe, params, root))
    except ValidationError as error:
        where, text, kind = first_of(error)
        text = text.replace("Input should be", "wanted")
        if kind == "missing":
            name = where.rsplit(".", 1)[-1]
            raise ValueError(
                f"{path}: {end}: {value!r} needs {name}, which neither the recipe nor the space sets; add "
                f"{path.rsplit('.', 1)[0]}.{name} to the space"
            ) from None
        raise ValueError(f"{path}: {end}: got {value!r}: {text[:SHOWN_LENGTH]}") from None


def _contexts(space: Space, order: list[str], path: str, value: Value) -> Iterator[dict[str, Value]]:
    """Yield complete choices with `path` at `value`, one for each way its own conditions can be met.

    Settings that those depend on take a value that allows it, all others their first one.
    """
    conditions = space[path].when
    for met in product(*conditions.values()):
        chosen = dict(zip(conditions, met, strict=True)) | {path: value}
        permitted: dict[str, tuple[Value, ...]] = {name: (v,) for name, v in chosen.items()}
        for name in reversed(order):
            if name in permitted and name != path:
                for key, values in space[name].when.items():
                    permitted[key] = tuple(v for v in permitted.get(key, values) if v in values)
        params: dict[str, Value] = {}
        for name in order:
            if active(space, name, params):
                allowed = permitted[name] if name in permitted else tuple(v for _, v in ends(space[name]))
                possible = [v for v in allowed if contains(space[name], v)]
                if possible:
                    params[name] = possible[0]
        if any(name not in params for name in chosen):
            raise ValueError(f"{path}: when: {dict(zip(conditions, met, strict=True))} never comes up in the space")
        yield params


def _keys_of(root: type[BaseModel], path: tuple[str, ...], kind: object) -> set[str]:
    """Return the settings of the section at a path, where it is of a kind."""
    forms = [cls.model_fields for cls in _classes_at(root, path)]
    return {name for fields in forms if "kind" in fields and fields["kind"].default == kind for name in fields}


@cache
def _classes_at(root: type[BaseModel], path: tuple[str, ...]) -> list[type[BaseModel]]:
    """Return the classes that the section at a path may be of."""
    classes = [root]
    for name in path:
        fields = [cls.model_fields[name] for cls in classes if name in cls.model_fields]
        classes = [inner for field in fields for inner in _classes(field.annotation)]
    return classes


def _classes(annotation: object) -> list[type[BaseModel]]:
    """Return the settings classes that an annotation names."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return [cls for part in get_args(annotation) for cls in _classes(part)]
    if origin is Annotated:
        return _classes(get_args(annotation)[0])
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
