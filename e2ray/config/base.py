"""The ground every settings class stands on: frozen, strict, nothing extra, nothing infinite.

Strict means that a string is never read as a number and 1.5 never as an integer, so a typing slip in a
recipe is an error with its key path and not a surprise in a run. No setting takes a URI that holds credentials, and
no error shows them.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from e2ray.config.places import problems, without_credentials


class SettingsError(ValueError):
    """A setting, a path or data that a person has to change; its message is one line.

    The commands print the message and exit with 2. It takes one argument, so it survives pickling
    between processes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(" ".join(message.splitlines())))  # paths and values may hold line breaks


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
    def _refuse_credentials(cls, value: Any) -> Any:
        for problem in problems(value):
            raise ValueError(problem)
        return value
