"""From texts to tokens, one way for every shard, without the library that loads tokenizers."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer


class Encoder:
    """Turns documents into tokens, one way for every shard.

    Needs only the text of tokenizer.json, so a process that tokenises imports neither transformers nor torch.
    Truncation and padding in that file do not cut documents, and special tokens spelled out in a text stay text.
    """

    def __init__(self, tokenizer_json: str, *, prefix: Sequence[int], end: int) -> None:
        self.backend = Tokenizer.from_str(tokenizer_json)
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True
        self.prefix = list(prefix)
        self.end = end

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Return the tokens of each text, int32 [tokens]: the prefix, the text, the end token."""
        return self.arrays(self.encodings(texts))

    def encodings(self, texts: Sequence[str]) -> list[Encoding]:
        """Return the library's encoding of each text; other Python threads run meanwhile."""
        return list(self.backend.encode_batch_fast(list(texts), add_special_tokens=False))

    def arrays(self, encodings: Sequence[Encoding]) -> list[npt.NDArray[np.int32]]:
        """Return the tokens of encodings from `encodings`, as `encode` does."""
        return [np.array([*self.prefix, *encoding.ids, self.end], dtype=np.int32) for encoding in encodings]
