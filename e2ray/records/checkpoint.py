"""What stands in a checkpoint beside its tensors: state.json and manifest.json."""

from typing import Any

from pydantic import Field

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.files import Fingerprint
from e2ray.records.record import Count, Many, Part, Plain, Record, Tokens

FORMAT = 3


class Parameter(Part):
    """Where a trainable parameter lies."""

    file: str = Field(description="Name of the part.")
    shape: Many[Count] = Field(description="Of the parameter.")


class CheckpointState(Record):
    """state.json of a checkpoint."""

    what = "a checkpoint's state"
    anew = "remove the checkpoint"
    vouched = False

    format: int = Field(ge=FORMAT, le=FORMAT, description="Of the tensors beside it.")
    step: Count = Field(description="Updates made, skipped steps among them.")
    tokens: Tokens = Field(0, description="Tokens read.")
    skipped_steps: Count = Field(0, description="Steps that changed nothing.")
    skipped_in_a_row: Count = Field(0, description="Of them the last ones without a break.")
    watched: Plain | None = Field(None, description="What a watch has seen of the base and last; null without one.")
    stopped: bool = Field(False, description="Whether `train.stop` ended the training here.")
    identity: Plain = Field(default_factory=dict, description="What the training is: all that its weights follow from.")
    dtype: str = Field("float32", description="Of the weights of the engine.")
    parameters: dict[str, Parameter] = Field(description="By name, in the model's order.")

    @classmethod
    def parse(cls, value: object, *, where: Any) -> "CheckpointState":
        """Return what a value of JSON stands for; of another format it is refused by name."""
        told = value.get("format") if isinstance(value, dict) else None
        if isinstance(told, int) and told != FORMAT:
            raise SettingsError(
                f"{where}: has format {told}, this version reads {FORMAT}; finish the run with the version that began "
                "it, or choose another name"
            )
        return super().parse(value, where=where)


class CheckpointManifest(Record):
    """manifest.json of a checkpoint: what names each of its files."""

    what = "a checkpoint's manifest"
    anew = "remove the checkpoint"

    files: dict[str, Fingerprint] = Field(description="By name.")

    @classmethod
    def read(cls, path: Any) -> "CheckpointManifest":
        """Return what a file holds; in one without a version the digest vouches for the files alone."""
        value = files.read_json(path, wanted=cls.wanted())
        if isinstance(value, dict) and "schema_version" not in value:
            whole = False
            if isinstance(value.get("files"), dict):
                whole = files.digest(value["files"]) == value.pop(files.DIGEST, None)
            if not whole:
                raise cls.damaged(path, "its digest does not match")
            return cls.parse(value, where=path)
        return super().read(path)
