"""The corpus, its tokenizer and the shards made of them."""

from typing import Annotated, Literal

from pydantic import Field

from e2ray.config.base import Settings

Paths = Annotated[
    tuple[str, ...],
    Field(min_length=1, strict=False, description="Files or globs (** allowed), absolute or from the working folder."),
]


class TextSource(Settings):
    """Text files, plain, .gz or .zst; each file is one document."""

    kind: Literal["text"] = "text"
    paths: Paths


class JsonlSource(Settings):
    """JSON lines, plain, .gz or .zst; each line is one document."""

    kind: Literal["jsonl"] = "jsonl"
    paths: Paths
    column: str = Field("text", min_length=1, description="Key that holds the text.")


class ParquetSource(Settings):
    """Parquet files; each row is one document."""

    kind: Literal["parquet"] = "parquet"
    paths: Paths
    column: str = Field("text", min_length=1, description="Column that holds the text.")


class PythonStdlibSource(Settings):
    """The interpreter's own standard library, without site-packages and test folders.

    Real text that is on every machine: the corpus of the built-in run.
    """

    kind: Literal["python_stdlib"] = "python_stdlib"


Source = Annotated[TextSource | JsonlSource | ParquetSource | PythonStdlibSource, Field(discriminator="kind")]


class PretrainedTokenizer(Settings):
    """The tokenizer of a Hugging Face folder or hub id."""

    kind: Literal["pretrained"] = "pretrained"
    path: str = Field(min_length=1, description="Folder (starts with /, ./, ../ or ~) or hub id.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")


class ByteLevelBpe(Settings):
    """A byte-level BPE trained on the training documents of the corpus."""

    kind: Literal["byte_level_bpe"] = "byte_level_bpe"
    vocab_size: int = Field(2048, ge=257, description="Tokens, the 256 bytes and the end of text included.")
    training_bytes: int = Field(
        8_000_000, ge=1, description="At most this many bytes of text are read to train it, spread over the corpus."
    )


Tokenizer = Annotated[PretrainedTokenizer | ByteLevelBpe, Field(discriminator="kind")]


class DataSettings(Settings):
    """From sources to rows of exactly `window` tokens."""

    corpus: tuple[Source, ...] = Field(min_length=1, strict=False, description="Sources, read in this order.")
    tokenizer: Tokenizer | None = Field(None, description="null takes the tokenizer of the pretrained model.")
    window: int = Field(ge=2, description="R: tokens of a training row.")
    pack: Literal["concat", "document", "best_fit"] = Field(
        "concat",
        description="concat: rows are cut out of one long text, which they attend to as one; document: one document a "
        "row, the rest padded; best_fit: whole documents fill a row and do not see each other. A document longer than "
        "a row is cut.",
    )
    pack_waiting: int = Field(
        1000, ge=1, description="Documents that best_fit chooses among; more fill rows better and take more memory."
    )
    validation_share: float = Field(
        0.02, ge=0, lt=1, description="Share of the corpus documents held out whole, chosen by seed and name."
    )
    validation_corpus: tuple[Source, ...] = Field(
        (), strict=False, description="Sources whose documents are all held out."
    )
    min_tokens: int = Field(
        1, ge=1, description="Documents of fewer tokens are left out and counted; begin and end tokens count too."
    )
    on_bad: Literal["error", "skip"] = Field(
        "error", description="What an unreadable, empty or non-UTF-8 document does: stop, or be skipped and listed."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Chooses the validation documents.")
    shard_rows: int = Field(8192, ge=1, description="Training rows of one shard file.")
    ledger: bool = Field(
        False, description="Note each step's row ids, scales and shifts in <run>/ledger, as Arrow files, for audits."
    )
    shards: str | None = Field(
        None, description="Folder of prepared shards; null means one under <storage>/shards named by its content."
    )
