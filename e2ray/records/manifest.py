"""manifest.json of a folder of shards: what is in it, what made it, and what every file's bytes must be.

A manifest has exactly one spelling, its digest included; any other text of it is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field

from e2ray import files
from e2ray.records.record import VERSION, Bytes, Count, Length, Many, Pair, Part, Plain, Record, Share, Tokens, left_out


class ShardEntry(Part):
    """One Arrow file."""

    blocks: Many[Pair[int]] = Field(
        description="The pieces that it is cut into behind every record batch: where each ends, and its CRC-32."
    )
    bytes: Bytes = Field(description="Its size.")
    file: str = Field(description="Its name.")
    first_row: Count = Field(description="Number of its first row among all of its kind.")
    rows: Count = Field(description="Rows in it.")
    sha256: str = Field(description="Of its bytes.")


class DocumentLengths(Part):
    """How long documents are."""

    count: Count = Field(description="Documents.")
    tokens: Tokens = Field(0, description="Of them all.")
    min: Tokens | None = left_out("The shortest.")
    median: Tokens | None = left_out("The middle one.")
    max: Tokens | None = left_out("The longest.")
    histogram: Many[Pair[int]] | None = left_out(
        "Pairs of a power of two and the documents of at most that many tokens and more than half."
    )


class CorpusRows(Part):
    """The rows of one corpus of a mixture."""

    weight: float = Field(description="Share of tokens asked for, against the others'.")
    first_row: Count = Field(description="Number of its first row.")
    rows: Count = Field(description="Its rows.")
    shard_rows: Length = Field(description="Rows of each of its shards but the last.", json_schema_extra={"unit": ""})
    tokens: Tokens = Field(description="Of documents in them.")
    padded_tokens: Tokens = Field(0, description="Places that only fill a row.")
    parts: Count = Field(description="Its rows in every ten thousand of a run.")


class Manifest(Record):
    """manifest.json of shards."""

    what = "the manifest of shards that prepare has made"
    anew = "remove the folder and rerun prepare"

    corpus_digest: str = Field("", description="Of the sources, the tokenizer and the settings; it names the folder.")
    tokenizer_hash: str = Field(description="Of the tokenizer.")
    vocab_size: Count = Field(0, description="Its tokens.")
    begin_token: int | list[int] | None = Field(None, description="What it puts before a text; null for nothing.")
    end_token: int | None = Field(None, description="Id of its end of text.")
    window: Length = Field(description="R, of a row.")
    rows: Count = Field(description="Training rows.")
    rows_per_batch: Count = Field(description="Rows of a record batch.")
    pack: str = Field("concat", description="How documents were put into rows.")
    tokens: Tokens = Field(0, description="Of documents in all rows.")
    padded_tokens: Tokens = Field(0, description="Places that only fill a row.")
    dropped_tokens: Tokens = Field(0, description="Tokens at the end that filled no row.")
    documents: dict[str, DocumentLengths] = Field(default_factory=dict, description="Of `train` and `validation`.")
    validation_lengths: Many[Tokens] | None = left_out("Of each held-out document, in their order.")
    num_short: Count = Field(0, description="Documents left out as shorter than min_tokens.")
    num_long: Count = Field(0, description="Documents left out as longer than max_tokens.")
    num_repeated: Count = Field(0, description="Documents left out as near duplicates.")
    num_skipped: Count = Field(0, description="Documents that could not be read.")
    skipped: Many[str] = Field((), description="The first of these, with the reason.")
    sources: Many[Plain] = Field((), description="`data.corpus` of the recipe.")
    validation_sources: Many[Plain] = Field((), description="`data.validation_corpus`.")
    validation_share: Share | None = Field(None, description="Of documents that are held out.")
    seed: int | None = Field(None, description="Of that choice.")
    settings: Plain = Field(default_factory=dict, description="Other settings that the rows follow from.")
    shards: Many[ShardEntry] = Field(description="Files of training rows, in their order.")
    validation: Many[ShardEntry] = Field(description="Files of held-out documents.")
    corpora: Many[CorpusRows] | None = left_out("Of a mixture, the rows of each corpus.")
    digest: str = Field("", description="Of everything above.")

    @property
    def text(self) -> str:
        """The file's content."""
        return spelled(self.content())

    def sealed(self) -> Self:
        """Return the manifest with its digest."""
        return self.changed(digest=files.digest(_without_digest(self.content())))

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        files.write_text(path, self.text)

    @classmethod
    def read_told(cls, path: str | Path) -> tuple[Self, bool]:
        """Return what a file holds; it must have a digest."""
        return cls.of_text(Path(path).read_bytes(), where=path), True

    @classmethod
    def of_text(cls, content: bytes, *, where: str | Path) -> Self:
        """Return the manifest in a file's content; `where` names it in errors.

        Raises:
            SettingsError: If it was changed or damaged since it was written, or is of a newer e2ray.
        """
        try:
            text = content.decode("utf-8")
            manifest = json.loads(text)
            whole = not isinstance(manifest, dict) or (VERSION in manifest and spelled(manifest) == text)
        except (ValueError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise cls.damaged(where, "its digest does not match")
        return cls.parse(manifest, where=where)


def spelled(manifest: Mapping[str, object]) -> str:
    """Return the one spelling of a manifest's fields, their digest included."""
    content = _without_digest(manifest)
    content["digest"] = files.digest(content)
    lines = [f"{json.dumps(key)}: {_json(value)}" for key, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _without_digest(manifest: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in manifest.items() if key != "digest"}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
