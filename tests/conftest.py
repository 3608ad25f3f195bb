"""What all tests share: one Ray for the process, few threads, no network.

With `-n 2` two processes share the tests. A module stays in one of them. Those that start a Ray are two groups: runs,
studies and comparisons, which share shards and a base, and all others, with the head node that jobs are submitted to.
These begin first, since they take longest.
"""

import gc
import os
import resource
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

os.environ |= {
    "AWS_ACCESS_KEY_ID": "a",  # of the object store on the loopback interface; processes of Ray inherit them
    "AWS_SECRET_ACCESS_KEY": "b",
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # several threads on few cores wait for each other at full speed
    "OPENBLAS_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.pop("RAY_ADDRESS", None)

import pytest

from e2ray.testing.recipes import recipe

ROOT = Path(__file__).resolve().parents[1]
gc.disable()  # while everything is imported, of which it takes a fifth of the time
FIRST = ("ray of runs", "ray of parts")  # the groups that take longest, in the order in which they begin
RUNS = ("tests/stages/", "tests/search/")


@cache
def group(module: str) -> str:
    """Return which tests a module's are kept together with, in one process."""
    if "mark.ray" not in (ROOT / module).read_text(encoding="utf-8"):
        return module
    return FIRST[not module.startswith(RUNS)]


def module_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give out whole groups; xdist's own groups by marker are blind to names of tests as pytest 9.2 keeps them."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group(module_of(nodeid))

    return Groups(config, log)


def pytest_collection_modifyitems(config, items):
    """Put the longest groups first where several processes share the tests; in one they keep their order."""
    if hasattr(config, "workerinput"):
        order = {name: place for place, name in enumerate(FIRST)}
        items.sort(key=lambda item: order.get(group(module_of(item.nodeid)), len(FIRST)))


def pytest_collection_finish(session):
    """Look for garbage again, but not among what was loaded: it is there to the end, and a look takes a second."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _few_threads():
    import torch

    torch.set_num_threads(1)  # tiny models run faster on one thread than on two


@contextmanager
def files_of_at_most(num_bytes):
    """Let no file of this process grow beyond so many bytes, as `ulimit -f` does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def limited():
    """A function that returns a context in which no file grows beyond so many bytes."""
    return files_of_at_most


@pytest.fixture
def small_disk(tmp_path):
    """Folder of a file system of 64 KiB; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here, so nothing is tried on a full disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def fill(small_disk):
    """A function that takes all room that is left on the small disk."""

    def write():
        with suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))

    return write


@pytest.fixture(scope="session")
def one_rank():
    """This process as a group of its own. One for the session: DeepSpeed keeps the first group it meets."""
    import torch.distributed as dist

    os.environ.setdefault("LOCAL_RANK", "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray of two CPUs in a folder of its own, ended with the session.

    The dashboard stays on: without it placement groups of ended trainings are never freed.
    """
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # its sockets need a short path
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=0,
        object_store_memory=128 * 2**20,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Python sources of this project: real text that is at hand, an eighth of a megabyte."""
    folder = tmp_path_factory.mktemp("corpus")
    for path in sorted((ROOT / "e2ray" / "core").rglob("*.py")):
        if path.stat().st_size:
            (folder / "-".join(path.relative_to(ROOT).parts)).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def texts(tmp_path):
    """A folder of twelve short texts of different lengths."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(12):
        (folder / f"{n:02d}.txt").write_text(" ".join(f"word {n * k} of text {k}" for k in range(20 + n)))
    return folder


@pytest.fixture
def small(tmp_path, corpus):
    """Storage, model, data and draws of a run in miniature, as the sections of a recipe."""
    made = recipe(tmp_path / "runs", texts=f"{corpus}/*.py", evaluate={"documents": 2, "document_tokens": 200})
    made["data"] |= {"validation_share": 0.2}
    return made


@pytest.fixture(scope="session")
def storage(tmp_path_factory):
    """One storage for the longest runs: shards and a base are named by content, so the first makes them for all."""
    return str(tmp_path_factory.mktemp("storage"))


@pytest.fixture
def own_tasks_only(monkeypatch):
    """The harness without the tasks that it brings: reading them all, for an unknown name or a group, takes seconds."""
    import lm_eval.tasks

    real = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **options: real(**options | {"include_defaults": False}))


@pytest.fixture
def ray_folder():
    """A folder for a Ray of a process of its own, which its sockets need a short path to."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def store():
    """An object store on the loopback interface: what copies a folder into it and returns its URI, and a client."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="corpus")

    def put(folder: Path, name: str) -> str:
        for path in folder.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "corpus", f"{name}/{path.relative_to(folder)}")
        return f"s3://corpus/{name}?endpoint_override={host}%3A{port}&scheme=http&region=us-east-1"

    yield put, client
    server.stop()


@pytest.fixture
def memory_for(monkeypatch):
    """Return a function (module, tokens): from then on the module's `token_nlls` has no memory for a longer window."""

    import torch

    def limit(module, tokens):
        real = module.token_nlls

        def small(*args, window, **options):
            if window > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(*args, window=window, **options)

        monkeypatch.setattr(module, "token_nlls", small)

    return limit
