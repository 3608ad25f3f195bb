"""The Kubernetes manifest and the node image name things that exist and fit each other.

No cluster is asked: the fields are compared with those of KubeRay's API reference for ray.io/v1, written out here.
"""

import re
import shlex
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from e2ray.cli import parser
from e2ray.config.load import load
from e2ray.config.run import RunConfig
from e2ray.train.launch import READER_CPUS

ROOT = Path(__file__).resolve().parents[1]
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
