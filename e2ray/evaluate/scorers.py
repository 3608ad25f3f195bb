"""Whether a text says what it should: strict enough that a number inside another number is no hit."""

import re
from collections.abc import Sequence

from e2ray.data.encoder import Encoder

WORD_CHARACTER = re.compile(r"\w")


def goes_on(encoder: Encoder, tokens: Sequence[int], behind: int) -> bool:
    """Return whether a token continues the word or number that a text ends with, which makes it another one.

    It does where its text begins with a letter, a digit or an underscore and no space, so that 12345 becomes 123456 or
    12345th: the rule of `contained`, known before the text goes on. An end token, a space or a sign does not. Nor does
    a piece of a character that byte-level vocabularies cut in two, which has no text of its own.

    Args:
        encoder: Of the tokens.
        tokens: The text.
        behind: The token that follows.
    """
    text = encoder.backend.decode([*tokens, behind]).removeprefix(encoder.backend.decode(list(tokens)))
    return WORD_CHARACTER.match(text) is not None


def contained(text: str, references: Sequence[str]) -> float:
    """Return the share of `references` that `text` holds as whole words, whatever their case.

    RULER's score, but a reference inside a longer word or number does not count: 123 is not in 91234.
    """
    if not references:
        raise ValueError("references must not be empty")
    return sum(_holds(text, reference) for reference in references) / len(references)


def best_of(text: str, references: Sequence[str]) -> float:
    """Return 1 if `text` holds any of `references` as whole words, else 0: the score of question answering."""
    return max((float(_holds(text, reference)) for reference in references), default=0.0)


def _holds(text: str, reference: str) -> bool:
    pattern = re.escape(" ".join(reference.casefold().split()))
    if not pattern:
        raise ValueError("a reference must say something, got an empty one")
    words = " ".join(text.casefold().split())
    return re.search(rf"(?<!\w){pattern}(?!\w)", words) is not None
