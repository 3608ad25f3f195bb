"""What a training is told travels light: Ray Train's controller reads it and trains nothing."""

import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

READ = """
import pickle, sys
task = pickle.load(sys.stdin.buffer)
heavy = {"torch", "transformers", "peft", "deepspeed", "ray"} & sys.modules.keys()
assert not heavy, heavy
print(task.tokenizer_folder)
"""


@pytest.mark.parametrize("tokenizer", [None, "fetched"])
def test_a_task_is_read_without_what_trains_it(task, tmp_path, tokenizer):
    told = pickle.dumps(replace(task, tokenizer=tokenizer and tmp_path / tokenizer))
    done = subprocess.run([sys.executable, "-c", READ], input=told, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    wanted = tmp_path / tokenizer if tokenizer else tmp_path / "shards" / "tokenizer"
    assert done.stdout.decode().strip() == str(wanted)
