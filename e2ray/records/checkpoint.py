"""The files of a checkpoint beside its tensors: state.json and manifest.json."""

from pathlib import Path
from typing import Self

from pydantic import Field

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.files import Fingerprint
from e2ray.records.record import VERSION, Count, Length, Many, Nats, Part, Plain, Record, Tokens

FORMAT = 3


class Parameter(Part):
    """Where a trainable parameter lies."""

    file: str = Field(description="Name of the part.")
    shape: Many[Count] = Field(description="Of the parameter.")


class FirstLook(Part):
    """What was seen of the untouched model before the first step."""

    nll: Nats | None = Field(description="At L and scale 1; null where it was no finite number.")
    window: Length = Field(description="L.")
    scored: Tokens = Field(description="Last tokens of a window that were scored.")
    documents: str = Field(description="Digest of the documents.")


class Look(Part):
    """What a look at the model in training has found."""

    step: Count = Field(description="Updates made.")
    watch_nll: dict[str, Nats | None] = Field(description="By window; null where it did not fit, or was not finite.")
    price_at_base: Nats | None = Field(description="At L, minus the untouched model's.")


class Watched(Part):
    """What a watch has seen so far."""

    base: FirstLook | None = Field(description="Before the first step.")
    last: Look | None = Field(description="The newest look.")


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
    watched: Watched | None = Field(None, description="What a watch has seen; null where the training has none.")
    stopped: bool = Field(False, description="Whether `train.stop` ended the training here.")
    identity: Plain = Field(default_factory=dict, description="What the training is: all that its weights follow from.")
    dtype: str = Field("float32", description="Of the weights of the engine.")
    parameters: dict[str, Parameter] = Field(description="By name, in the model's order.")

    @classmethod
    def parse(cls, value: object, *, where: str | Path) -> Self:
        """Return the state that a value of JSON holds; one of another format is refused by name."""
        given = value.get("format") if isinstance(value, dict) else None
        if isinstance(given, int) and given != FORMAT:
            raise SettingsError(
                f"{where}: has format {given}, this version reads {FORMAT}; finish the run with the version that began "
                "it, or choose another name"
            )
        return super().parse(value, where=where)


class CheckpointManifest(Record):
    """manifest.json of a checkpoint: what names each of its files."""

    what = "a checkpoint's manifest"
    anew = "remove the checkpoint"

    files: dict[str, Fingerprint] = Field(description="By name.")

    @classmethod
    def read_told(cls, path: str | Path) -> tuple[Self, bool]:
        """Return what a file holds; it must have a digest, which without a version covers the files alone."""
        value = files.read_json(path, wanted=cls.wanted())
        if isinstance(value, dict) and VERSION not in value:
            is_vouched = files.is_digest(value.pop(files.DIGEST, None), value.get("files"))
        else:
            value, is_vouched = files.vouched(value, path, cls.wanted())
        manifest = cls.parse(value, where=path)
        if not is_vouched:
            raise cls.damaged(path, "its digest does not match")
        return manifest, True
