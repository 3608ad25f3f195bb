"""Documents that nearly repeat an earlier one, found by MinHash.

The similarity of two documents is the share of their five-token shingles that both have (Jaccard). It is estimated from
128 minima of hashes (Broder, "On the resemblance and containment of documents", 1997), to about 0.05; an index of bands
finds the few earlier documents that are worth a comparison. Of several similar ones the first in the corpus is kept,
held-out documents included, so that no training document nearly repeats a held-out one.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from e2ray.config.base import SettingsError
from e2ray.data.shards import Tokens
from e2ray.optional import library

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE = 5
PERMUTATIONS = 128
CHUNK = 16_384  # shingles hashed at once; each takes 4 bytes for each permutation
HIGHEST_BAND = 0.98  # of similarities that the index can look for; what it finds is compared in full
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that its powers mix every token into the upper half


class NearDuplicates:
    """The documents kept so far; about 2 KiB of memory for each."""

    def __init__(self, similarity: float) -> None:
        """Begin with none.

        Args:
            similarity: Jaccard similarity from which on a document counts as a repetition, 0 to 1.

        Raises:
            SettingsError: If the package for it is not installed.
        """
        try:
            datasketch = library("datasketch")
        except ImportError:
            raise SettingsError(
                "data.near_duplicates: needs the package datasketch; pip install 'e2ray[data]'"
            ) from None
        self.similarity = similarity
        self._empty = datasketch.MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)
        self._index = datasketch.MinHashLSH(threshold=min(similarity, HIGHEST_BAND), num_perm=PERMUTATIONS)
        self._known: dict[int, MinHash] = {}

    def repeats(self, tokens: Tokens) -> bool:
        """Return whether a document nearly repeats an earlier one; if not, it is one of those from now on.

        Args:
            tokens: int32 [tokens], at least one.
        """
        sketch = self._empty.copy()
        hashes = shingles(tokens)
        for first in range(0, len(hashes), CHUNK):
            sketch.update_batch(hashes[first : first + CHUNK].tolist())
        if any(sketch.jaccard(self._known[other]) >= self.similarity for other in self._index.query(sketch)):
            return True
        number = len(self._known)
        self._index.insert(number, sketch)
        self._known[number] = sketch
        return False


def shingles(tokens: Tokens) -> npt.NDArray[np.uint64]:
    """Return a 32-bit hash of every shingle of five tokens, each once, ascending; of all tokens if there are fewer."""
    length = min(SHINGLE, len(tokens))
    powers = [pow(MULTIPLIER, power + 1, 2**64) for power in range(length)]
    hashes = np.zeros(len(tokens) - length + 1, np.uint64)
    for start, power in enumerate(powers):
        hashes += tokens[start : start + len(hashes)].astype(np.uint64) * np.uint64(power)
    return np.unique(hashes >> np.uint64(32))
