"""A task of a tiny Llama and the rows of noise that it trains on."""

from functools import partial

import numpy as np
import torch

from e2ray.config.model import LlamaModel
from e2ray.config.positions import PositionSettings
from e2ray.config.train import TrainSettings
from e2ray.data.shards import Rows
from e2ray.train import worker

WINDOW, VOCABULARY = 24, 50
SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_key_value_heads": 2, "intermediate_size": 48}
CPU = torch.device("cpu")


def small_task(folder, *, preset, model=None, **train):
    """Return a task of four rows an update: `preset` at scales to 4, further settings of model and training."""
    steady = {"batch_sequences": 4, "micro_batch_sequences": 2, "lr": 1e-2, "log_every": 1, "zero_stage": 1}
    return worker.Task(
        name="run",
        folder=folder / "run",
        shards=folder / "shards",
        tokenizer_hash="a" * 64,
        vocab_size=VOCABULARY,
        window=WINDOW,
        base_context_length=WINDOW,
        seed=5,
        model=LlamaModel(**SIZES, base_context_length=WINDOW, **(model or {})),
        positions=PositionSettings.model_validate({"preset": preset, "max_scale": 4}),
        train=TrainSettings(**steady | train),
        rows_digest="0" * 64,
        show_progress=False,
    )


def rows(start, stop, *, batch):
    for step in range(start, stop):
        tokens = np.random.default_rng(step).integers(0, VOCABULARY, (batch, WINDOW), dtype=np.int32)
        yield Rows(np.arange(batch), tokens, None)


def run(task, read=rows, until=None):
    """Train a task, up to a step where one is named, and return the updates made in all."""
    task.folder.mkdir(exist_ok=True)
    return worker.run(
        task,
        device=CPU,
        open_rows=partial(read, batch=task.train.batch_sequences),
        report=lambda metrics: "stop" if metrics["step"] == until else None,
    )
