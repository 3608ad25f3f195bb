"""What a process runs on: versions, commit and hardware for environment.json, and its peak memory."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import psutil
import torch

from e2ray.records.folders import RunFolder
from e2ray.records.run import Environment, Hardware
from e2ray.train.record import training_facts

PACKAGES = ("e2ray", "torch", "transformers", "deepspeed", "ray", "pyarrow", "optuna", "peft", "tokenizers", "numpy")


def environment() -> Environment:
    """Return versions, git commit and hardware of this process's machine, for environment.json."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Environment(
        versions={name: _version(name) for name in PACKAGES},
        python=platform.python_version(),
        commit=git_commit(),
        hardware=Hardware(
            machine=platform.machine(),
            cpus=len(os.sched_getaffinity(0)),
            memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
            gpus=tuple(gpus),
        ),
    )


def write_environment(folder: Path) -> None:
    """Write environment.json of a run that begins or goes on; what it says of the training stays."""
    facts = training_facts(folder)
    record = environment().changed(training=facts) if facts else environment()
    record.write(RunFolder(folder).environment)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of the package's checkout, with `-dirty` for changes; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def peak_memory_mib(device: torch.device) -> float | None:
    """Return the most memory this process has held so far, in MiB: of its GPU, or on CPUs resident.

    None where the system does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)
