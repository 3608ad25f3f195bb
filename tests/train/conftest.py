import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def train_on_ranks(tmp_path_factory):
    """Return a function that runs phases (see ranks.py) on n ranks and returns their losses.

    There is no compiler's helper on PATH and no compiled op in reach: whatever DeepSpeed built would be found in the
    extensions folder.
    """

    def run(num_ranks, phases):
        folder = tmp_path_factory.mktemp("ranks")
        extensions = folder / "extensions"
        extensions.mkdir()
        environment = os.environ | {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "TORCH_EXTENSIONS_DIR": str(extensions),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={num_ranks}"]
        command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
        command += [str(Path(__file__).with_name("ranks.py")), json.dumps(phases), str(folder / "results.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        assert not list(extensions.rglob("*")), "DeepSpeed compiled something"
        assert "ld returned" not in done.stderr, "DeepSpeed probed for something with a linker"
        return json.loads((folder / "results.json").read_text())

    return run
