"""What a machine tells of itself, for `e2ray doctor`: versions, GPUs and who holds them, kernels, disk. No Ray here."""

import os
import shutil
import socket
import subprocess
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available, is_kernels_available

from e2ray.config.base import SettingsError
from e2ray.core.compiled import refuse_compile
from e2ray.core.liger import refuse_liger
from e2ray.files import TEMPORARY
from e2ray.train.environment import environment

MEASURED_BYTES = 64 * 2**20  # of one all-reduce
REPEATED = 5
QUERY = ("nvidia-smi", "--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Card:
    """A GPU: its name, its memory in GiB, and how much of it others hold."""

    name: str
    memory_gib: float
    held_gib: float


@dataclass(frozen=True)
class Node:
    """What one machine says.

    Attributes:
        host: Its name.
        versions: Of the packages that a run needs, and of Python.
        cards: Its GPUs.
        holders: What `nvidia-smi` says of processes on them.
        runs: Attention, kernels and compilers that are there.
        missing: Those that are not, and why.
        storage: Why the storage cannot be written from here; None where it can.
        free_gib: Disk that the storage has left.
    """

    host: str
    versions: dict[str, str | None]
    cards: tuple[Card, ...]
    holders: tuple[str, ...]
    runs: tuple[str, ...]
    missing: tuple[str, ...]
    storage: str | None
    free_gib: float | None


def node(storage: str, mark: str) -> Node:
    """Return what this machine says; `mark` is a file of the storage that the asking machine wrote."""
    found = environment()
    runs, missing = _abilities()
    problem = _storage(Path(storage), mark)
    free = None if problem else shutil.disk_usage(storage).free / 2**30
    versions = {**found.versions, "python": found.python}
    return Node(socket.gethostname(), versions, _cards(), _holders(), runs, missing, problem, free)


def _cards() -> tuple[Card, ...]:
    cards = []
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        total = torch.cuda.get_device_properties(index).total_memory
        try:
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError:  # nothing of it is left, not even for the question
            free = 0
        cards.append(Card(name, round(total / 2**30, 1), round((total - free) / 2**30, 1)))
    return tuple(cards)


def _holders() -> tuple[str, ...]:
    if not torch.cuda.is_available():
        return ()
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    own = str(os.getpid())
    lines = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 2]
    return tuple(f"process {pid} holds {used} MiB" for _, pid, used in lines if pid != own)


def _abilities() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what runs here, and what does not."""
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    flash = {
        "flash_attention_3": is_flash_attn_3_available(),
        "flash_attention_2": is_flash_attn_2_available(),
        "kernels": is_kernels_available(),
    }
    runs = [name for name, there in flash.items() if there and on_gpu]
    missing = [f"{name} is not there" for name in flash if name not in runs] if on_gpu else []
    for name, refuse in (("compile", refuse_compile), ("liger", refuse_liger)):
        try:
            refuse(device)
            runs.append(name)
        except SettingsError as error:
            if on_gpu or name == "compile":
                missing.append(str(error))
    return ("sdpa", *runs), tuple(missing)


def _storage(folder: Path, mark: str) -> str | None:
    """Return why a folder is not the one that was marked, or cannot be written."""
    if not (folder / mark).exists():
        return "is another folder there, not the one that all nodes share"
    own = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        own.write_bytes(b"e2ray")
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    finally:
        with suppress(OSError):
            own.unlink(missing_ok=True)
    return None


def bandwidth(rank: int, num_workers: int, meeting: str, on_gpu: bool) -> float:
    """Return the bytes a second that an all-reduce moves over the slowest link (NCCL's bus bandwidth)."""
    if on_gpu:
        torch.cuda.set_device(0)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=f"file://{meeting}", rank=rank, world_size=num_workers
    )
    try:
        numbers = torch.ones(MEASURED_BYTES // 4, device="cuda" if on_gpu else "cpu")
        seconds = []
        for _ in range(REPEATED):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(numbers)
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return 2 * (num_workers - 1) / num_workers * MEASURED_BYTES / min(seconds[1:])
    finally:
        dist.destroy_process_group()
