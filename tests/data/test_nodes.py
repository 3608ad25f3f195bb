"""Shards of a bucket read on another node than the one that trains."""

import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from e2ray.data.shards import local_batches

pytestmark = [pytest.mark.slow, pytest.mark.ray]

READ = """
import sys
import numpy as np
import ray
from ray.cluster_utils import Cluster
from e2ray.data.stream import batches

uri, out, temporary = sys.argv[1:]
local = {"node_ip_address": "127.0.0.1"}
head = local | {"num_cpus": 0, "temp_dir": temporary, "include_dashboard": False, "object_store_memory": 10**8}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(num_cpus=2, object_store_memory=10**8, **local)
ray.init(address=cluster.address, log_to_driver=False)
assert len([node for node in ray.nodes() if node["Alive"]]) == 2
found = batches(uri, seed=3, start_step=5, stop_step=25, rank=1, num_workers=2, batch_sequences=6, window=16,
                tokenizer_hash=None)
np.save(out, np.stack([rows.tokens for rows in found]))
ray.shutdown()
cluster.shutdown()
"""


def test_a_node_without_a_cpu_trains_on_what_another_one_reads(store, write_shards, documents, tmp_path):
    folder = write_shards(documents)
    uri = store[0](folder, "nodes")
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # its sockets need a short path
    command = [sys.executable, "-c", READ, uri, str(tmp_path / "read.npy"), temporary]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    shutil.rmtree(temporary, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = local_batches(
        folder, seed=3, start_step=5, stop_step=25, rank=1, num_workers=2, batch_sequences=6, window=16,
        tokenizer_hash=None,
    )  # fmt: skip
    np.testing.assert_array_equal(np.load(tmp_path / "read.npy"), np.stack([rows.tokens for rows in wanted]))
