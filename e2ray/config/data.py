"""The corpus, its tokenizer and the shards made of them."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from e2ray.config.base import Plain, Settings, Text, is_folder

SHUFFLE_SHARDS = 16
READ_ONLY = frozenset(
    {"shards", "ledger", "shuffle_shards", "prefetch_mib"}
)  # settings that change how shards are read, not made
MAX_DOCUMENT_MIB = 1024
MAX_UNPACK_RATIO = 256
Paths = Annotated[
    tuple[Text, ...],
    Field(min_length=1, strict=False, description="Files or globs (** allowed), absolute or from the working folder."),
]


class _Source(Settings):
    """What every source may say about its documents."""

    weight: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="Share of the tokens that a run reads from this source, relative to the others'; all sources "
        "have one or none has. Its rows are then its own. null: the sources are one text, each token read as often.",
    )
    min_tokens: int = Field(1, ge=1, description="Documents of fewer tokens are left out of this source and counted.")
    max_tokens: int | None = Field(None, ge=1, description="Documents of more tokens are left out too; null: none.")

    @model_validator(mode="after")
    def _check_lengths(self) -> "_Source":
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens: must be at least min_tokens ({self.min_tokens}), got {self.max_tokens}")
        return self


class TextSource(_Source):
    """Text files, plain or packed by gzip or zstd, whatever their names; each file is one document."""

    kind: Literal["text"] = "text"
    paths: Paths


class JsonlSource(_Source):
    """JSON lines, plain or packed by gzip or zstd, whatever their names; each line is one document."""

    kind: Literal["jsonl"] = "jsonl"
    paths: Paths
    column: str = Field("text", min_length=1, description="Key that holds the text.")


class ParquetSource(_Source):
    """Parquet files with a column of strings of any Arrow type; each row is one document."""

    kind: Literal["parquet"] = "parquet"
    paths: Paths
    column: str = Field("text", min_length=1, description="Column that holds the text.")


class HuggingFaceSource(_Source):
    """A dataset of the Hugging Face library; each row is one document. Needs the extra `data`."""

    kind: Literal["hugging_face"] = "hugging_face"
    path: str = Field(
        min_length=1, description="Folder that save_to_disk wrote (starts with /, ./, ../ or ~), or hub id, streamed."
    )
    name: Text | None = Field(None, description="Configuration of a hub id.")
    split: str = Field("train", min_length=1, description="Which part of the dataset.")
    column: str = Field("text", min_length=1, description="Column that holds the text.")
    revision: Text | None = Field(None, description="Branch, tag or commit of a hub id.")

    @property
    def is_folder(self) -> bool:
        """Whether `path` names a local folder and not a hub id."""
        return is_folder(self.path)


class PythonStdlibSource(_Source):
    """The interpreter's own standard library, without site-packages and test folders.

    Real text that is on every machine: the corpus of the built-in run.
    """

    kind: Literal["python_stdlib"] = "python_stdlib"


class PasskeySource(_Source):
    """Documents made on the spot: a stretch of other text, a number hidden in it, a question and the answer.

    A small base model learns from them to look back, which the retrieval task of the same name asks for. They are never
    held out, and no file that is held out is cut up for them.
    """

    kind: Literal["passkey"] = "passkey"
    text: Annotated[TextSource | PythonStdlibSource, Field(discriminator="kind")] = Field(
        PythonStdlibSource(), description="Files that the surrounding text is cut out of."
    )
    documents: int = Field(50_000, ge=1, le=10**9, description="How many are made.")
    min_characters: int = Field(0, ge=0, le=10**9, description="Surrounding text of a document, at least.")
    max_characters: int = Field(
        200, ge=0, le=10**9, description="Surrounding text of a document, at most; lengths are uniform."
    )
    digits: int = Field(5, ge=1, le=18, description="Digits of the number, the first not 0.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of texts, places and numbers.")

    @model_validator(mode="after")
    def _check_characters(self) -> "PasskeySource":
        for name in _Source.model_fields:
            if getattr(self.text, name) != _Source.model_fields[name].default:
                raise ValueError(f"text.{name}: says nothing about made documents; set {name} beside text, not in it")
        if self.max_characters < self.min_characters:
            raise ValueError(
                f"max_characters: must be at least min_characters ({self.min_characters}), got {self.max_characters}"
            )
        if self.max_characters >= 10 ** (self.digits - 1):
            raise ValueError(
                f"digits: {self.digits} leave no number that a text of max_characters is sure not to hold; raise it"
            )
        return self


Source = Annotated[
    TextSource | JsonlSource | ParquetSource | HuggingFaceSource | PythonStdlibSource | PasskeySource,
    Field(discriminator="kind"),
]


class PretrainedTokenizer(Settings):
    """The tokenizer of a Hugging Face folder or hub id."""

    kind: Literal["pretrained"] = "pretrained"
    path: str = Field(min_length=1, description="Folder (starts with /, ./, ../ or ~) or hub id.")
    revision: Text | None = Field(None, description="Branch, tag or commit of a hub id.")

    @property
    def is_folder(self) -> bool:
        """Whether `path` names a local folder and not a hub id."""
        return is_folder(self.path)


class ByteLevelBpe(Settings):
    """A byte-level BPE trained on the training documents of the corpus."""

    kind: Literal["byte_level_bpe"] = "byte_level_bpe"
    vocab_size: int = Field(
        2048, ge=257, le=2**20, description="Tokens at most, the 256 bytes and the end of text included."
    )
    training_bytes: int = Field(
        8_000_000, ge=1, description="At most this many bytes of text are read to train it, spread over the corpus."
    )

    @model_validator(mode="after")
    def _check(self) -> "ByteLevelBpe":
        merges = self.vocab_size - 257
        if merges >= self.training_bytes:  # each merge joins two of them
            raise ValueError(
                f"vocab_size: {self.training_bytes} bytes (training_bytes) make fewer tokens than {self.vocab_size}; "
                "lower it or raise training_bytes"
            )
        return self


Tokenizer = Annotated[PretrainedTokenizer | ByteLevelBpe, Field(discriminator="kind")]


class DataSettings(Settings):
    """From sources to rows of exactly `window` tokens."""

    corpus: tuple[Source, ...] = Field(min_length=1, strict=False, description="Sources, read in this order.")
    tokenizer: Tokenizer | None = Field(None, description="null takes the tokenizer of the pretrained model.")
    window: int = Field(ge=2, le=2**24, description="R: tokens of a training row.")
    pack: Literal["concat", "document", "best_fit"] = Field(
        "concat",
        description="concat: rows are cut out of one long text, which they attend to as one; document: one document a "
        "row, the rest padded; best_fit: whole documents fill a row and do not see each other. A document longer than "
        "a row is cut.",
    )
    pack_waiting: int = Field(
        1000,
        ge=1,
        le=10**9,
        description="Documents that best_fit chooses among; more fill rows better and take more memory.",
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
    near_duplicates: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of common five-token shingles (Jaccard) from which on a document is left out as a "
        "repetition of an earlier one, held-out ones included; null keeps all. Needs the extra `data`.",
    )
    on_bad: Literal["error", "skip"] = Field(
        "error", description="What an unreadable, empty or non-UTF-8 document does: stop, or be skipped and listed."
    )
    max_document_mib: int = Field(
        MAX_DOCUMENT_MIB,
        ge=1,
        le=2**14,
        description="MiB of one JSON line, one cell of a table or one packed text file, unpacked; a larger one is bad "
        "(on_bad). Plain text files are taken as large as they are.",
    )
    max_unpack_ratio: int = Field(
        MAX_UNPACK_RATIO,
        ge=1,
        description="Bytes that a packed file may unpack to for each byte it has, once that is more than "
        "max_document_mib; one that goes beyond is taken for a decompression bomb and is bad (on_bad). A Parquet file "
        "whose footer tells so is refused.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Chooses the validation documents.")
    shard_rows: int = Field(8192, ge=1, le=2**31, description="Training rows of one shard file.")
    shuffle_shards: int = Field(
        SHUFFLE_SHARDS,
        ge=1,
        le=2**20,
        description="Shards whose rows are mixed among each other in an epoch; more mix better and read from more "
        "files at a time.",
    )
    prefetch_mib: int = Field(
        32,
        ge=1,
        le=2**20,
        description="MiB of rows that each worker's reader keeps ahead of the training, two blocks at least.",
    )
    ledger: bool = Field(
        False, description="Note each step's row ids, scales and shifts in <run>/ledger, as Arrow files, for audits."
    )
    shards: str | None = Field(
        None,
        description="Folder of prepared shards, or a URI of a copy (credentials come from the environment); null means "
        "one under <storage>/shards named by its content.",
    )

    def made_with(self) -> Plain:
        """Return the settings that shards are made with, as plain data; a tokenizer only if it is trained for them."""
        loaded = set() if isinstance(self.tokenizer, ByteLevelBpe) else {"tokenizer"}
        return self.model_dump(mode="json", exclude={*READ_ONLY, "corpus", "validation_corpus", "window", *loaded})

    def identity(self, *, without: Collection[str]) -> Plain:
        """Return the settings that name the shards and bases made with them, as plain data.

        Settings added later count only where they are not the default, so that existing names stay valid.
        """
        later = {"max_document_mib": MAX_DOCUMENT_MIB, "max_unpack_ratio": MAX_UNPACK_RATIO}
        dumped = self.model_dump(mode="json", exclude=set(without))
        return {name: value for name, value in dumped.items() if name not in later or value != later[name]}

    @field_validator("shards")
    @classmethod
    def _shared_location(cls, value: str | None) -> str | None:
        if value is not None and "://" not in value and not value.startswith(("/", "~/")):
            raise ValueError(
                f"must be absolute, from ~/, or a URI, since jobs run in a copy of the working folder, got {value!r}; "
                "null prepares shards under storage"
            )
        return value

    @model_validator(mode="after")
    def _check_lengths(self) -> "DataSettings":
        for key, sources in (("corpus", self.corpus), ("validation_corpus", self.validation_corpus)):
            for number, source in enumerate(sources):
                if source.max_tokens is not None and source.max_tokens < self.min_tokens:
                    raise ValueError(
                        f"{key}.{number}.max_tokens: {source.max_tokens} is below data.min_tokens ({self.min_tokens}), "
                        "so no document of it is left; widen them"
                    )
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> "DataSettings":
        without = [number for number, source in enumerate(self.corpus) if source.weight is None]
        if without and len(without) < len(self.corpus):
            raise ValueError(
                f"corpus.{without[0]}.weight: is missing where others have one; give each source a weight, or none"
            )
        for number, source in enumerate(self.validation_corpus):
            if source.weight is not None:
                raise ValueError(f"validation_corpus.{number}.weight: held-out documents are not mixed; leave it out")
        return self
