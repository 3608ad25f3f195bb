"""The commands of the README, for real: a head node with a token, `ray job submit`, logs, stop, and once more."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
STEPS, CHECKPOINT_EVERY = 240, 20
WORDS = "quick brown foxes jump over seven lazy sailors who count bright stars above the old harbour".split()

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]


@dataclass(frozen=True)
class Head:
    """A running head node that is reached with a token."""

    folder: Path
    environment: dict[str, str]
    url: str
    metrics_url: str
    token: str

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one `ray` command in the checkout; `environment` replaces variables."""
        return subprocess.run(
            [str(BIN / "ray"), *arguments],
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def submit(
        self, job: str, *options: str, entry: tuple[str, ...] = ("train", "small"), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Submit a command and recipe, the small run if none is named, under an id."""
        command, recipe, *more = entry
        entry = ["python", f"jobs/{command}.py", "--config", str(self.folder / f"{recipe}.yaml"), *more]
        entry += ["--set", f"storage={self.folder / 'storage'}"]
        command = ["job", "submit", "--submission-id", job, *options, "--working-dir", ".", "--", *entry]
        return self.ray(*command, **environment)

    def get(self, path: str, *, token: str | None = None) -> Any:
        """Return the JSON of a page of the dashboard's API."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=30) as answer:
            return json.load(answer)

    def gauges(self) -> dict[str, dict[str, float]]:
        """Return e2ray's gauges on the node's Prometheus page: name -> run -> value."""
        with urllib.request.urlopen(self.metrics_url, timeout=30) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            samples = [sample for family in families for sample in family.samples]
        found: dict[str, dict[str, float]] = {}
        for sample in samples:
            if sample.name.startswith("ray_e2ray_"):
                key = sample.labels.get("run") or sample.labels.get("state") or sample.labels["study"]
                found.setdefault(sample.name, {})[key] = sample.value
        return found


@dataclass(frozen=True)
class Story:
    """What was seen of a run that was submitted, stopped, and submitted again."""

    run: Path
    gauges: dict[str, dict[str, float]]
    train_runs: list[dict[str, Any]]
    stopped: dict[str, Any]  # status.json after the stop
    lines_at_stop: list[str]  # of metrics.jsonl
    checkpoint_at_stop: int
    again: subprocess.CompletedProcess[str]
    logs: str


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(what: str, look: Callable[[], Any], *, timeout_s: float = 120.0) -> Any:
    """Return the first true value of `look`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.25)
    raise AssertionError(f"waited {timeout_s} s in vain for {what}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End the head node and all it started, and nothing else."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=30)
    _, alive = psutil.wait_procs(children, timeout=10)
    for child in alive:
        child.kill()
    psutil.wait_procs(alive, timeout=10)


def write_inputs(folder: Path) -> None:
    """Write texts, a tiny Llama and the recipe that trains it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    for index in range(8):
        chosen = [WORDS[(7 * index + place * (index + 3)) % len(WORDS)] for place in range(1200)]
        path = folder / ("held" if index == 0 else "texts") / f"{index}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(" ".join(chosen))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = LlamaConfig(vocab_size=300, max_position_embeddings=32, num_key_value_heads=2, **sizes)
        LlamaForCausalLM(config).save_pretrained(folder / "llama")
    text = {"kind": "text"}
    recipe = {
        "name": "small",
        "model": {"kind": "pretrained", "path": str(folder / "llama")},
        "data": {
            "corpus": [text | {"paths": [str(folder / "texts" / "*.txt")]}],
            "validation_corpus": [text | {"paths": [str(folder / "held" / "*.txt")]}],
            "validation_share": 0,
            "tokenizer": {"kind": "byte_level_bpe", "vocab_size": 300},
            "window": 32,
        },
        "positions": {"preset": "e2llm", "max_scale": 4},
        "train": {
            "steps": STEPS,
            "batch_sequences": 4,
            "lr": 1e-3,
            "checkpoint_every": CHECKPOINT_EVERY,
            "log_every": 5,
            "progress_s": 0.5,
        },
        "evaluate": {"windows": [32, 64], "scales": [1, 2], "documents": 1, "document_tokens": 64},
        "export": {"context_lengths": [64]},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(recipe))
    search = {"trials": 8, "baselines": ["e2llm", "pose"], "progress_s": 1.0}
    search["early_stopping"] = {"kind": "asha", "min_steps": 10}
    study = recipe | {
        "name": "study",
        "train": recipe["train"] | {"steps": 30, "checkpoint_every": 30},
        "search": search,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    if "PYTEST_XDIST_WORKER" in os.environ:  # one process alone has these tests, or each would start a head node
        (tmp_path_factory.getbasetemp().parent / "head-node").mkdir()
    folder = Path(tempfile.mkdtemp(prefix="e2-", dir="/tmp"))  # short: Ray's sockets allow 107 bytes
    write_inputs(folder)
    names = ("gcs", "dashboard", "agent", "agent_grpc", "runtime_env", "metrics", "client", "autoscaler", "head")
    port = dict(zip(names, map(str, free_ports(len(names))), strict=True))
    token_file = folder / ".ray" / "auth_token"
    ours = ("RAY_", "PYTHONPATH", "E2RAY_")  # the job must run from the uploaded copy, with nothing inherited
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
        "GOMP_SPINCOUNT": "10000",  # as in a Ray of e2ray's own: a thread that waits leaves its core to others
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_ADDRESS": f"http://127.0.0.1:{port['dashboard']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",
        "AUTOSCALER_METRIC_PORT": port["autoscaler"],
        "DASHBOARD_METRIC_PORT": port["head"],
    }
    generate = {name: value for name, value in environment.items() if name != "RAY_AUTH_TOKEN_PATH"}
    command = [str(BIN / "ray"), "get-auth-token", "--generate"]  # it knows one place, ~/.ray/auth_token
    subprocess.run(command, env=generate | {"HOME": str(folder)}, check=True, capture_output=True, timeout=60)
    options = {
        "dashboard-host": "127.0.0.1",
        "port": port["gcs"],
        "dashboard-port": port["dashboard"],
        "dashboard-agent-listen-port": port["agent"],
        "dashboard-agent-grpc-port": port["agent_grpc"],
        "runtime-env-agent-port": port["runtime_env"],
        "metrics-export-port": port["metrics"],
        "ray-client-server-port": port["client"],
        "temp-dir": str(folder / "ray"),
        "num-cpus": "2",
        "object-store-memory": str(128 * 2**20),
    }
    start = [str(BIN / "ray"), "start", "--head", "--block", *(f"--{key}={value}" for key, value in options.items())]
    started = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(start, cwd=folder, env=started, stdout=log, stderr=log, start_new_session=True)
    found = Head(
        folder,
        environment,
        url=environment["RAY_ADDRESS"],
        metrics_url=f"http://127.0.0.1:{port['metrics']}/metrics",
        token=token_file.read_text().strip(),
    )
    try:
        wait_for("the head node", lambda: process.poll() is not None or answers(found), timeout_s=60)
        assert process.poll() is None, (folder / "head.log").read_text()
        yield found
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def answers(head: Head) -> bool:
    try:
        return head.get("/api/jobs/") == [] and bool(head.gauges() or True)
    except OSError:
        return False


def checkpoint_of(run: Path) -> int:
    """Return the step of a run's newest checkpoint; 0 before the first."""
    newest = run / "checkpoints" / "latest"
    return int(newest.read_text().removeprefix("step-")) if newest.exists() else 0


@pytest.fixture(scope="module")
def story(head: Head) -> Story:
    """Submit, watch, stop in the middle of the training, submit the same command again to its end."""
    run = head.folder / "storage" / "small"
    first = head.submit("first", "--no-wait")
    assert first.returncode == 0, first.stderr

    gauges: dict[str, dict[str, float]] = {}
    wanted = {f"ray_e2ray_{name}" for name in ("loss", "tokens_per_second", "scale_mean")}

    def trained() -> bool:
        assert head.get("/api/jobs/first")["status"] in ("PENDING", "RUNNING"), head.ray("job", "logs", "first").stdout
        gauges.update(head.gauges())  # each is exported by itself, a little before or behind the others
        return checkpoint_of(run) > 0 and wanted <= gauges.keys()

    wait_for("a checkpoint and the gauges", trained)
    train_runs = head.get("/api/train/v2/runs/v1")["train_runs"]
    stop = head.ray("job", "stop", "first")
    assert stop.returncode == 0, stop.stderr
    stopped = json.loads((run / "status.json").read_text())
    checkpoint = checkpoint_of(run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    again = head.submit("second")
    logs = head.ray("job", "logs", "second").stdout
    return Story(run, gauges, train_runs, stopped, lines, checkpoint, again, logs)


def test_gauges_of_the_run_are_on_the_nodes_prometheus_page(story: Story):
    losses, speeds, scales = (story.gauges[f"ray_e2ray_{name}"] for name in ("loss", "tokens_per_second", "scale_mean"))
    assert set(losses) == set(speeds) == set(scales) == {"small"}
    assert 0 < losses["small"] < 10
    assert speeds["small"] > 0
    assert 1 <= scales["small"] <= 4


def test_the_dashboards_api_knows_the_train_run(story: Story):
    (found,) = story.train_runs
    assert found["name"].startswith("small-")
    assert found["status"] == "RUNNING"
    assert found["job_details"]["submission_id"] == "first"
    assert [worker["world_rank"] for worker in found["attempts"][-1]["workers"]] == [0]


def test_a_stopped_job_leaves_a_preempted_run(story: Story):
    assert story.stopped["state"] == "preempted"
    assert story.stopped["ended_at"] is not None
    assert 0 < story.stopped["step"] <= STEPS


def test_the_same_submission_continues_from_the_checkpoint_and_succeeds(story: Story):
    assert story.again.returncode == 0, story.again.stdout + story.again.stderr
    status = json.loads((story.run / "status.json").read_text())
    assert (status["state"], status["step"], status["error"]) == ("succeeded", STEPS, None)
    lines = (story.run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(5, STEPS + 1, 5))
    kept = story.checkpoint_at_stop // 5  # a run begun anew would have other tokens_per_second in these lines
    assert kept > 0
    assert lines[:kept] == story.lines_at_stop[:kept]


def test_the_finished_job_has_left_every_file_of_a_run(story: Story):
    for name in ("config.yaml", "environment.json", "evaluation.parquet", "evaluation.png", "model/model.safetensors"):
        assert (story.run / name).stat().st_size > 0, name
    rows = json.loads((story.run / "evaluation.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"base", "tuned"}
    assert (story.run / "export" / "serving" / "64").is_dir()


def test_logs_show_progress_and_the_result(story: Story):
    assert f"step {STEPS}/{STEPS}" in story.logs
    assert f"Model: {story.run / 'export'}" in story.logs
    assert f"step {STEPS}/{STEPS}" in story.again.stdout  # `ray job submit` follows the run too


def test_the_upload_is_the_source_tree_and_nothing_else(head: Head, story: Story):
    packages = head.folder / "ray" / "session_latest" / "runtime_resources" / "working_dir_files"
    copies = [path for path in packages.glob("_ray_pkg_*") if path.is_dir()]
    assert copies
    for copy in copies:
        names = {path.name for path in copy.iterdir()}
        assert {"e2ray", "jobs"} <= names
        assert not names & {".git", ".venv", "runs", "build", "dist"}
        assert sum(path.stat().st_size for path in copy.rglob("*") if path.is_file()) < 5 * 2**20


def test_a_submission_without_the_token_is_refused(head: Head):
    other = head.folder / "other_token"
    other.write_text(secrets.token_hex(32))
    refused = head.submit("refused", "--no-wait", RAY_AUTH_TOKEN_PATH=str(other))
    assert refused.returncode != 0
    assert "Authentication" in refused.stdout + refused.stderr
    for token in ("", secrets.token_hex(32)):
        with pytest.raises(urllib.error.HTTPError, match=r"HTTP Error 40[13]"):
            head.get("/api/jobs/", token=token)
    assert "refused" not in [job["submission_id"] for job in head.get("/api/jobs/")]


@pytest.mark.slow
def test_a_study_is_a_job_that_can_be_stopped_and_continued(head: Head, story: Story):
    entry = ("tune", "study", "--resume")
    first = head.submit("study-1", "--no-wait", entry=entry)
    assert first.returncode == 0, first.stderr

    def under_way() -> bool:
        assert head.get("/api/jobs/study-1")["status"] in ("PENDING", "RUNNING"), head.ray(
            "job", "logs", "study-1"
        ).stdout
        shown = head.gauges()  # each gauge is exported by itself, a little before or behind the other
        return shown.get("ray_e2ray_search_trials", {}).get("complete", 0) >= 2 and "ray_e2ray_search_best" in shown

    wait_for("two complete trials and the best of them on the Prometheus page", under_way)
    assert head.gauges()["ray_e2ray_search_best"]["study"] > 0
    assert any(run.startswith("study-") for run in head.gauges()["ray_e2ray_loss"])
    actors = head.get("/logical/actors")["data"]["actors"].values()
    benches = [actor for actor in actors if "study" in (actor.get("reprName") or "") and actor["state"] == "ALIVE"]
    assert 1 <= len(benches) <= 2, [actor.get("reprName") for actor in actors]
    assert head.ray("job", "stop", "study-1").returncode == 0
    folder = head.folder / "storage" / "study"
    assert json.loads((folder / "status.json").read_text())["state"] == "preempted"
    again = head.submit("study-2", entry=entry)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "study: 8 of 8 trials" in again.stdout and "best.yaml" not in again.stderr
    assert json.loads((folder / "status.json").read_text())["state"] == "succeeded"
    assert len((folder / "export" / "trials.csv").read_text().splitlines()) == 9
    assert (folder / "export" / "report.html").stat().st_size > 10_000
