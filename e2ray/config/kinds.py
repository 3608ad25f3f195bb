"""Families of settings: one registry names, for each member's class of settings, the object that does its work.

A registry is a dictionary {class of settings: dotted path of its object}. The path is text since the object is in a
later layer, which settings do not import; code there calls `made_by`. A new member is one file with the object and one
line in the registry, whose class `kind` makes out of its fields; a class that checks more than single fields is written
out above the registry.
"""

from collections.abc import Iterable, Mapping
from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, create_model

from e2ray.config.base import Settings

Kind = TypeVar("Kind", bound=Settings)


def kind(base: type[Kind], name: str, words: str, **fields: Any) -> type[Kind]:
    """Return a class of settings for a member of the family with the class `base`.

    `name` is the value of `kind` in a recipe, `words` the docstring, which the page of settings shows; `fields` are
    pydantic's (type, Field(default, description=...)).
    """
    title = "".join(part.title() for part in name.split("_")) + base.__name__.removesuffix("Kind")
    all_fields: dict[str, Any] = {"kind": (Literal[name], name)} | fields
    return create_model(title, __base__=base, __doc__=words, __module__=base.__module__, **all_fields)


def one_of(classes: Iterable[type[Settings]]) -> Any:
    """Return the type of a setting that is one of several classes, told apart by `kind`; one may have none.

    A section without a kind is of the class that has none.
    """
    members = list(classes)
    if len(members) == 1:
        return members[0]
    if all("kind" in each.model_fields for each in members):
        return Annotated[reduce(or_, members), Field(discriminator="kind")]
    tagged = [Annotated[each, Tag(_kind_of(each))] for each in members]
    return Annotated[reduce(or_, tagged), Discriminator(_tag)]


def _kind_of(cls: type[Settings]) -> str:
    return str(cls.model_fields["kind"].default) if "kind" in cls.model_fields else ""


def _tag(value: object) -> str:
    tag = value.get("kind", "") if isinstance(value, Mapping) else getattr(value, "kind", "")
    return str(tag)


def made_by(registry: Mapping[type[Kind], str], settings: Kind) -> Any:
    """Return the object that does the work of a member's settings, as the registry names it."""
    module, _, name = registry[type(settings)].rpartition(".")
    return getattr(import_module(module), name)
