"""Faster imports: most of what Python does while it loads torch and transformers is not needed."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Turn garbage collection off in the block: imports leave hardly any, and searching takes a fifth of their time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
