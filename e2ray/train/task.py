"""What one training is given. It passes through processes that train nothing, so this module loads little."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict

from e2ray.config.base import Plain
from e2ray.config.data import SHUFFLE_SHARDS
from e2ray.config.methods import LinearMethod
from e2ray.config.model import Model
from e2ray.config.positions import PositionSettings
from e2ray.config.run import FREE_ON_RESUME
from e2ray.config.trackers import TrackerSettings
from e2ray.config.train import ObjectiveSettings, TrainSettings

if TYPE_CHECKING:
    import torch

    from e2ray.train.engine import Engine


def _free(section: str) -> set[str]:
    """Return the settings of a section that may change when a run is continued."""
    return {path.partition(".")[2] for path in FREE_ON_RESUME if path.startswith(f"{section}.")}


def completed(identity: Plain) -> Plain:
    """Return an identity with what earlier versions left out of it: linear scales, the NLL of single rows."""
    unsaid: dict[str, Plain] = {
        "data": {"rows_per_example": 1},
        "positions": {"method": LinearMethod().model_dump(mode="json")},
        "train": {"objective": ObjectiveSettings().model_dump(mode="json")},
    }
    return {
        key: {**unsaid.get(key, {}), **value} if isinstance(value, dict) else value for key, value in identity.items()
    }


@dataclass(frozen=True)
class Task:
    """Everything one training needs, the same on every worker; it can be pickled."""

    name: str  # of the run, as the dashboard and the gauges show it
    folder: Path  # of the run: metrics.jsonl, checkpoints/ ... appear here
    shards: str | Path  # a folder, or a URI of an object store
    tokenizer_hash: str
    vocab_size: int
    window: int
    base_context_length: int
    seed: int
    model: Model
    positions: PositionSettings
    train: TrainSettings
    rows_digest: str  # of the shards' rows
    shuffle_shards: int = SHUFFLE_SHARDS  # shards whose rows are mixed among each other
    prefetch_bytes: int = 32 * 2**20  # of rows read ahead of the training
    packed: bool = False  # whether rows hold documents that do not see each other
    show_progress: bool = True
    keep: bool = True  # whether checkpoints are written
    ledger: bool = False  # whether each rank notes its rows and draws
    trackers: tuple[TrackerSettings, ...] = ()  # beside TensorBoard and gauges
    rows_per_example: int = 1  # adjacent rows that an objective judges together and that share a draw
    tokenizer: Path | None = None  # its folder, where the shards are a URI; else it is among them

    def identity(self, base_weights: str | None, base_config: str | None) -> Plain:
        """Return what this training is, plain data: all that determines its weights, by names of the recipe.

        Digests of the weights that it starts from, which replace their path, and of their config as trained are None
        where the seed makes them.
        """
        model = self.model.model_dump(mode="json", exclude={"path", "revision", *_free("model")})
        return {
            "name": self.folder.name,
            "seed": self.seed,
            "model": model | {"base_weights": base_weights, "base_config": base_config, "vocab_size": self.vocab_size},
            "data": {
                "rows": self.rows_digest,
                "tokenizer": self.tokenizer_hash,
                "window": self.window,
                "packed": self.packed,
                "shuffle_shards": self.shuffle_shards,
                "rows_per_example": self.rows_per_example,
            },
            "base_context_length": self.base_context_length,
            "positions": self.positions.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json", exclude=_free("train")),
        }

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the tokenizer, on the file system that all nodes share."""
        return self.tokenizer or Path(self.shards) / "tokenizer"


class Watch(Protocol):
    """Measures a training at the steps it chooses; travels to the workers."""

    def open(self, device: "torch.device") -> "Callable[[Engine, int], Mapping[str, object]]":
        """Return a function of the engine and a logged step, for a worker to call."""


class Work(TypedDict):
    """What Ray Train hands to each worker of an attempt."""

    task: Task
    attempt: str  # its name
    watch: Watch | None
    threads: int | None  # that a worker uses; None shares its machine's cores
