"""The driver's hand on Ray: connect to a cluster or start one, and run a function where there is room for it."""

import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from e2ray.config.base import SettingsError
from e2ray.config.train import ClusterSettings
from e2ray.stages.access import admit, check_mode, is_loopback, keep_token_private, refuse_wrong_token
from e2ray.stages.run import ray_address, show

SOCKET_BYTES = 107  # a Unix socket's path on Linux
LOOPBACK = "127.0.0.1"


@contextmanager
def cluster(settings: ClusterSettings) -> Iterator[None]:
    """Connect to the cluster RAY_ADDRESS names (a Ray job has one), else start one on this machine for the block.

    Says in a line what is mended or open to others, and for `auto` which cluster was found.

    Raises:
        SettingsError: If no cluster answers, one beyond this machine asks for no token, or none can be started here.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    import ray

    if ray.is_initialized():
        yield
        return
    check_mode()
    handler = signal.getsignal(signal.SIGTERM)
    address = ray_address()
    with _started(settings) if address is None else _attached(address):
        if handler not in (signal.SIG_DFL, None) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own, now in place, ends the process without a word
        hosts = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
        _tell(admit(ray.get_runtime_context().gcs_address, hosts, allow_open=settings.allow_open))
        yield


def _tell(line: str | None) -> None:
    if line:
        show(line)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the block, for this process and those it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ |= values
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _loopback_alone() -> Iterator[None]:
    """Keep 127.0.0.1 for this machine's address in the block; Ray takes the machine's other one, and listens on all."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER  # read from the environment when ray was imported
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        # the second is for the training workers' own connections, where there is no GPU
        with _environment({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GLOO_SOCKET_IFNAME": "lo"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _started(settings: ClusterSettings) -> Iterator[None]:
    """Run a Ray of this machine alone, which listens on the loopback interface only.

    Its processes find its dashboard by a variable: without one they look through the machine's processes for a Ray, and
    beside another run's they may take that. The dashboard stays on, since without it placement groups of ended trials
    are never freed.
    """
    import ray

    folder = ray_folder()
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "disabled":
        _tell(keep_token_private(create=True))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("PYTHONWARNINGS", "ignore:`ExecutionOptions.exclude_resources`")  # Ray to itself
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve each other on a busy machine
    dashboard, autoscaler, head = _free_ports(3)
    own = {
        "RAY_API_SERVER_ADDRESS": f"http://{LOOPBACK}:{dashboard}",
        "AUTOSCALER_METRIC_PORT": str(autoscaler),
        "DASHBOARD_METRIC_PORT": str(head),
    }
    with _loopback_alone(), _environment(own):
        try:
            ray.init(
                address="local",
                num_cpus=len(os.sched_getaffinity(0)),
                object_store_memory=settings.object_store_mib * 2**20,
                dashboard_host=LOOPBACK,
                dashboard_port=dashboard,
                _node_ip_address=LOOPBACK,
                logging_level="WARNING",
                _temp_dir=str(folder),
            )
            yield
        finally:
            ray.shutdown()


def ray_folder() -> Path:
    """Return the folder of this machine's Ray, made where it is missing.

    Raises:
        SettingsError: If it cannot be written to, or the paths of the sockets in it would be too long.
    """
    named = os.environ.get("E2RAY_RAY_FOLDER")
    folder = (Path(named).expanduser() if named else Path(tempfile.gettempdir()) / "ray").absolute()
    setting = "E2RAY_RAY_FOLDER" if named else "TMPDIR"
    socket_path = folder / f"session_0000-00-00_00-00-00_000000_{os.getpid()}" / "sockets" / "plasma_store"
    needed = len(os.fsencode(socket_path))
    if needed > SOCKET_BYTES:
        most = SOCKET_BYTES - needed + len(os.fsencode(folder))
        raise SettingsError(
            f"{setting}: {folder} has {len(os.fsencode(folder))} bytes, wanted {most} at most, since the paths of the "
            f"sockets in it may have {SOCKET_BYTES}; set E2RAY_RAY_FOLDER to a shorter one, /tmp/ray for example"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise SettingsError(
            f"{setting}: {folder} cannot hold Ray's files: {error.strerror}; set E2RAY_RAY_FOLDER to another folder"
        ) from error


def _free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that nobody listens on now."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def _attached(address: str) -> Iterator[None]:
    """Connect to a running cluster for the block, and tell its processes that work for this run where it is.

    Raises:
        SettingsError: If the address is the jobs API's, no cluster answers there, or it wants another token.
    """
    import ray

    if address.startswith(("http://", "https://")):
        raise SettingsError(
            f"RAY_ADDRESS: {address} is where jobs are submitted; use `ray job submit -- python jobs/train.py ...`, "
            "or unset it to run on a Ray of this machine alone"
        )
    if address != "auto" and not re.fullmatch(r"(\w+://\S+|\S+:\d+)", address):
        raise SettingsError(f"RAY_ADDRESS: {address!r} is no address of a Ray, wanted host:port, auto, or local")
    _tell(keep_token_private(create=False))
    found = _found_here() if address == "auto" else address
    with _loopback_alone() if _on_loopback_alone(found) else nullcontext(), _environment({"RAY_ADDRESS": found}):
        try:
            _connect(address, found)
            yield
        finally:
            ray.shutdown()


def _on_loopback_alone(address: str) -> bool:
    """Return whether a Ray at `host:port` of the loopback interface cannot be reached by the machine's own address."""
    import ray

    host, _, port = address.rpartition(":")
    if "://" in address or not is_loopback(host):
        return False
    try:
        socket.create_connection((ray.util.get_node_ip_address(), int(port)), timeout=10).close()
    except OSError:
        return True
    return False


def _connect(address: str, found: str) -> None:
    import ray
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    host, colon, port = found.rpartition(":")
    told = '"RAY_ADDRESS"' in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")  # by who submitted the job
    if address == "auto":  # as Ray does for it
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        if colon and "://" not in found and port.isdigit():  # else Ray tries for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            refuse_wrong_token(found)
        runtime = None if told or "://" in found else {"env_vars": {"RAY_ADDRESS": found}}
        ray.init(address=found, logging_level="WARNING", runtime_env=runtime)
    except OSError as error:  # ConnectionError is one
        raise SettingsError(f"RAY_ADDRESS: no Ray cluster answers at {found}; start one or unset it") from error
    if address == "auto":
        total = ray.cluster_resources()
        show(f"RAY_ADDRESS: auto joined the Ray at {found}: CPU {total.get('CPU', 0):g}, GPU {total.get('GPU', 0):g}")


def _found_here() -> str:
    """Return the address of the Ray that `auto` means: the newest of `ray start` on this machine, or the only one.

    Those that runs started for themselves are left alone; they end with their run.

    Raises:
        SettingsError: If there is none, or several without a newest.
    """
    from ray._private import services, utils

    running = services.find_gcs_addresses()
    newest: str | None = utils.read_ray_address()
    shared = sorted(address for address in running if not is_loopback(address.rpartition(":")[0]))
    if newest and (newest in running or not running):
        return newest
    if len(shared) == 1:
        return shared[0]
    if shared:
        raise SettingsError(f"RAY_ADDRESS: auto finds {len(shared)} Rays here, {', '.join(shared)}; name one of them")
    raise SettingsError("RAY_ADDRESS: auto finds no Ray here that `ray start` started; start one or unset it")


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
        fresh: Whether each call gets a process of its own, whose peak memory is that of the call; on GPUs each does.

    Raises:
        SettingsError: If a call raises one.
        RuntimeError: If a call fails otherwise.
    """
    import ray

    from e2ray.data.corpus import one_line

    task = _task(use_gpu=use_gpu, fresh=fresh).options(name=name)
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


def _task(*, use_gpu: bool, fresh: bool) -> Any:
    """Return Ray's remote function of one call.

    A process keeps the first card it saw, and that card's memory, so a call on a GPU gets its own. Ray sees to that by
    itself only where the GPUs stand in the decorator, and takes `max_calls` nowhere else.
    """
    import ray

    own = fresh or use_gpu
    return ray.remote(num_cpus=1, num_gpus=int(use_gpu), max_calls=int(own), max_retries=0)(_in_task)


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
