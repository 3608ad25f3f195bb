"""What a training is told travels light: Ray Train's controller reads it and trains nothing."""

import pickle
import subprocess
import sys

import pytest

from e2ray.config.model import LlamaModel
from e2ray.config.positions import PositionSettings
from e2ray.config.train import TrainSettings
from e2ray.train.task import Task

READ = """
import pickle, sys
task = pickle.load(sys.stdin.buffer)
heavy = {"torch", "transformers", "peft", "deepspeed", "ray"} & sys.modules.keys()
assert not heavy, heavy
print(task.tokenizer_folder)
"""


@pytest.mark.parametrize("tokenizer", [None, "fetched"])
def test_a_task_is_read_without_what_trains_it(tmp_path, tokenizer):
    task = Task(
        name="run",
        folder=tmp_path,
        shards=tmp_path / "shards",
        tokenizer_hash="a" * 64,
        vocab_size=64,
        window=32,
        base_context_length=32,
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
        digest="0" * 64,
        tokenizer=tokenizer and tmp_path / tokenizer,
    )
    done = subprocess.run([sys.executable, "-c", READ], input=pickle.dumps(task), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    wanted = tmp_path / tokenizer if tokenizer else tmp_path / "shards" / "tokenizer"
    assert done.stdout.decode().strip() == str(wanted)
