"""The base of every settings class: frozen, strict, nothing extra, nothing infinite.

Strict means that a string is never read as a number and 1.5 never as an integer, so a typing slip in a
recipe is an error with its key path and not a surprise in a run. No setting takes a URI that holds credentials, and
no error shows them.
"""

import re
from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from e2ray.config.uris import LISTS, problems, without_credentials

Text = Annotated[str, Field(min_length=1)]
Plain = dict[str, JsonValue]  # what JSON and YAML have
Seed = Annotated[int, Field(ge=0, lt=2**32)]
LARGEST_SCALE = 2**20  # times the longest base context length, still exact in 64 bits
LONGEST_NAME = 255  # bytes of one name in a path
LONGEST_TEXT = 2**31  # tokens of a base context length


LONGEST_WORD, LONGEST_LINE = 300, 1000  # characters of a message


def is_folder(path: str) -> bool:
    """Return whether a `path` of a recipe names a local folder and not a hub id."""
    return path.startswith(("/", "./", "../", "~")) or path in (".", "..")


def brief(text: object) -> str:
    """Return a text as one line of at most 1,000 characters, without credentials; what is too long loses its middle.

    A message quotes what it found, which may be a path, a key or a value of any length; its beginning says where, its
    end what to do.
    """
    line = without_credentials(" ".join(str(text).splitlines()))
    line = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: f"{word[0][:200]}...{word[0][-60:]}", line)
    return line if len(line) <= LONGEST_LINE else f"{line[:600]} ... {line[-380:]}"


class SettingsError(ValueError):
    """A setting, a path or data that a person has to change; its message is one line.

    The commands print the message and exit with 2. It takes one argument, so it survives pickling
    between processes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(brief(message))  # paths and values may hold line breaks, and have any length


class Settings(BaseModel):
    """A frozen, strict group of settings; unknown keys, NaN and infinities are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        validate_default=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_credentials(cls, value: object) -> object:
        for problem in problems(value):
            raise ValueError(problem)
        return value

    @field_validator("*")
    @classmethod
    def _writable(cls, value: object) -> object:
        """Refuse text that no file can hold, be it a path or config.yaml itself."""
        for text in _texts(value):
            if "\0" in text:
                raise ValueError(f"holds NUL, which no path and no name may, got {text[:60]!r}")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"is no Unicode text (half a surrogate pair), got {text[:60]!r}") from None
            longest = max((len(part.encode()) for part in text.split("/")), default=0) if is_folder(text) else 0
            if longest > LONGEST_NAME:
                raise ValueError(f"has a name of {longest} bytes in it, no file system takes more than {LONGEST_NAME}")
        return value


def _texts(value: object) -> list[str]:
    """Return the plain texts of a value, without those of a section, which its own class checks."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    return [text for part in value for text in _texts(part)] if isinstance(value, LISTS) else []


Values = TypeVar("Values", bound=tuple[object, ...] | None)
Numbers = TypeVar("Numbers", bound=tuple[float, ...] | None)


def each_once(value: Values) -> Values:
    """Return a setting's list; raise ValueError if it names anything twice."""
    if value is not None and len(set(value)) < len(value):
        raise ValueError(f"must name each once, got {list(value)}")
    return value


def increasing(least: int) -> Callable[[Numbers], Numbers]:
    """Return a check that the numbers of a setting increase and are at least `least`."""

    def check(value: Numbers) -> Numbers:
        if value is not None and (list(value) != sorted(set(value)) or value[0] < least):
            raise ValueError(f"must be increasing and at least {least}, got {list(value)}")
        return value

    return check
