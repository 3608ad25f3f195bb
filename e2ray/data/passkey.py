"""Short documents that hide a number and ask for it: they teach a small base model to look back.

The sentence and the question are those of the retrieval task of that name, so that its accuracy inside the base context
length says whether a model can look back at all, before one asks how far. The text around them is from other documents.
"""

import numpy as np

from e2ray.config.data import PasskeySource

PASSKEY = " The pass key is{border}{key}. Remember it. {key} is the pass key."
PASSKEY_QUESTION = " What is the pass key? The pass key is"


def file_of(source: PasskeySource, number: int, sizes: np.ndarray) -> int:
    """Return which file the text of a document comes from, drawn with a probability proportional to its size.

    Args:
        source: Settings.
        number: Of the document, from 0.
        sizes: Bytes of each file, int [files], not all 0.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    drawn = np.random.default_rng([source.seed, number, 0]).integers(ends[-1])
    return int(np.searchsorted(ends, drawn, side="right"))


def document(source: PasskeySource, number: int, text: str) -> str:
    """Return a document: a stretch of `text` with a number hidden in it, the question and the answer.

    The number has `digits` digits, the first not 0, and does not occur in the stretch. The same settings, document
    number and text give the same document.
    """
    rng = np.random.default_rng([source.seed, number, 1])
    length = int(rng.integers(source.min_characters, source.max_characters + 1))
    start = int(rng.integers(max(len(text) - length, 0) + 1))
    stretch = text[start : start + length]
    depth = int(rng.integers(len(stretch) + 1))
    low, high = 10 ** (source.digits - 1), 10**source.digits
    key = str(rng.integers(low, high))
    while key in stretch:
        key = str(rng.integers(low, high))
    hidden = PASSKEY.format(border=" ", key=key)
    return f"{stretch[:depth]}{hidden}{stretch[depth:]}{PASSKEY_QUESTION} {key}"
