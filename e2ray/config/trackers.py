"""The `trackers` section: where a run's metrics go beside its own files, TensorBoard and Ray's gauges."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from e2ray.config import kinds
from e2ray.config.base import Settings

SQLITE = "sqlite:///"


class TrackerKind(Settings):
    """A place that metrics go to."""

    if TYPE_CHECKING:  # each member has its own, which recipes name where its class has one
        kind: str = ""

    @property
    def package(self) -> str | None:
        """The package that must be installed, which is also the name of an extra of e2ray; None where there is none."""
        return None

    @property
    def key(self) -> str:
        """Key under which a run's number at this place is kept; at another place it has another number."""
        return self.kind

    def located(self, storage: Path) -> "TrackerKind":
        """Return the same settings; where they name no place, with one in the storage of the runs."""
        return self


class MlflowTracker(TrackerKind):
    """An MLflow run of the run's name; needs the extra `mlflow`."""

    kind: Literal["mlflow"] = "mlflow"
    uri: str | None = Field(None, min_length=1, description="Of the tracking server; null: <storage>/mlflow.db.")
    experiment: str = Field("e2ray", min_length=1, max_length=200, description="That the run belongs to.")

    @property
    def package(self) -> str:
        """MLflow."""
        return self.kind

    @property
    def key(self) -> str:
        """Server and experiment."""
        return f"mlflow {self.uri} {self.experiment}"

    def located(self, storage: Path) -> "MlflowTracker":
        """Return the same settings; where they name no server, with a database in the storage of the runs."""
        return self if self.uri else self.model_copy(update={"uri": f"{SQLITE}{storage / 'mlflow.db'}"})


class WandbTracker(TrackerKind):
    """A Weights & Biases run of the run's name; needs the extra `wandb`."""

    kind: Literal["wandb"] = "wandb"
    project: str = Field("e2ray", min_length=1, max_length=128, description="That the run belongs to.")
    entity: str | None = Field(None, min_length=1, description="User or team; null: the account's own.")
    online: bool = Field(False, description="Send as it trains; else kept under the run's folder for `wandb sync`.")

    @property
    def package(self) -> str:
        """Weights & Biases."""
        return self.kind

    @property
    def key(self) -> str:
        """Account and project."""
        return f"wandb {self.entity or ''}/{self.project}"


# Every kind and what opens it, called with settings, the run's folder, `name` and the `number` it has there.
TRACKERS: dict[type[TrackerKind], str] = {
    MlflowTracker: "e2ray.train.trackers.Mlflow",
    WandbTracker: "e2ray.train.trackers.Wandb",
}
globals().update({each.__name__: each for each in TRACKERS})  # other processes find them by name
if TYPE_CHECKING:
    TrackerSettings = TrackerKind
else:
    TrackerSettings = kinds.one_of(TRACKERS)
