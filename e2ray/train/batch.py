"""What one update sees: this rank's examples, each one's rows in sequence, and their draws.

An example is what an objective judges as a whole: one row for the next token, 1 + M rows where a chosen one is
compared with M others. Draws, micro batches and indices in the global batch are counted in examples, tokens in rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2ray.core.attention import Lengths, document_lengths
from e2ray.core.losses import plain_ids, predicted
from e2ray.core.positions import Draw


@dataclass(frozen=True)
class Batch:
    """Rows of one update, or of one forward of it.

    Attributes:
        tokens: int64 [rows, window].
        draw: Each row's scale and offsets; the rows of an example share one.
        token_index: Index of each token in its document where rows are packed, int64 [rows, window]; padding has
            -1 - its index among the padding. None where a row is one text.
        ids: The rows' numbers among all rows, int64 [rows]; None where nobody knows them.
        rows_per_example: Rows of one example.
        token_weight: What one predicted token weighs in the loss where rows are packed.
        lengths: Where documents begin, for an attention that has to be told (`core/attention.py`).
        there: Its micro batches, where they lie on the device already.
    """

    tokens: Int[Tensor, "rows window"]
    draw: Draw
    token_index: Int[Tensor, "rows window"] | None = None
    ids: Int[Tensor, " rows"] | None = None
    rows_per_example: int = 1
    token_weight: float | Float[Tensor, ""] = 1.0
    lengths: Lengths | None = None
    there: "tuple[Batch, ...] | None" = None

    def parts(self, examples: int) -> Iterator["Batch"]:
        """Yield the batch in order, `examples` at a time."""
        rows = examples * self.rows_per_example
        for start in range(0, len(self.tokens), rows):
            part = slice(start, start + rows)
            yield replace(
                self,
                tokens=self.tokens[part],
                draw=self.draw[part],
                token_index=None if self.token_index is None else self.token_index[part],
                ids=None if self.ids is None else self.ids[part],
            )

    def with_lengths(self) -> "Batch":
        """Return the same rows, on the CPU, with what tells an attention where their documents begin.

        Several rows of one text each need none: it takes rows apart by itself. Of a single one it would read the
        position ids in every layer.
        """
        if self.token_index is None and len(self.tokens) > 1:
            return self
        if self.token_index is None:
            ids = torch.arange(self.tokens.shape[1])[None]
        else:
            ids = plain_ids(self.token_index)
        return replace(self, lengths=document_lengths(ids))

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same rows on a device; their numbers and scales stay where they are."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """Return the same rows in memory that a GPU can copy from while it computes."""
        return self._changed(lambda tensor: tensor.pin_memory())

    def tensors(self) -> list[Tensor]:
        """Return what is moved from device to device."""
        known: list[Tensor] = []
        self._changed(lambda tensor: known.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return known

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with a change made to all that goes to a device."""
        index, lengths = self.token_index, self.lengths
        if lengths is not None:
            lengths = {key: change(each) if isinstance(each, Tensor) else each for key, each in lengths.items()}
        return replace(
            self,
            tokens=change(self.tokens),
            draw=Draw(self.draw.scale, change(self.draw.offsets)),
            token_index=None if index is None else change(index),
            lengths=lengths,
        )

    @property
    def given(self) -> dict[str, Tensor | int]:
        """Arguments of a forward beside the tokens.

        Position ids of packed rows restart with every document, and so transformers keeps documents apart
        (`core/proof.py` proves it).
        """
        ids: Lengths = {} if self.token_index is None else {"position_ids": plain_ids(self.token_index)}
        return {**ids, **(self.lengths or {})}

    def total(self, values: Float[Tensor, "rows predictions"]) -> Float[Tensor, ""]:
        """Return what one figure per predicted token adds to the loss."""
        return values.mean(dim=1).mean() if self.token_index is None else values.sum() * self.token_weight

    def by_row(self, values: Float[Tensor, "rows predictions"]) -> Float[Tensor, " rows"]:
        """Return each row's mean of a figure over what it predicts; what is not predicted has to be 0."""
        if self.token_index is None:
            return values.mean(dim=1)
        return values.sum(dim=1) / predicted(self.token_index).sum(dim=1).clamp(min=1)
