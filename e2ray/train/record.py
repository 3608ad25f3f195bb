"""What a run leaves while it trains: metrics.jsonl, skipped.jsonl, status.json, TensorBoard files and progress lines.

Only rank 0 of the workers and the driver write here. A line of a jsonl file is flushed when it is written; lines
behind the checkpoint that a restart continues from, and a line torn by a kill, are removed when it starts. What is no
finite number is null in them and has no place in TensorBoard and gauges.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil

from e2ray import files

ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
SKIPPED = "skipped.jsonl"
State = Literal["running", "succeeded", "failed", "preempted"]
PACKAGES = ("e2ray", "torch", "transformers", "deepspeed", "ray", "pyarrow", "optuna", "peft", "tokenizers", "numpy")


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_status(folder: Path, **changes: Any) -> None:
    """Update status.json: `state`, `step`, `error`, `started_at`, `ended_at`, and a `result` line at the end."""
    path = folder / "status.json"
    status = read_status(folder) or {
        "state": "running",
        "step": 0,
        "error": None,
        "started_at": now(),
        "ended_at": None,
    }
    files.write_json(path, status | changes)


def read_status(folder: Path) -> dict[str, Any] | None:
    """Return status.json of a run, or None where there is none."""
    path = folder / "status.json"
    return files.read_json(path, wanted="a run's status") if path.exists() else None


def environment() -> dict[str, Any]:
    """Return versions, git commit and hardware of this process's machine, for environment.json."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "commit": git_commit(),
        "hardware": {
            "machine": platform.machine(),
            "cpus": len(os.sched_getaffinity(0)),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": gpus,
        },
    }


def write_environment(folder: Path) -> None:
    """Write environment.json of a run that begins or goes on; what it says of the training stays."""
    path = folder / ENVIRONMENT
    before = files.read_json(path, wanted="a run's environment") if path.exists() else {}
    files.write_json(path, environment() | {key: before[key] for key in ("training",) if key in before})


def note_training(folder: Path, facts: Mapping[str, str]) -> None:
    """Put into environment.json what runs: `device`, `dtype` of the weights and `attention`."""
    path = folder / ENVIRONMENT
    before = files.read_json(path, wanted="a run's environment") if path.exists() else {}
    files.write_json(path, before | {"training": dict(facts)})


def training_facts(folder: Path) -> dict[str, str]:
    """Return what `note_training` has put there, nothing where the run has not begun to train."""
    path = folder / ENVIRONMENT
    found = files.read_json(path, wanted="a run's environment") if path.exists() else {}
    return dict(found.get("training", {}))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of the checkout the package lies in, with `-dirty` for changes; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def peak_memory_mib(device: Any) -> float | None:
    """Return the most memory this process has held so far, in MiB: of its GPU, or on CPUs resident.

    None where the system does not tell.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def prune_lines(path: Path, step: int) -> None:
    """Keep only whole lines of a jsonl file up to `step`."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            break  # a kill tore this line; nothing whole follows it
    files.write_text(path, "".join(f"{line}\n" for line in kept))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the whole lines of metrics.jsonl; one that is just being written is left out."""
    path = folder / METRICS
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def progress_line(metrics: dict[str, Any], *, step: int, steps: int, seconds_per_step: float) -> str:
    """Return `step 120/1200  loss 3.412  45,120 tokens/s  scale 8.4  ETA 2:31`."""
    minutes, seconds = divmod(round((steps - step) * seconds_per_step), 60)
    hours, minutes = divmod(minutes, 60)
    eta = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    return f"step {step}/{steps}  {figures(metrics)}  ETA {eta}"


def figures(metrics: dict[str, Any]) -> str:
    """Return `loss 3.412  45,120 tokens/s  scale 8.4` of a logged step, and how many steps were skipped, if any."""
    loss, scale = metrics["loss"], metrics["scale_mean"]
    parts = [
        "loss -" if loss is None else f"loss {loss:.3f}",
        f"{metrics['tokens_per_second']:,.0f} tokens/s",
        "scale -" if scale is None else f"scale {scale:.1f}",
    ]
    skipped = metrics.get("skipped_steps", 0)
    return "  ".join([*parts, f"{skipped} skipped"] if skipped else parts)


def note_skipped(folder: Path, step: int, rows: list[dict[str, Any]]) -> str:
    """Write a skipped step's line into skipped.jsonl and return what to say about it.

    Args:
        folder: Of the run.
        step: Its number as metrics.jsonl counts, from 1.
        rows: Of the global batch in order, as `ledger.rows_of` gives them.
    """
    wrong = "gradient norm" if all(row["loss"] is not None for row in rows) else "loss"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / SKIPPED).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "not_finite": wrong, "rows": rows}, allow_nan=False) + "\n")
    numbers = ", ".join(str(row["row"]) for row in rows[:8])
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    return f"step {step}: skipped, its {wrong} is no finite number; rows {numbers}{more}: {folder / SKIPPED}"


class Recorder:
    """Rank 0's hand on the run's files."""

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        steps: int,
        progress_s: float,
        show: Callable[[str], None] | None = print,
        gauges: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Open the files; `show` gets a progress line every `progress_s` seconds, `gauges` every logged step."""
        from torch.utils.tensorboard import SummaryWriter

        for name in (METRICS, SKIPPED):
            prune_lines(folder / name, start_step)
        self.folder, self.steps, self.progress_s = folder, steps, progress_s
        self.show, self.gauges = show, gauges
        self.metrics: dict[str, Any] | None = None
        self.began, self.start_step = time.perf_counter(), start_step
        self.shown = self.began
        self.file = (folder / METRICS).open("a", encoding="utf-8")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None)

    def report(self, metrics: dict[str, Any]) -> None:
        """Write a logged step everywhere it belongs."""
        self.file.write(json.dumps(metrics, allow_nan=False) + "\n")
        self.file.flush()
        step = metrics["step"]
        for key, value in metrics.items():
            if isinstance(value, int | float) and key != "step":
                self.board.add_scalar(f"train/{key}", value, step)
        for bucket, value in metrics["loss_by_scale"].items():
            self.board.add_scalar(f"loss_by_scale/{bucket}", value, step)
        self.metrics = metrics
        if self.gauges:
            self.gauges(metrics)
        write_status(self.folder, step=step)

    def skipped(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Write down a step that changed nothing, and say so."""
        line = note_skipped(self.folder, step, rows)
        if self.show:
            self.show(line)

    def progress(self, step: int) -> None:
        """Show a line if it is time for one."""
        elapsed = time.perf_counter()
        due = elapsed - self.shown >= self.progress_s or step == self.steps
        if self.show and self.metrics and due:
            self.shown = elapsed
            per_step = (elapsed - self.began) / (step - self.start_step)
            self.show(progress_line(self.metrics, step=step, steps=self.steps, seconds_per_step=per_step))

    def close(self) -> None:
        """Flush and close the files."""
        self.file.close()
        self.board.close()
