"""What one training is told. It travels through processes that train nothing, so this module loads little."""

from dataclasses import dataclass
from pathlib import Path

from e2ray.config.data import SHUFFLE_SHARDS
from e2ray.config.model import Model
from e2ray.config.positions import PositionSettings
from e2ray.config.train import TrainSettings


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
    digest: str  # of the settings that decide the losses
    shuffle_shards: int = SHUFFLE_SHARDS  # shards whose rows are mixed among each other
    prefetch_bytes: int = 32 * 2**20  # of rows read ahead of the training
    packed: bool = False  # whether rows hold documents that do not see each other
    show_progress: bool = True
    keep: bool = True  # whether checkpoints are written
    ledger: bool = False  # whether each rank notes its rows and draws
    tokenizer: Path | None = None  # its folder, where the shards are a URI; else it lies among them

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the tokenizer, on the file system that all nodes share."""
        return self.tokenizer or Path(self.shards) / "tokenizer"
