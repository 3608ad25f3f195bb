"""A request of lm-evaluation-harness without the library: its key, and how it was read."""

from collections.abc import Sequence
from dataclasses import dataclass

Key = tuple[str | None, int | None, str, str]


class RefusedError(Exception):
    """A task whose requests cannot be answered as they are; its message is one line."""


@dataclass(frozen=True)
class Placed:
    """How one request was read.

    Attributes:
        tokens: Of the prompt and of a given answer, as the model read them.
        room: Further tokens that may be generated.
        scale: g >= 1.
        cut: Tokens left out at the prompt's start.
        windows: Forward passes; more than one where a whole text is longer than the longest context length, and then
            `tokens` and `scale` are those of the longest.
    """

    tokens: int
    room: int
    scale: float
    cut: int = 0
    windows: int = 1


def request_key(task: str | None, document: int | None, arguments: Sequence[object]) -> Key:
    """Return the key of a request: its task, its document, its prompt and a given answer."""
    answer = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], str) else ""
    return task, document, str(arguments[0]), answer
