"""The driver's way to Ray: connect to a cluster, or start one on this machine."""

import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import ray
from ray._private import ray_constants, services, utils
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

from e2ray.config.base import SettingsError
from e2ray.config.train import ClusterSettings
from e2ray.data.pace import Pace, show
from e2ray.stages.access import admit, check_mode, is_loopback, keep_token_private, refuse_wrong_token
from e2ray.stages.run import ray_address

SOCKET_BYTES = 107  # a Unix socket's path on Linux
LOOPBACK = "127.0.0.1"
# Actors of Ray Train, a quarter of a GiB each, that a single machine has no use for: it is not preempted, and its
# dashboard ends with the run.
OF_CLUSTERS = ("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "RAY_TRAIN_ENABLE_STATE_TRACKING")


@contextmanager
def cluster(settings: ClusterSettings) -> Iterator[None]:
    """Connect to the cluster RAY_ADDRESS names (a Ray job has one), else start one on this machine for the block.

    Shows a line on what was changed or is open to others, and for `auto` on which cluster was found.

    Raises:
        SettingsError: If no cluster answers, one beyond this machine asks for no token, or none can be started here.
    """
    if ray.is_initialized():
        yield
        return
    check_mode()
    handler = signal.getsignal(signal.SIGTERM)
    address = ray_address()
    with _started(settings) if address is None else _attached(address):
        if handler not in (signal.SIG_DFL, None) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own, now in place, ends the process silently
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
    """Use 127.0.0.1 as this machine's address in the block; else Ray takes another one and listens on all."""
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

    Its processes find its dashboard by a variable: without it they search the machine's processes for a Ray, and may
    take another run's. The dashboard stays on, since without it placement groups of ended trials are never freed.
    """
    folder = ray_folder()
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "disabled":
        _tell(keep_token_private(create=True))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("PYTHONWARNINGS", "ignore:`ExecutionOptions.exclude_resources`")  # Ray's own use of it
    if "OMP_WAIT_POLICY" not in os.environ:  # threads that spin for long starve each other on a busy machine
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    dashboard, autoscaler, head = _free_ports(3)
    own = {
        "RAY_API_SERVER_ADDRESS": f"http://{LOOPBACK}:{dashboard}",
        "AUTOSCALER_METRIC_PORT": str(autoscaler),
        "DASHBOARD_METRIC_PORT": str(head),
        "RAY_num_workers_soft_limit": os.environ.get("RAY_num_workers_soft_limit", "0"),  # idle processes that stay
        **{name: os.environ.get(name, "0") for name in OF_CLUSTERS},
    }
    with _loopback_alone(), _environment(own):
        try:
            with Pace(show, "Ray starts on this machine", total=1, unit="parts"):
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
    """Return ports of the loopback interface that are free now."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _attached(address: str) -> Iterator[None]:
    """Connect to a running cluster for the block, and give its processes that work for this run its address.

    Raises:
        SettingsError: If the address is the jobs API's, no cluster answers there, or it wants another token.
    """
    if address.startswith(("http://", "https://")):
        raise SettingsError(
            f"RAY_ADDRESS: {address} is where jobs are submitted; use `ray job submit -- python jobs/train.py ...`, "
            "or unset it to run on a Ray of this machine alone"
        )
    if address != "auto" and not re.fullmatch(r"(\w+://\S+|\S+:\d+)", address):
        raise SettingsError(f"RAY_ADDRESS: {address!r} is no address of a Ray, wanted host:port, auto, or local")
    _tell(keep_token_private(create=False))
    target = _found_here() if address == "auto" else address
    with _loopback_alone() if _on_loopback_alone(target) else nullcontext(), _environment({"RAY_ADDRESS": target}):
        try:
            _connect(address, target)
            yield
        finally:
            ray.shutdown()


def _on_loopback_alone(address: str) -> bool:
    """Return whether a Ray at `host:port` of the loopback interface cannot be reached by the machine's own address."""
    host, _, port = address.rpartition(":")
    if "://" in address or not is_loopback(host):
        return False
    try:
        socket.create_connection((ray.util.get_node_ip_address(), int(port)), timeout=10).close()
    except OSError:
        return True
    return False


def _connect(address: str, target: str) -> None:
    host, colon, port = target.rpartition(":")
    is_set = '"RAY_ADDRESS"' in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")  # by who submitted the job
    if address == "auto":  # as Ray does for it
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        if colon and "://" not in target and port.isdigit():  # else Ray tries for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            refuse_wrong_token(target)
        runtime = None if is_set or "://" in target else {"env_vars": {"RAY_ADDRESS": target}}
        ray.init(address=target, logging_level="WARNING", runtime_env=runtime)
    except OSError as error:  # ConnectionError is one
        raise SettingsError(f"RAY_ADDRESS: no Ray cluster answers at {target}; start one or unset it") from error
    if address == "auto":
        total = ray.cluster_resources()
        show(f"RAY_ADDRESS: auto joined the Ray at {target}: CPU {total.get('CPU', 0):g}, GPU {total.get('GPU', 0):g}")


def _found_here() -> str:
    """Return the address of the Ray that `auto` means: the newest of `ray start` on this machine, or the only one.

    Those that runs started for themselves are left alone; they end with their run.

    Raises:
        SettingsError: If there is none, or several without a newest.
    """
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
