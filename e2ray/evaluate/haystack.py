"""The parts of retrieval prompts: stretches of the run's held-out text, its words, answers after questions.

Nothing is downloaded: filler, words and numbers come from the run's documents and a seed. An answer is tokenised with
its question as one text, at a border that no token crosses, so that a model that continues the question naturally
writes exactly the answer's tokens.
"""

import functools
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from e2ray.config.base import SettingsError
from e2ray.data.encoder import Encoder

# The text before an answer, in needle and answer alike: (on the question's side, on the answer's side). The first
# border that no token crosses is used, so that the question has the same tokens with and without its answer.
BORDERS = (("", " "), (" ", ""), (":", " "), (":\n", ""))
NUMBER_ATTEMPTS = 1000  # numbers drawn until one is not written in the text by chance
WORD = re.compile(r"(?<![^\W_])[^\W\d_]{4,12}(?![^\W_])")

Tokens = npt.NDArray[np.int64]


class ContextLengthError(SettingsError):
    """No prompt of a length can be made: the held-out text is too short, or the length is."""


class Haystack:
    """The text of all held-out documents as one ring of tokens, without their prefix and end token."""

    def __init__(self, documents: Sequence[np.ndarray], encoder: Encoder) -> None:
        """Take the documents, integer tokens of shape [length] each, as the shards hold them."""
        self.encoder = encoder
        self.parts = [text_only(document, encoder) for document in documents]
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    @property
    def total(self) -> int:
        """Tokens of text in all documents."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def stretch(self, rng: np.random.Generator, length: int) -> Tokens:
        """Return `length` consecutive tokens from a random place, or all of them, each once, if there are fewer."""
        if not self.total:
            return np.empty(0, dtype=np.int64)
        start = int(rng.integers(self.total))
        number = int(np.searchsorted(self.ends, start, side="right"))
        inside = start - int(self.ends[number]) + len(self.parts[number])
        pieces = [self.parts[number][inside:]]
        size = len(pieces[0])
        for step in range(1, len(self.parts) + 1):  # around the ring, back to the beginning of the first document
            if size >= length:
                break
            part = self.parts[(number + step) % len(self.parts)]
            pieces.append(part if step < len(self.parts) else part[:inside])
            size += len(pieces[-1])
        return np.concatenate(pieces)[:length].astype(np.int64)

    @functools.cached_property
    def vocabulary(self) -> list[str]:
        """All words of the documents of 4 to 12 letters, in lower case and in order."""
        text = "\n".join(self.encoder.backend.decode(part.tolist()) for part in self.parts)
        return sorted({word.lower() for word in WORD.findall(text)})

    @property
    def num_words(self) -> int:
        """How many different words there are."""
        return len(self.vocabulary)

    def words(self, rng: np.random.Generator, count: int) -> list[str]:
        """Return `count` different words of the vocabulary.

        Raises:
            ContextLengthError: If the documents have fewer.
        """
        if self.num_words < count:
            raise ContextLengthError(
                f"retrieval: all held-out documents together have {self.num_words} different words of 4 to 12 "
                f"letters, wanted {count}; raise data.validation_share or leave the task out of retrieval.tasks"
            )
        return [self.vocabulary[number] for number in rng.choice(self.num_words, size=count, replace=False)]


def text_only(document: np.ndarray, encoder: Encoder) -> np.ndarray:
    """Return a document without its prefix and end token, which it has in the shards."""
    num_prefix = len(encoder.prefix)
    begins = num_prefix > 0 and document[:num_prefix].tolist() == encoder.prefix
    ends = len(document) > 0 and document[-1] == encoder.end
    return document[num_prefix if begins else 0 : len(document) - (1 if ends else 0)]


def unspaced(encoder: Encoder, tokens: Tokens | list[int]) -> str:
    """Return the text of tokens without white space: some tokenizers put a space between digits."""
    return "".join(encoder.backend.decode(list(tokens)).split())


def encode(encoder: Encoder, text: str) -> list[int]:
    """Return the tokens of a piece of text inside a prompt."""
    return encoder.backend.encode(text, add_special_tokens=False).ids


def draw_number(rng: np.random.Generator, digits: int, written: str, taken: Sequence[str] = ()) -> str:
    """Return a number of `digits` digits, the first not 0, that is neither part of the text `written` nor `taken`.

    Raises:
        SettingsError: If the text holds nearly all such numbers.
    """
    for _ in range(NUMBER_ATTEMPTS):
        number = str(rng.integers(10 ** (digits - 1), 10**digits))
        if number not in written and number not in taken:
            return number
    raise SettingsError(
        f"retrieval.digits: {NUMBER_ATTEMPTS} drawn keys of {digits} digits all stand in the held-out text already, "
        "wanted one that does not; raise it"
    )


def answered(encoder: Encoder, question: str, answer: str) -> tuple[list[int], list[int], str]:
    """Return the tokens of a question, those of the answer after it in the same text, and the border between them.

    Raises:
        SettingsError: If a token crosses every border, or the tokens do not decode to the answer.
    """
    for left, right in BORDERS:
        asked = encode(encoder, question + left)
        both = encode(encoder, f"{question}{left}{right}{answer}")
        tokens = both[len(asked) :]
        if both[: len(asked)] != asked or not tokens:
            continue
        text = unspaced(encoder, tokens)
        if text != "".join(answer.split()):
            raise SettingsError(
                f"tokenizer: writes the number {answer} in tokens that say {text!r}, wanted the number; retrieval "
                "needs a tokenizer that knows digits"
            )
        return asked, tokens, left + right
    raise SettingsError(
        f"tokenizer: joins words and digits in one token in {question + ' ' + answer!r}, wanted a border between "
        "question and answer; retrieval cannot be asked with it"
    )
