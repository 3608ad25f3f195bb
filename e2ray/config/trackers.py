"""The `trackers` section: where a run's metrics go beside its own files, TensorBoard and Ray's gauges."""

from typing import Annotated, Literal

from pydantic import Field

from e2ray.config.base import Settings


class MlflowTracker(Settings):
    """An MLflow run of the run's name; needs the extra `mlflow`."""

    kind: Literal["mlflow"] = "mlflow"
    uri: str | None = Field(None, min_length=1, description="Of the tracking server; null: <storage>/mlflow.db.")
    experiment: str = Field("e2ray", min_length=1, max_length=200, description="That the run belongs to.")


class WandbTracker(Settings):
    """A Weights & Biases run of the run's name; needs the extra `wandb`."""

    kind: Literal["wandb"] = "wandb"
    project: str = Field("e2ray", min_length=1, max_length=128, description="That the run belongs to.")
    entity: str | None = Field(None, min_length=1, description="User or team; null: the account's own.")
    online: bool = Field(False, description="Send as it trains; else kept under the run's folder for `wandb sync`.")


TrackerSettings = Annotated[MlflowTracker | WandbTracker, Field(discriminator="kind")]
