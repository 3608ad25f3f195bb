"""Runs functions wherever the cluster has room for them."""

from collections.abc import Callable, Sequence
from typing import TypeVar, TypeVarTuple

import ray
from ray.remote_function import RemoteFunction
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from e2ray.config.base import SettingsError
from e2ray.config.train import ClusterSettings
from e2ray.data.corpus import one_line
from e2ray.data.pace import Pace, show
from e2ray.stages.start import call

Given = TypeVarTuple("Given")
Found = TypeVar("Found")


def remote(
    name: str,
    function: Callable[[*Given], Found],
    *arguments: *Given,
    use_gpu: bool,
    tells: bool = False,
) -> Found:
    """Run a function on a node of the cluster that has what it needs, and return its result.

    The driver of a Ray job runs on the head node, which often has neither a GPU nor memory to spare. `name` is what
    the dashboard shows; the rest is as in `remote_each`.
    """
    return remote_each(name, function, [arguments], use_gpu=use_gpu, tells=tells)[0]


def remote_each(
    name: str,
    function: Callable[[*Given], Found],
    calls: Sequence[tuple[*Given]],
    *,
    use_gpu: bool,
    fresh: bool = False,
    tells: bool = False,
) -> list[Found]:
    """Run a function for every tuple of arguments, wherever the cluster has room, and return the results in order.

    Calls that find no room wait for their turn. The cores of a node are shared among as many calls as there are. If
    one fails, the others are cancelled. How many are done is shown every few seconds.

    Args:
        name: Of the task, for the dashboard.
        function: Runs on a worker; it can be pickled.
        calls: Arguments, a tuple for each call.
        use_gpu: Whether each call gets a GPU.
        fresh: Whether each call gets a process of its own, whose peak memory is that of the call; on GPUs each does.
        tells: Whether the calls show their own progress, once the first of them has begun.

    Raises:
        SettingsError: If a call raises one.
        RuntimeError: If a call fails otherwise.
    """
    task = _task(use_gpu=use_gpu, fresh=fresh).options(name=name, num_returns="streaming")
    running = [task.remote(ray.cloudpickle.dumps((function, arguments)), len(calls)) for arguments in calls]
    begun: set[int] = set()
    results: dict[int, Found] = {}
    try:
        with Pace(show, name, total=len(calls), unit="parts") as pace:
            while left := [number for number in range(len(calls)) if number not in results]:
                ready, _ = ray.wait([running[number] for number in left], num_returns=1)
                number = running.index(ready[0])
                item = ray.get(next(running[number]))
                if number in begun:
                    results[number] = item
                    pace.add()
                    continue
                begun.add(number)
                if tells:
                    pace.hush()
    except ray.exceptions.RayError as error:
        for each in running:
            ray.cancel(each, force=True)
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, SettingsError):
            raise SettingsError(str(cause)) from error
        raise RuntimeError(f"{name} failed: {type(cause).__name__}: {one_line(cause)}") from error
    return [results[number] for number in range(len(calls))]


def on_each_node(name: str, function: Callable[[*Given], Found], *arguments: *Given) -> list[Found]:
    """Run a function once on every node of the cluster, whatever room it has, and return the results.

    Raises:
        RuntimeError: If a call fails, or a node does not answer.
    """
    packed = ray.cloudpickle.dumps((function, arguments))
    alive = [each["NodeID"] for each in ray.nodes() if each["Alive"]]
    task = ray.remote(num_cpus=0, max_retries=0)(call)
    running = []
    for node in alive:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        running.append(task.options(name=name, num_returns="streaming", scheduling_strategy=there).remote(packed, 1))
    try:
        return [ray.get(list(each))[-1] for each in running]
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise RuntimeError(f"{name} failed: {type(cause).__name__}: {one_line(cause)}") from error


def has(resource: str, *, free: bool = False) -> float:
    """Return how much of a resource all nodes have together, or have free, in Ray's words and units."""
    known = ray.available_resources() if free else ray.cluster_resources()
    return float(known.get(resource, 0.0))


def _task(*, use_gpu: bool, fresh: bool) -> RemoteFunction:
    """Return Ray's remote function of one call.

    A process keeps the first card it saw, and that card's memory, so a call on a GPU gets its own process. Ray does so
    by itself only if the decorator names the GPUs, and takes `max_calls` nowhere else.
    """
    own = fresh or use_gpu
    return ray.remote(num_cpus=1, num_gpus=int(use_gpu), max_calls=int(own), max_retries=0)(call)


def wants_gpu(settings: ClusterSettings) -> bool:
    """Return whether the workers get GPUs on the connected cluster."""
    return ray.cluster_resources().get("GPU", 0) > 0 if settings.use_gpu == "auto" else settings.use_gpu
