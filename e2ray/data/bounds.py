"""How long and how many the documents of a source can be at most, from its files before any is read."""

from pathlib import Path

from e2ray.config.base import SettingsError
from e2ray.config.data import (
    DataSettings,
    HuggingFaceSource,
    JsonlSource,
    ParquetSource,
    PasskeySource,
    PythonStdlibSource,
    Source,
    TextSource,
)
from e2ray.config.uris import is_uri
from e2ray.data.corpus import source_files
from e2ray.data.order import shares
from e2ray.data.shards import MANIFEST
from e2ray.data.unpack import is_packed

TOKENS_PER_BYTE = 12  # at most: a normaliser turns the 3 bytes of one character into 33, each a token of its own
TOKENS_AROUND = 64  # at most, that begin and end a document


def to_be_made(data: DataSettings) -> bool:
    """Return whether the sources are read: shards that are named and exist are taken as they are."""
    if data.shards is None:
        return True
    return not is_uri(data.shards) and not (Path(data.shards).expanduser() / MANIFEST).exists()


def refuse_sources(data: DataSettings) -> None:
    """Raise SettingsError for a source that gives no row: its weight is too small, or `min_tokens` above any document.

    Tokens are bounded by the bytes of the largest file; shorter documents are noticed only when they are read.
    """
    weights = [source.weight for source in data.corpus if source.weight is not None]
    if weights and data.pack == "concat":  # other rows are not full, which adds to a weight
        try:
            shares(weights, [1.0] * len(weights))
        except ValueError as error:
            raise SettingsError(f"data.corpus: {error}") from None
    for key, sources in (("corpus", data.corpus), ("validation_corpus", data.validation_corpus)):
        for number, source in enumerate(sources):
            least, most = max(data.min_tokens, source.min_tokens), most_tokens(source)
            if most is not None and least > most and not _unpacks(source):
                where = "data.min_tokens" if data.min_tokens >= source.min_tokens else f"data.{key}.{number}.min_tokens"
                raise SettingsError(
                    f"{where}: no document of data.{key}.{number} can have {least} tokens, {most} at most; lower it"
                )


def most_tokens(source: Source) -> int | None:
    """Return a bound for the tokens of a source's longest document if none is packed; None where files do not say."""
    match source:
        case PasskeySource():
            return 4 * TOKENS_PER_BYTE * (source.max_characters + 200) + TOKENS_AROUND  # 4 bytes a character
        case TextSource() | JsonlSource() | PythonStdlibSource():
            files = source_files(source)
            return TOKENS_PER_BYTE * max((file.bytes for file in files), default=0) + TOKENS_AROUND
        case ParquetSource() | HuggingFaceSource():
            return None


def _unpacks(source: Source) -> bool:
    """Return whether a source has a packed file, whose documents may be longer than the file."""
    return not isinstance(source, PasskeySource) and any(is_packed(file.path) for file in source_files(source))


def most_documents(source: Source) -> int | None:
    """Return a bound for the documents of a source, None where counting them would mean to read it."""
    match source:
        case PasskeySource():
            return source.documents
        case TextSource() | PythonStdlibSource():
            return len(source_files(source))
        case JsonlSource() if not _unpacks(source):
            return sum(file.bytes for file in source_files(source)) // len('{"t":0}')
        case _:
            return None
