"""A task of a tiny Llama, the rows of noise that it trains on, and its training in this process."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from e2ray.config.model import LlamaModel
from e2ray.config.positions import PositionSettings
from e2ray.config.train import TrainSettings
from e2ray.data.shards import Rows
from e2ray.testing.shards import TOKENIZER
from e2ray.train import worker
from e2ray.train.task import Task

WINDOW, VOCABULARY = 24, 50
SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_key_value_heads": 2, "intermediate_size": 48}
CPU = torch.device("cpu")


def small_task(folder: Path, *, preset: str, model: Mapping[str, object] | None = None, **train: object) -> Task:
    """Return a task of four rows an update: `preset` at scales to 4, further settings of model and training."""
    steady = {"batch_sequences": 4, "micro_batch_sequences": 2, "lr": 1e-2, "log_every": 1, "zero_stage": 1}
    return Task(
        name="run",
        folder=folder / "run",
        shards=folder / "shards",
        tokenizer_hash=TOKENIZER,
        vocab_size=VOCABULARY,
        window=WINDOW,
        base_context_length=WINDOW,
        seed=5,
        model=LlamaModel.model_validate({**SIZES, "base_context_length": WINDOW, **(model or {})}),
        positions=PositionSettings.model_validate({"preset": preset, "max_scale": 4}),
        train=TrainSettings.model_validate(steady | train),
        rows_digest="0" * 64,
        show_progress=False,
    )


def rows(start: int, stop: int, *, batch: int) -> Iterator[Rows]:
    """Yield the rows of each step, noise that follows from its number."""
    for step in range(start, stop):
        tokens = np.random.default_rng(step).integers(0, VOCABULARY, (batch, WINDOW), dtype=np.int32)
        yield Rows(np.arange(batch), tokens, None)


def run(task: Task, read: Callable[..., Iterator[Rows]] = rows, until: int | None = None) -> int:
    """Train a task, up to a step where one is named, and return the updates made in all."""
    task.folder.mkdir(exist_ok=True)
    return worker.run(
        task,
        device=CPU,
        open_rows=partial(read, batch=task.train.batch_sequences),
        report=lambda metrics: "stop" if metrics.step == until else None,
    )
