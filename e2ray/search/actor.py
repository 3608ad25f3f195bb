"""What Ray Tune starts for a trial: an actor that runs trials one after the other, or the driver of a Ray Train.

Nothing heavy is imported before the first trial begins, and what a trial needs arrives packed: Tune takes back an
actor that is still starting once another one is free, so one that takes longer to start than a trial takes to run
would never be ready.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import ray
from ray import tune

from e2ray.loading import loading

if TYPE_CHECKING:
    from e2ray.search.trial import Workbench
    from e2ray.train.heartbeat import Heartbeat


class TrialConfig(TypedDict):
    """What Tune hands to the process of a trial; `Shared`, `Plan` and the cluster's settings are packed."""

    study: str
    number: int
    shared: bytes
    plan: bytes
    cluster: bytes
    threads: int
    beats: str  # folder of its heartbeats


def packed(what: object) -> bytes:
    """Return an object as bytes, which an actor opens when it needs it."""
    return bytes(ray.cloudpickle.dumps(what))


def opened(what: bytes) -> Any:
    """Return the object that `packed` took."""
    return ray.cloudpickle.loads(what)


class TrialActor(tune.Trainable):
    """Runs trial after trial of one worker."""

    def setup(self, config: TrialConfig) -> None:
        """Take the first trial."""
        logging.getLogger().setLevel(logging.WARNING)
        self.bench: Workbench | None = None
        self.heart: Heartbeat | None = None
        self.reset_config(config)

    def reset_config(self, new_config: TrialConfig) -> bool:
        """Take another trial."""
        self.given, self.started = new_config, False
        return True

    def step(self) -> dict[str, object]:
        """Train to the next rung or the end and return what was measured there."""
        from e2ray.train.heartbeat import RESTING

        label = f"worker of trial {self.given['number']}"
        if self.bench is None:
            self.bench = self._open(label)
        assert self.heart is not None, "it began with the bench"
        if not self.started:
            self.heart.begin(label)
            self.bench.begin(opened(self.given["plan"]))
            self.started = True
        result = self.bench.advance()
        self.heart.mark(RESTING)
        return result | {"done": "failed" in result or bool(result["complete"])}

    def _open(self, label: str) -> "Workbench":
        """Return the bench, with all that trials share, and begin this process's heartbeat."""
        with loading():
            import torch

            from e2ray.search.trial import Workbench
            from e2ray.train.ray_worker import gauges, heartbeat

        name = f"{ray.get_runtime_context().get_node_id()[:16]}-{os.getpid()}"
        self.heart = heartbeat(Path(self.given["beats"]), name, label=label)
        gpu = torch.cuda.is_available() and bool(ray.get_gpu_ids())
        torch.set_num_threads(self.given["threads"])
        device = torch.device("cuda" if gpu else "cpu")
        return Workbench(opened(self.given["shared"]), device=device, gauges=gauges, heart=self.heart)

    def __repr__(self) -> str:
        return f"e2ray study {self.given['study']}"

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Keep nothing: a trial that was cut off is run again."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Nothing was kept."""

    def cleanup(self) -> None:
        """Drop the last trial."""
        if self.heart is not None:
            self.heart.close()
        if self.bench is not None:
            self.bench.end()


def distributed(config: TrialConfig) -> None:
    """Run one trial of several workers; a driver of its own for Ray Train."""
    from ray.tune.integration.ray_train import TuneReportCallback

    from e2ray.search.trial import Rungs
    from e2ray.train import launch

    logging.getLogger().setLevel(logging.WARNING)
    shared, plan = opened(config["shared"]), opened(config["plan"])
    launch.try_out(shared.task_of(plan), opened(config["cluster"]), Rungs(shared, plan), [TuneReportCallback()])
