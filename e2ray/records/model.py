"""e2ray/manifest.json of a model folder: the digests of its files, and the training that made it."""

from pathlib import Path
from typing import Self

from pydantic import Field

from e2ray.files import Fingerprint
from e2ray.records.record import Count, Part, Plain, Record, Tokens, left_out


class ModelTraining(Part):
    """The training that made a model."""

    settings: Plain = Field(description="All that its weights follow from, by the names of a recipe.")
    base_weights: str | None = Field(None, description="Digest of the weights it began from; null: the seed made them.")
    base_config: str | None = Field(None, description="Digest of their config; null likewise.")
    step: Count | None = left_out("Updates behind the weights.")
    tokens: Tokens | None = left_out("Tokens read for them.")
    stopped: bool | None = left_out("Whether `train.stop` ended it.")


class ModelRecord(Record):
    """e2ray/manifest.json of a model folder."""

    what = "the digests of a model folder"
    anew = "restore it, or write the folder anew with the command that made it"

    format: int = Field(1, ge=1, le=1, description="Of the record.")
    files: dict[str, Fingerprint] = Field(description="Of the folder, by name.")
    training: ModelTraining | None = left_out("What made it; not there where no training did.")

    @classmethod
    def read_told(cls, path: str | Path) -> tuple[Self, bool]:
        """Return what a file holds; it must have a digest."""
        record, is_vouched = super().read_told(path)
        if not is_vouched:
            raise cls.damaged(path, "it lacks its digest")
        return record, is_vouched

    @classmethod
    def of_older(cls, fields: Plain) -> Plain:
        """Return the fields without a training that is given by a digest alone, as in the first records."""
        training = fields.get("training")
        if isinstance(training, dict) and not isinstance(training.get("settings"), dict):
            return {key: value for key, value in fields.items() if key != "training"}
        return fields
