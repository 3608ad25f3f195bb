"""A Ray of the run's own, one that is joined, and calls on GPUs; the Kubernetes manifest and the node image.

Of Kubernetes no cluster is asked: that files name things that exist and fit each other, and the fields are compared
with those of KubeRay's API reference for ray.io/v1, written out here.
"""

import ast
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
import pytest
import yaml

from e2ray.cli import parser
from e2ray.config.base import SettingsError
from e2ray.config.load import load
from e2ray.config.run import RunConfig
from e2ray.stages import cluster, remote
from e2ray.stages.access import is_loopback
from e2ray.train.launch import READER_CPUS

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
IN_IMAGE = PurePosixPath("/opt/e2ray")
RAY_JOB_FIELDS = set(
    "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus "
    "entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds rayClusterSpec "
    "runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend "
    "ttlSecondsAfterFinished".split()
)
RAY_CLUSTER_FIELDS = set(
    "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
    "headServiceAnnotations managedBy rayVersion suspend upgradeStrategy workerGroupSpecs".split()
)
HEAD_FIELDS = {"template", "headService", "enableIngress", "rayStartParams", "serviceType", "resources", "labels"}
WORKER_FIELDS = set(
    "suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds rayStartParams template scaleStrategy "
    "numOfHosts resources labels".split()
)


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    found = list(yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text()))
    return {document["kind"]: document for document in found}


@pytest.fixture(scope="module")
def job(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return documents["RayJob"]["spec"]


@pytest.fixture(scope="module")
def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.fixture(scope="module")
def config(job: dict[str, Any]) -> RunConfig:
    """The run that the entry point asks for, its recipe read from this checkout."""
    program, script, *arguments = shlex.split(job["entrypoint"])
    assert program == "python"
    here = ROOT / PurePosixPath(script).relative_to(IN_IMAGE)
    assert here.is_file()
    parsed = parser(here.stem).parse_args(arguments)
    return load(ROOT / PurePosixPath(parsed.config).relative_to(IN_IMAGE), parsed.overrides)


def test_every_field_is_one_of_kuberays(documents: dict[str, dict[str, Any]], job: dict[str, Any]):
    assert documents["RayJob"]["apiVersion"] == "ray.io/v1"
    cluster = job["rayClusterSpec"]
    assert set(job) <= RAY_JOB_FIELDS
    assert job["submissionMode"] in {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"}
    assert set(cluster) <= RAY_CLUSTER_FIELDS
    assert set(cluster["headGroupSpec"]) <= HEAD_FIELDS
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKER_FIELDS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert all(isinstance(value, str) for value in cluster["headGroupSpec"]["rayStartParams"].values())


def test_the_cluster_asks_for_a_token_and_tracks_train_runs(job: dict[str, Any], pods: list[dict[str, Any]]):
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for pod in pods:
        (container,) = pod["containers"]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment["RAY_TRAIN_ENABLE_STATE_TRACKING"] == "1"
        assert all(isinstance(value, str) for value in environment.values())


def test_the_ray_version_is_the_pinned_one(job: dict[str, Any]):
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and job["rayClusterSpec"]["rayVersion"] == pinned[1]


def test_the_run_is_written_to_the_shared_volume_of_every_pod(
    documents: dict[str, dict[str, Any]], pods: list[dict[str, Any]], config: RunConfig
):
    claim = documents["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods:
        (volume,) = [one["name"] for one in pod["volumes"] if "persistentVolumeClaim" in one]
        claims = [one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if one["name"] == volume]
        assert claims == [claim["metadata"]["name"]]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert PurePosixPath(config.storage).is_relative_to(mounts[volume])


def test_the_worker_pods_have_what_the_training_workers_ask_for(job: dict[str, Any], config: RunConfig):
    gpus = cpus = 0
    for group in job["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus += group["replicas"] * int(limits["nvidia.com/gpu"])
        cpus += group["replicas"] * int(limits["cpu"])
    assert config.cluster.use_gpu is True
    assert config.cluster.num_workers <= gpus
    assert config.cluster.num_workers * (1 + READER_CPUS) <= cpus


def test_all_pods_use_the_image_of_the_dockerfile_at_this_version(pods: list[dict[str, Any]]):
    images = {pod["containers"][0]["image"] for pod in pods}
    assert len(images) == 1
    assert images.pop().endswith(f"/e2ray:{version('e2ray')}")


def test_the_dockerfile_copies_files_that_exist_to_where_the_job_looks():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert {"constraints.txt", "pyproject.toml", "e2ray", "jobs"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert f"WORKDIR {IN_IMAGE}" in lines
    torch = re.search(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert torch and any(f"torch=={torch[1]}" in line for line in lines)


def test_calls_on_gpus_and_fresh_ones_get_a_process_each():
    assert remote._task(use_gpu=True, fresh=False)._max_calls == 1
    assert remote._task(use_gpu=False, fresh=True)._max_calls == 1
    assert remote._task(use_gpu=False, fresh=False)._max_calls == 0


def test_no_task_gets_its_gpus_where_ray_does_not_count_its_calls():
    """`.options(...)` takes `num_gpus` and leaves the number of calls of a process as it is."""
    for path in (ROOT / "e2ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "options":
                assert not {"num_gpus", "max_calls"} & {word.arg for word in node.keywords}, f"{path}:{node.lineno}"


def started(program: str, folder: str, home: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a program with a home of its own, and no word about Ray but the given ones."""
    names = ("RAY_", "GLOO_", "CUDA_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    own = {"HOME": str(home), "E2RAY_RAY_FOLDER": folder, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", program]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=inherited | own | environment, stdin=pipe, stdout=pipe, text=True)


ON_GPUS = """
import json, os, ray
from e2ray.stages.remote import remote_each
def where(seconds):
    import time
    time.sleep(seconds)
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], ray.get_gpu_ids()
folder = os.environ["E2RAY_RAY_FOLDER"]
ray.init(address="local", num_cpus=2, num_gpus=2, object_store_memory=2**27, _temp_dir=folder, log_to_driver=False)
for _ in range(3):
    print(json.dumps(remote_each("where", where, [(1,), (1,)], use_gpu=True)), flush=True)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_round_after_round_each_call_on_a_gpu_has_a_new_process_and_the_card_it_was_given(ray_folder, tmp_path):
    done = started(ON_GPUS, ray_folder, tmp_path)
    calls = [tuple(call) for line in done.communicate(timeout=300)[0].splitlines() for call in json.loads(line)]
    assert len(calls) == 6 and len({pid for pid, _, _ in calls}) == 6
    assert all(seen == str(given) for _, seen, (given,) in calls)
    assert {seen for _, seen, _ in calls} == {"0", "1"}


UP = """
import json, os, sys
from e2ray.stages.cluster import cluster
from e2ray.config.base import SettingsError
from e2ray.config.train import ClusterSettings
from e2ray.train import launch  # as a run does, which loads Ray before there is a cluster

def look():
    import socket
    from ray.util.state import list_nodes
    return [node.node_ip for node in list_nodes()], ray.get_runtime_context().gcs_address

try:
    with cluster(ClusterSettings(allow_open="open" in sys.argv)):
        import ray
        nodes, address = ray.get(ray.remote(look).remote())
        print(json.dumps({"nodes": nodes, "seen": address, "own": ray.get_runtime_context().gcs_address}), flush=True)
        sys.stdin.readline()
    print(json.dumps({name: value for name, value in os.environ.items() if name.startswith(("RAY_", "GLOO_"))}))
except SettingsError as error:
    print("refused:", error)
"""


def answer(process: subprocess.Popen[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the lines before the one that says the Ray is up, and what that one says."""
    before = []
    for line in process.stdout or []:
        if line.startswith("{"):
            return before, json.loads(line)
        before.append(line.strip())
    raise AssertionError(before)


@pytest.mark.ray
@pytest.mark.slow
def test_two_runs_side_by_side_have_a_ray_each_that_only_this_machine_reaches(ray_folder, tmp_path):
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("5" * 64)
    token.chmod(0o644)
    one = started(UP, ray_folder, tmp_path)
    told, first = answer(one)
    assert any("auth_token: other users could read Ray's token (mode 0644)" in line for line in told)
    other = started(UP, ray_folder, tmp_path)
    _, second = answer(other)
    assert token.stat().st_mode & 0o777 == 0o600
    assert first["own"] != second["own"]
    for each in (first, second):
        assert each["own"] == each["seen"] and each["nodes"] == ["127.0.0.1"]
    for process in (one, other):
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        listening = [c.laddr.ip for each in tree for c in each.net_connections("inet") if c.status == "LISTEN"]
        assert len(listening) > 8
        assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    for process in (one, other):
        left = json.loads(process.communicate("\n", timeout=60)[0].splitlines()[-1])
        assert not {"RAY_API_SERVER_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_ADDRESS"} & left.keys()
    logs = [path.read_text(errors="replace") for path in Path(ray_folder).glob("session_2*/logs/monitor*.*")]
    assert logs and not [log for log in logs if "Traceback" in log]


def joins(folder: str, home: Path, *words: str, **environment: str) -> str:
    process = started(f"import sys; sys.argv += {list(words)!r}\n{UP}", folder, home, **environment)
    return process.communicate("\n", timeout=120)[0]


@pytest.mark.ray
@pytest.mark.slow
def test_auto_says_what_it_joins_and_an_open_cluster_wants_a_word(ray_folder, tmp_path):
    """The Ray of `ray start` without a token listens on the machine's address, beside a run's own that does not."""
    home = {"HOME": str(tmp_path), "TMPDIR": ray_folder, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    control, dashboard, client = cluster._free_ports(3)
    head = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={control}", "--num-cpus=2"]
    head += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", "--object-store-memory=100000000"]
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(head, env=inherited | home, stdout=log, stderr=log, start_new_session=True)
    own = started(UP, ray_folder, tmp_path)
    try:
        answer(own)
        found = Path(ray_folder) / "ray" / "ray_current_cluster"
        deadline = time.monotonic() + 90
        while not found.exists():
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "head.log").read_text()
            time.sleep(0.2)
        address = found.read_text().strip()
        refused = joins(ray_folder, tmp_path, RAY_ADDRESS=address, TMPDIR=ray_folder)
        assert re.search(rf"^refused: cluster.allow_open: false, but the Ray at {address} asks for no token", refused)
        said = joins(ray_folder, tmp_path, "open", RAY_ADDRESS="auto", TMPDIR=ray_folder).splitlines()
        assert said[0] == f"RAY_ADDRESS: auto joined the Ray at {address}: CPU 2, GPU 0"
        assert said[1].startswith(f"warning: the Ray at {address} asks for no token")
        assert json.loads(said[2])["own"] == address == json.loads(said[2])["seen"]
    finally:
        own.communicate("\n", timeout=60)
        tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        process.wait(30)
        for child in psutil.wait_procs(tree, timeout=10)[1]:
            child.kill()


@pytest.mark.parametrize("length", [46, 80, 200])
def test_a_folder_whose_sockets_get_too_long_a_path_is_told_with_the_setting(tmp_path, monkeypatch, length):
    monkeypatch.setattr(os, "getpid", lambda: 12345)
    monkeypatch.setenv("E2RAY_RAY_FOLDER", "/tmp/" + "r" * (length - 5))
    with pytest.raises(
        SettingsError, match=rf"^E2RAY_RAY_FOLDER: .* has {length} bytes, wanted 45 at most.*/tmp/ray"
    ) as told:
        cluster.ray_folder()
    assert "\n" not in str(told.value) and not Path("/tmp/" + "r" * (length - 5)).exists()
    monkeypatch.delenv("E2RAY_RAY_FOLDER")
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "t" * (length - 5))
    with pytest.raises(
        SettingsError, match=rf"^TMPDIR: .* has {length + 4} bytes, wanted 45 at most.*E2RAY_RAY_FOLDER"
    ):
        cluster.ray_folder()


def test_letters_of_several_bytes_count_as_such(monkeypatch):
    monkeypatch.setenv("E2RAY_RAY_FOLDER", "/tmp/" + "\u00e9" * 21)
    with pytest.raises(SettingsError, match="has 47 bytes"):
        cluster.ray_folder()


def test_the_longest_folder_that_is_taken_holds_rays_sockets(ray_folder, monkeypatch):
    """The limit is Ray's own: its name for the socket in such a folder is one that Ray takes."""
    from ray._private.utils import validate_socket_filepath

    most = 107 - len("/session_2026-01-01_00-00-00_000000_") - len(str(os.getpid())) - len("/sockets/plasma_store")
    folder = ray_folder + "/" + "r" * (most - len(ray_folder) - 1)
    monkeypatch.setenv("E2RAY_RAY_FOLDER", folder)
    assert cluster.ray_folder() == Path(folder) and Path(folder).is_dir()
    validate_socket_filepath(f"{folder}/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
    monkeypatch.setenv("E2RAY_RAY_FOLDER", folder + "r")
    with pytest.raises(SettingsError, match="E2RAY_RAY_FOLDER"):
        cluster.ray_folder()


@pytest.mark.parametrize("place", ["/proc/none", "/dev/null/ray"])
def test_a_folder_that_cannot_be_written_to_is_told_with_the_setting(monkeypatch, place):
    monkeypatch.setenv("E2RAY_RAY_FOLDER", place)
    with pytest.raises(SettingsError, match=rf"E2RAY_RAY_FOLDER: {place} cannot hold Ray's files: .*another folder"):
        cluster.ray_folder()


def test_a_ray_on_loopback_alone_is_told_from_one_on_all_interfaces():
    import ray

    with socket.socket() as alone, socket.socket() as everywhere:
        alone.bind(("127.0.0.1", 0))
        everywhere.bind(("", 0))
        for one in (alone, everywhere):
            one.listen()
        ports = [one.getsockname()[1] for one in (alone, everywhere)]
        machine_has_another_address = not is_loopback(ray.util.get_node_ip_address())
        assert cluster._on_loopback_alone(f"127.0.0.1:{ports[0]}") == machine_has_another_address
        assert not cluster._on_loopback_alone(f"127.0.0.1:{ports[1]}")
    assert not cluster._on_loopback_alone("10.0.0.1:6379") and not cluster._on_loopback_alone("ray://127.0.0.1:1")


@pytest.mark.parametrize("address", ["garbage", "10.0.0.1", "10.0.0.1:port", "auto:1x"])
def test_an_address_that_is_none_is_told_before_anything_is_asked(monkeypatch, address):
    with (
        pytest.raises(SettingsError, match=rf"RAY_ADDRESS: '{address}' is no address of a Ray, wanted host:port, auto"),
        cluster._attached(address),
    ):
        pass


def test_auto_takes_the_newest_of_ray_start_or_the_only_shared_one(monkeypatch):
    from ray._private import services, utils

    def found(running, newest):
        monkeypatch.setattr(services, "find_gcs_addresses", lambda: frozenset(running))
        monkeypatch.setattr(utils, "read_ray_address", lambda: newest)
        return cluster._found_here()

    assert found(["10.0.0.1:1", "10.0.0.1:2", "127.0.0.1:3"], "10.0.0.1:2") == "10.0.0.1:2"
    assert found(["10.0.0.1:1", "127.0.0.1:3"], "10.0.0.1:9") == "10.0.0.1:1"
    assert found([], "10.0.0.1:9") == "10.0.0.1:9"  # processes that cannot be seen from here
    with pytest.raises(SettingsError, match=r"auto finds 2 Rays here, 10\.0\.0\.1:1, 10\.0\.0\.1:2; name one of them"):
        found(["10.0.0.1:1", "10.0.0.1:2"], None)
    with pytest.raises(SettingsError, match="auto finds no Ray here"):
        found(["127.0.0.1:3"], None)
