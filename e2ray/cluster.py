"""The driver's hand on Ray: connect to a cluster or start one, and run a function where there is room for it."""

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2ray.config.base import SettingsError
from e2ray.config.train import ClusterSettings


@contextmanager
def cluster(settings: ClusterSettings) -> Iterator[None]:
    """Connect to the cluster RAY_ADDRESS names (a Ray job has one), else start one on this machine for the block.

    The dashboard stays on, since without it placement groups of ended trials are never freed.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    import ray

    if ray.is_initialized():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _attach(address)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("PYTHONWARNINGS", "ignore:`ExecutionOptions.exclude_resources`")  # Ray to itself
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve each other on a busy machine
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            object_store_memory=settings.object_store_mib * 2**20,
            dashboard_host="127.0.0.1",
            _node_ip_address="127.0.0.1",
            logging_level="WARNING",
            _temp_dir=os.environ.get("E2RAY_RAY_FOLDER") or str(Path(tempfile.gettempdir()) / "ray"),
        )
    if handler not in (signal.SIG_DFL, None) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own in place, which ends the process without a word
    try:
        yield
    finally:
        ray.shutdown()


def _attach(address: str) -> None:
    """Connect to a running cluster.

    Raises:
        SettingsError: If the address is the jobs API's, or no cluster answers there.
    """
    import ray

    if address.startswith(("http://", "https://")):
        raise SettingsError(
            f"RAY_ADDRESS: {address} is where jobs are submitted; use `ray job submit -- python jobs/train.py ...`, "
            "or unset it to run on a Ray of this machine alone"
        )
    host, colon, port = address.rpartition(":")
    try:
        if colon and "://" not in address and port.isdigit():  # else Ray tries for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=address, logging_level="WARNING")
    except OSError as error:  # ConnectionError is one
        raise SettingsError(f"RAY_ADDRESS: no Ray cluster answers at {address}; start one or unset it") from error


def remote(name: str, function: Callable[..., Any], *arguments: Any, use_gpu: bool) -> Any:
    """Run a function on a node of the cluster that has what it needs, and return its result.

    The driver of a Ray job sits on the head node, which has often neither a GPU nor memory to spare. `name` is what
    the dashboard shows.
    """
    return remote_each(name, function, [arguments], use_gpu=use_gpu)[0]


def remote_each(
    name: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], *, use_gpu: bool, fresh: bool = False
) -> list[Any]:
    """Run a function for every tuple of arguments, wherever the cluster has room, and return the results in order.

    Calls that find no room wait for their turn. The cores of a node are shared among as many calls as there are. Where
    one fails, the others are called off.

    Args:
        name: Of the task, for the dashboard.
        function: Runs on a worker; it can be pickled.
        calls: Arguments, a tuple for each call.
        use_gpu: Whether each call gets a GPU.
        fresh: Whether each call gets a process of its own, whose peak memory is that of the call.

    Raises:
        SettingsError: If a call raises one.
        RuntimeError: If a call fails otherwise.
    """
    import ray

    from e2ray.data.corpus import one_line

    task = ray.remote(max_retries=0, max_calls=1 if fresh else 0)(_in_task).options(
        name=name, num_cpus=1, num_gpus=1 if use_gpu else 0
    )
    running = [task.remote(function, arguments, len(calls)) for arguments in calls]
    try:
        return ray.get(running)
    except ray.exceptions.RayTaskError as error:
        for each in running:
            ray.cancel(each, force=True)
        if isinstance(error.cause, SettingsError):
            raise SettingsError(str(error.cause)) from error
        cause = error.cause or error
        raise RuntimeError(f"{name} failed: {type(cause).__name__}: {one_line(cause)}") from error


def _in_task(function: Callable[..., Any], arguments: tuple[Any, ...], num_calls: int) -> Any:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_calls))
    return function(*arguments)


def wants_gpu(settings: ClusterSettings) -> bool:
    """Return whether the workers get GPUs on the connected cluster."""
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0 if settings.use_gpu == "auto" else settings.use_gpu
