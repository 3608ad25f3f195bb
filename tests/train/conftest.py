import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from e2ray.config.model import LlamaModel
from e2ray.config.positions import PositionSettings
from e2ray.config.train import TrainSettings
from e2ray.testing.shards import TOKENIZER, write_shards
from e2ray.train.task import Task

WINDOW, VOCABULARY = 32, 64
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def train_on_ranks(tmp_path_factory):
    """Return a function that runs worlds of (ranks, phases), see ranks.py, and returns the losses of each.

    There is no compiler's helper on PATH and no compiled op in reach: whatever DeepSpeed built would be found in the
    extensions folder.
    """

    def run(*worlds):
        folder = tmp_path_factory.mktemp("ranks")
        extensions = folder / "extensions"
        extensions.mkdir()
        environment = os.environ | {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "TORCH_EXTENSIONS_DIR": str(extensions),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(Path(__file__).with_name("ranks.py")), json.dumps(worlds), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        assert not list(extensions.rglob("*")), "DeepSpeed compiled something"
        assert "ld returned" not in done.stderr, "DeepSpeed probed for something with a linker"
        return [json.loads((folder / f"{number}.json").read_text()) for number in range(len(worlds))]

    return run


@pytest.fixture
def task(tmp_path, request):
    """A task on shards of random rows, eight updates of four rows, a line for each; packed where it is asked for."""
    pack = getattr(request, "param", "concat")
    generator = np.random.default_rng(0)
    lengths = [10 * WINDOW] * 5 if pack == "concat" else generator.integers(2, WINDOW, 90).tolist()
    documents = [generator.integers(0, VOCABULARY, length, dtype=np.int32) for length in lengths]
    options = {"vocab_size": VOCABULARY, "shard_rows": 20, "pack": pack, "waiting": 20}
    shards = write_shards(tmp_path / "shards", documents, window=WINDOW, **options)
    folder = tmp_path / "run"
    folder.mkdir()
    return Task(
        name="run",
        folder=folder,
        shards=shards,
        tokenizer_hash=TOKENIZER,
        vocab_size=VOCABULARY,
        window=WINDOW,
        base_context_length=WINDOW,
        seed=3,
        model=LlamaModel(
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            num_key_value_heads=2,
            intermediate_size=48,
            base_context_length=32,
        ),
        positions=PositionSettings.model_validate({"preset": "e2llm", "max_scale": 8}),
        train=TrainSettings(steps=8, batch_sequences=4, lr=1e-2, log_every=1, checkpoint_every=4),
        rows_digest="0" * 64,
        packed=pack != "concat",
        ledger=True,
    )
