"""Batches that wait on the GPU before their step begins: copied from pinned memory, on a stream of their own.

Else each micro batch is copied on the stream that computes, from memory that may be paged out, and the process waits
until the GPU has come that far. On a CPU there is nothing to copy.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from e2ray.train.batch import Batch
from e2ray.train.engine import Engine


def ahead(batches: Iterable[Batch], engine: Engine) -> Iterator[Batch]:
    """Yield the batches, their micro batches on the engine's GPU; one batch is read and copied before it is due."""
    if engine.device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(engine.device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            there = tuple(part.pinned().to(engine.device) for part in engine.micro_batches(batch))
        due, waiting = waiting, (replace(batch, there=there), stream.record_event())
        if due is not None:
            yield _arrived(*due)
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """Return a batch that the computing stream may read, which waits for the copy and keeps its memory."""
    computing = torch.cuda.current_stream()
    computing.wait_event(copied)
    for part in batch.there or ():
        for tensor in part.tensors():
            tensor.record_stream(computing)
    return batch
