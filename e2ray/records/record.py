"""The base of every file that e2ray leaves and reads again: a frozen class of its fields, and how it is kept on disk.

A file says by `schema_version` how it is written; one without is of an earlier e2ray and read as today's where its
fields allow. A file that was changed, or written by a newer e2ray, is refused in one line, with the next move.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    Strict,
    ValidationError,
    model_serializer,
)

from e2ray import files
from e2ray.config.base import Plain, SettingsError
from e2ray.config.words import shown, wanted
from e2ray.records import sealed

VERSION = "schema_version"
T = TypeVar("T")

Many = Annotated[tuple[T, ...], Strict(False)]  # a list in JSON
Pair = Annotated[tuple[T, T], Strict(False)]
Number = int | float  # as it was written
Tokens = Annotated[int, Field(ge=0, json_schema_extra={"unit": "tokens"})]
Length = Annotated[int, Field(ge=1, json_schema_extra={"unit": "tokens"})]
Count = Annotated[int, Field(ge=0)]
Scale = Annotated[float, Field(ge=1)]
Nats = Annotated[float, Field(json_schema_extra={"unit": "nats per token"})]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, json_schema_extra={"unit": "s"})]
Bytes = Annotated[int, Field(ge=0, json_schema_extra={"unit": "bytes"})]


def left_out(description: str) -> Any:
    """Return a field that a file has only where it is known."""
    return Field(default=None, exclude_if=lambda value: value is None, description=description)


class NewerError(SettingsError):
    """A file is whole, but of a newer e2ray: it is neither damaged nor to be written over."""


class Part(BaseModel):
    """A frozen, strict group of fields; unknown ones, NaN and infinities are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        defer_build=True,
        protected_namespaces=(),
    )

    def plain(self) -> Plain:
        """Return the fields as JSON has them."""
        return self.model_dump(mode="json")

    def changed(self, **changes: object) -> Self:
        """Return a copy with other values of some fields."""
        known = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate(known | changes)


class Sparse(Part):
    """A group of fields of which a file has those that were given."""

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> Plain:
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


class Record(Part):
    """A file: its fields, what it is, and what makes it anew.

    Attributes:
        schema_version: Of what is written; raised where a reader of the version before would misread it.
        what: The file in a few words, as errors name what was wanted.
        anew: The next move where it cannot be read.
        vouched: Whether the file carries a digest of itself.
    """

    schema_version: ClassVar[int] = 1
    what: ClassVar[str]
    anew: ClassVar[str]
    vouched: ClassVar[bool] = True

    @classmethod
    def wanted(cls) -> str:
        """Return what errors say was wanted, and the next move."""
        return f"{cls.what}; {cls.anew}"

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Return what a file holds.

        Raises:
            FileNotFoundError: If there is no such file.
            SettingsError: If it cannot be read, is not what was written, or is of a newer e2ray.
        """
        return cls.read_told(path)[0]

    @classmethod
    def read_told(cls, path: str | Path) -> tuple[Self, bool]:
        """Return what a file holds, and whether a digest vouches for it: earlier versions wrote none."""
        value, is_vouched = files.read_told(path, wanted=cls.wanted())
        return cls.parse(value, where=path), is_vouched

    @classmethod
    def find(cls, path: str | Path) -> Self | None:
        """Return what a file holds, None where there is none; errors are those of `read`."""
        return cls.read(path) if Path(path).exists() else None

    @classmethod
    def parse(cls, value: object, *, where: str | Path) -> Self:
        """Return the record that a value of JSON holds; `where` names it in errors.

        Raises:
            SettingsError: As `read`.
        """
        if not isinstance(value, dict):
            raise cls.damaged(where, f"it holds {files.kind_of(value)}")
        fields = dict(value)
        version = fields.pop(VERSION, None)
        if version is not None and (type(version) is not int or version < 1):
            raise cls.damaged(where, f"{VERSION} is {shown(version)}")
        if version is not None and version > cls.schema_version:
            raise NewerError(
                f"{where}: was written by a newer e2ray, in schema version {version}; this one reads "
                f"{cls.schema_version}: install the newer one, or {cls.anew}"
            )
        try:
            if version is None:
                extra = cls.model_config.get("extra")
                return cls.model_validate(cls.of_older(fields), extra="ignore" if extra == "forbid" else extra)
            return cls.model_validate(fields)
        except ValidationError as error:
            raise cls.damaged(where, problem(error)) from None

    @classmethod
    def of_older(cls, fields: Plain) -> Plain:
        """Return the fields of a file without a version under today's names."""
        return fields

    @classmethod
    def damaged(cls, where: str | Path, how: str) -> SettingsError:
        """Return the error that says what is wrong with a file."""
        return SettingsError(f"{where}: is damaged, {how}; wanted {cls.wanted()}")

    def content(self) -> Plain:
        """Return what the file holds, without its digest."""
        return {VERSION: self.schema_version, **self.plain()}

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            SettingsError: If the disk is full or the folder cannot be written to.
        """
        (files.write_sealed if self.vouched else files.write_json)(path, self.content())


class Line(Record):
    """A line of a file of JSON lines, each of which tells of a step and carries a seal (`e2ray.records.sealed`)."""

    step: Count = Field(description="Updates made.")

    @classmethod
    def lines(cls, path: Path) -> tuple[list[Self], sealed.Lines]:
        """Return the complete lines of a file, none where there is no file, as records and as they are in the file.

        Raises:
            SettingsError: If a line is not what was written.
        """
        whole = sealed.read(path, advice=lambda kept: cls.anew)
        return [cls.parse(value, where=f"{path}: line {n}") for n, value in enumerate(whole.values, start=1)], whole

    def text(self) -> str:
        """Return the line, without its seal and its line break."""
        return json.dumps(self.content(), allow_nan=False)


def renamed(value: JsonValue, names: Mapping[str, str]) -> JsonValue:
    """Return an object with other names of some fields, and anything else as it is."""
    return {names.get(key, key): item for key, item in value.items()} if isinstance(value, dict) else value


def problem(error: ValidationError) -> str:
    """Return the first thing that pydantic finds wrong, as `scale is 0.5, wanted at least 1`."""
    first, *others = error.errors(include_url=False)
    path = ".".join(map(str, first["loc"]))
    match first["type"]:
        case "missing":
            return f"it lacks {path}"
        case "extra_forbidden":
            return f"it knows no {path}"
        case "value_error":
            return f"{path + ': ' if path else ''}{first.get('ctx', {})['error']}"
    same = [first, *(each for each in others if each["loc"] == first["loc"])]
    return f"{path} is {_told(first['input'])}, wanted {wanted(same).replace('a section', 'an object')}"


def _told(value: object) -> str:
    return shown(value) if isinstance(value, str | int | float) else files.kind_of(value)


def ascending(name: str) -> Callable[[tuple[T, ...]], tuple[T, ...]]:
    """Return a check that rows ascend by a field, each value once."""

    def check(rows: tuple[T, ...]) -> tuple[T, ...]:
        values = [getattr(row, name) for row in rows]
        if values != sorted(set(values)):
            raise ValueError(f"{name} must ascend, got {shown(values)}")
        return rows

    return check
