"""Ranks on two Ray nodes read the rows that one process reads, from shards on the disk and in an object store."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2ray.data.shards import local_batches

NODES = Path(__file__).with_name("nodes.py")
ROOT = NODES.parents[2]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_each_node_reads_the_rows_of_its_rank(where, store, write_shards, documents, ray_folder):
    folder = write_shards(documents)
    place = str(folder) if where == "folder" else store[0](folder, "nodes")
    child = subprocess.run(
        [sys.executable, str(NODES), place, ray_folder],
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    found = json.loads(child.stdout.splitlines()[-1])
    assert found["nodes"] == 2
    assert len({rank["node"] for rank in found["ranks"]}) == 2
    for rank, read in enumerate(found["ranks"]):
        wanted = local_batches(
            folder,
            seed=3,
            start_step=2,
            stop_step=14,
            rank=rank,
            num_workers=2,
            batch_sequences=8,
            window=16,
            tokenizer_hash=None,
        )
        assert read["rows"] == [step.ids.tolist() for step in wanted]
