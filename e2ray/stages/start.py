"""What Ray starts for a function of a stage: it loads nothing heavy before the function arrives, packed."""

import os
from collections.abc import Iterator

import ray

from e2ray.loading import loading


def call(packed: bytes, num_calls: int) -> Iterator[object]:
    """Yield None as a function begins, packed with its arguments by `ray.cloudpickle`, then what it returns.

    `num_calls` of them may run at once and share this machine's cores.
    """
    with loading():
        import torch
        from transformers.utils import logging

        function, arguments = ray.cloudpickle.loads(packed)
    yield None
    logging.disable_progress_bar()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_calls))
    yield function(*arguments)
