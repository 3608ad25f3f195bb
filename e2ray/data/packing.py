"""Which documents share a row: greedy best fit over a bounded number of waiting documents.

A row takes the longest document that waits and fits, then the longest that fits into what is left, until none does.
Waiting documents are kept by length, with one bit for each length, so that choosing costs the same however many wait.
A document longer than a row is cut into whole rows and a rest, which waits like any document.

The order of the documents only decides which of them wait at a time: the same documents in the same order give the same
rows.
"""

from collections import deque
from collections.abc import Iterator
from typing import Literal

from e2ray.data.shards import Tokens

Piece = tuple[int, Tokens]  # a document's number in the corpus, and at most a row of its tokens
Row = list[Piece]


def pieces(document: int, tokens: Tokens, window: int) -> Iterator[Piece]:
    """Yield a document in stretches of `window` tokens, the last one shorter; nothing of an empty document."""
    for first in range(0, len(tokens), window):
        yield document, tokens[first : first + window]


class Packer:
    """Puts documents into rows of at most `window` tokens, without cutting any that is no longer than a row."""

    def __init__(self, window: int, *, pack: Literal["document", "best_fit"], waiting: int) -> None:
        """Begin with nothing.

        Args:
            window: Tokens of a row.
            pack: `document` gives each piece a row of its own; `best_fit` fills rows with several.
            waiting: Most documents that wait; the more, the fuller the rows and the more memory.
        """
        self.window, self.most = window, 0 if pack == "document" else waiting
        self._waiting: dict[int, deque[Piece]] = {}
        self._lengths = 0  # bit n is set where a piece of n tokens waits
        self._count = 0

    def add(self, document: int, tokens: Tokens) -> list[Row]:
        """Take a document and return the rows that are due."""
        length = len(tokens)
        if self.most and 0 < length < self.window:  # nearly all documents, nearly always
            self._wait(length, (document, tokens))
            return [self._row()] if self._count > self.most else []
        rows = []
        for piece in pieces(document, tokens, self.window):
            length = len(piece[1])
            if length == self.window or not self.most:
                rows.append([piece])
            else:
                self._wait(length, piece)
                if self._count > self.most:
                    rows.append(self._row())
        return rows

    def finish(self) -> Iterator[Row]:
        """Yield the rows of all waiting documents."""
        while self._count:
            yield self._row()

    def _wait(self, length: int, piece: Piece) -> None:
        queue = self._waiting.get(length)
        if queue is None:
            queue = self._waiting[length] = deque()
        if not queue:
            self._lengths |= 1 << length
        queue.append(piece)
        self._count += 1

    def _row(self) -> Row:
        row, room, lengths = [], self.window, self._lengths
        while fitting := lengths & ((2 << room) - 1):  # the bits of lengths that fit into the room
            length = fitting.bit_length() - 1
            queue = self._waiting[length]
            row.append(queue.popleft())
            if not queue:
                lengths ^= 1 << length
            room -= length
        self._count -= len(row)
        self._lengths = lengths
        return row
