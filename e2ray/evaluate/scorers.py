"""Whether a text says what it should: strict enough that a number inside another number is no hit."""

import re
from collections.abc import Sequence

INTEGER = re.compile(r"\d+")


def first_integer(text: str, wanted: str) -> bool:
    """Return whether the first run of digits in `text` is exactly `wanted`.

    The passkey protocol of landmark attention (arXiv:2305.16300): a later number does not count, nor does one that
    only begins with the key or holds it.
    """
    found = INTEGER.search(text)
    return found is not None and found.group() == wanted


def contained(text: str, references: Sequence[str]) -> float:
    """Return the share of `references` that `text` holds as whole words, whatever their case.

    RULER's score, but a reference inside a longer word or number is not held: 123 is not in 91234.
    """
    if not references:
        raise ValueError("references must not be empty")
    return sum(_holds(text, reference) for reference in references) / len(references)


def best_of(text: str, references: Sequence[str]) -> float:
    """Return 1 if `text` holds any of `references` as whole words, else 0: the score of question answering."""
    return max((float(_holds(text, reference)) for reference in references), default=0.0)


def _holds(text: str, reference: str) -> bool:
    wanted = re.escape(" ".join(reference.casefold().split()))
    if not wanted:
        raise ValueError("a reference must say something, got an empty one")
    said = " ".join(text.casefold().split())
    return re.search(rf"(?<!\w){wanted}(?!\w)", said) is not None
