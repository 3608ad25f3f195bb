"""A walk over every setting of the schema: where each stands, and the extremes of what it can be."""

import itertools
import math
import sys
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

HUGE = 10**12
TINY = 1e-9


@dataclass(frozen=True)
class Place:
    """A class of settings at one place of a recipe: `data.corpus[]` TextSource; [] is any entry, {} any key."""

    path: str
    cls: type[BaseModel]

    @property
    def key(self) -> str:
        return f"{self.path}:{self.cls.__name__}"


def places(root):
    """Return every place at which a class of settings can stand, each once."""
    found: dict[str, Place] = {}

    def walk(cls, path):
        here = Place(path, cls)
        if here.key in found:
            return
        found[here.key] = here
        for name, field in cls.model_fields.items():
            for mark, inner in sections(field.annotation):
                walk(inner, f"{path}.{name}{mark}".lstrip("."))

    walk(root, "")
    return list(found.values())


def sections(annotation, mark=""):
    """Yield (mark, class) for each class of settings that an annotation names."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield mark, annotation
    elif origin is Annotated:
        yield from sections(arguments[0], mark)
    elif origin in (Union, UnionType):
        yield from itertools.chain.from_iterable(sections(part, mark) for part in arguments)
    elif origin is tuple:
        yield from sections(arguments[0], f"{mark}[]")
    elif origin is dict:
        yield from sections(arguments[1], f"{mark}{{}}")


def is_section(annotation):
    """Return whether an annotation is nothing but sections, whose own settings are walked."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return is_section(arguments[0])
    if origin in (Union, UnionType):
        return all(is_section(part) for part in arguments)
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def extremes(field: FieldInfo, current: Any):
    """Return values at the bounds of a field, and where it has none 0, 1 and huge ones; empty texts and lists; null.

    The value it has already is left out.
    """
    found, values = [], _extremes(field.annotation, field.metadata, current)
    assert values, f"no extremes are known of {field.annotation}; add them to _extremes of {__file__}"
    for value in values:
        if not any(type(value) is type(other) and value == other for other in (current, *found)):
            found.append(value)
    return found


def _extremes(annotation, metadata, current):
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return [None]
    if annotation is bool:
        return [False, True]
    if annotation is int:
        return _numbers(metadata, whole=True)
    if annotation is float:
        return _numbers(metadata, whole=False)
    if annotation is str:
        return ["", "x", "x" * 300, "/" + "x" * 300, "a\0b", "\ud800", "/dev/null/a"]
    if origin is Literal:
        return list(arguments)
    if origin is Annotated:
        inner = arguments[1:]
        expanded = [part for one in inner for part in (one.metadata if isinstance(one, FieldInfo) else [one])]
        return _extremes(arguments[0], [*metadata, *expanded], current)
    if origin in (Union, UnionType):
        return [value for part in arguments for value in _extremes(part, metadata, current)]
    if origin is tuple:
        ends = _extremes(arguments[0], [], None) if not list(sections(arguments[0])) else list(current or ())[:1]
        if Ellipsis in arguments:
            return [[], *([each] for each in ends), *([each, each] for each in ends[:1])]
        return [[each] * len(arguments) for each in ends]
    if origin is dict:
        return [{}] if list(sections(arguments[1])) else [{}, {"x": ["y"]}]
    return []  # a section, which is walked itself, or anything


def _numbers(metadata, *, whole):
    step = 1 if whole else 0
    low = high = None
    for mark in metadata:
        match mark:
            case Ge(ge=value):
                low = value
            case Gt(gt=value):
                low = value + step if whole else max(math.nextafter(value, math.inf), value + TINY)
            case Le(le=value):
                high = value
            case Lt(lt=value):
                high = value - step if whole else value - TINY
    smallest = [-HUGE, -1, 0, 1] if low is None else [low]
    largest = [HUGE, 10**30 if whole else sys.float_info.max / 2] if high is None else [high]
    return [int(value) if whole else float(value) for value in (*smallest, *largest)]


def put(made, path, value):
    """Put a value into a recipe; [] is the first entry of a list, {} the only one of a mapping."""
    *parents, last = _parts(path)
    at = made
    for part in parents:
        at = at[_key(at, part)] if _key(at, part) in at or isinstance(at, list) else at.setdefault(part, {})
    at[_key(at, last)] = value


def read(made, path):
    """Return what stands at a path."""
    for part in _parts(path):
        made = made[_key(made, part)]
    return made


def _parts(path):
    return path.replace("[]", ".0").replace("{}", ".{}").split(".") if path else []


def _key(at, part):
    if part == "{}":
        return next(iter(at))
    return int(part) if isinstance(at, list) else part
