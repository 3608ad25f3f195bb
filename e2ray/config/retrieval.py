"""What a model is asked to find in a long text."""

from typing import Literal

from pydantic import Field, field_validator

from e2ray.config.base import Settings, increasing

Task = Literal[
    "passkey",
    "single_needle",
    "multi_key",
    "multi_value",
    "multi_query",
    "variable_tracking",
    "common_words",
    "frequent_words",
    "key_value",
]


WITHOUT_DEPTH = ("multi_value", "multi_query", "variable_tracking", "common_words", "frequent_words")
WITHOUT_NUMBERS = ("common_words", "frequent_words")


class RetrievalSettings(Settings):
    """The grid of retrieval: task x context length x depth x trials, each length read at the scale W / L."""

    tasks: tuple[Task, ...] = Field(
        ("passkey",), strict=False, min_length=1, description="What is asked; those without one depth have no depth."
    )
    context_lengths: tuple[int, ...] | None = Field(
        None, strict=False, min_length=1, description="W in tokens, exact length of a prompt; null: evaluate.windows."
    )
    depths: tuple[float, ...] = Field(
        (0.1, 0.3, 0.5, 0.7, 0.9),
        strict=False,
        min_length=1,
        description="Fraction of the surrounding text that stands before what is asked for, 0 to 1.",
    )
    trials: int = Field(4, ge=1, le=10**6, description="Prompts of one cell, each with its own text and key.")
    digits: int = Field(5, ge=1, le=18, description="Digits of a number, the first not 0.")
    greedy: int = Field(
        1, ge=0, description="Prompts of a cell that are answered by greedy generation too, as a check; 0: none."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seeds texts and keys; a cell does not depend on the other cells.")

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, value: tuple[Task, ...]) -> tuple[Task, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"must name each task once, got {list(value)}")
        return value

    _lengths = field_validator("context_lengths")(increasing(2))

    @field_validator("depths")
    @classmethod
    def _fractions(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)) or value[0] < 0 or value[-1] > 1:
            raise ValueError(f"must be increasing and lie in [0, 1], got {list(value)}")
        return value
