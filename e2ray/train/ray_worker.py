"""What a worker needs from the Ray that it runs under: gauges, and the node for its heartbeat."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import ray
from ray.util.metrics import Gauge

from e2ray.train.heartbeat import Heartbeat
from e2ray.train.trackers import Show


def heartbeat(folder: Path, name: str, *, label: str) -> Heartbeat:
    """Return this worker's heartbeat, with the node it is on."""
    return Heartbeat(folder, name, label=label, node=ray.get_runtime_context().get_node_id())


def gauges(run: str) -> Show:
    """Return a function that shows a logged step as Ray gauges: e2ray_loss, e2ray_tokens_per_second and so on."""
    shown = _gauges()

    def set_all(metrics: Mapping[str, object]) -> None:
        for name, gauge in shown.items():
            gauge.set(metrics[name], tags={"run": run})  # None, which is no finite number, changes nothing

    return set_all


@lru_cache(maxsize=1)
def _gauges() -> dict[str, Gauge]:
    """Return this process's gauges; one that shows run after run makes them once."""
    return {
        "loss": Gauge("e2ray_loss", "Mean training loss, nats per token", tag_keys=("run",)),
        "tokens_per_second": Gauge("e2ray_tokens_per_second", "Tokens trained per second", tag_keys=("run",)),
        "scale_mean": Gauge("e2ray_scale_mean", "Mean scale of the draws", tag_keys=("run",)),
        "step": Gauge("e2ray_step", "Updates made", tag_keys=("run",)),
    }
