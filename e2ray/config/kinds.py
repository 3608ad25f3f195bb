"""Families whose members are named in one registry: from each class of settings to what does its work.

A registry is a dictionary {class of settings: dotted path of its object}. The path is a text since the object lies in
a room to the right, which settings do not import; whoever stands there asks `made_by`. To add a member is one new file
with the object, and one line in the registry, whose class `kind` makes out of its fields; a class that checks more than
each field by itself is written out above the registry.
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
    """Return a class of settings for a member of a family, whose own class is `base`.

    `name` is what `kind` says in a recipe, `words` the docstring, which the page of settings shows; fields beside
    `kind` are pydantic's (type, Field(default, description=...)).
    """
    title = "".join(part.title() for part in name.split("_")) + base.__name__.removesuffix("Kind")
    told: dict[str, Any] = {"kind": (Literal[name], name)} | fields
    return create_model(title, __base__=base, __doc__=words, __module__=base.__module__, **told)


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
    found = value.get("kind", "") if isinstance(value, Mapping) else getattr(value, "kind", "")
    return str(found)


def made_by(registry: Mapping[type[Kind], str], settings: Kind) -> Any:
    """Return what does the work of a member's settings: the object that the registry names."""
    module, _, name = registry[type(settings)].rpartition(".")
    return getattr(import_module(module), name)
