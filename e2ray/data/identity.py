"""The digest that names a folder of shards before it is made, and what its rows can hold."""

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.data import READ_ONLY, ByteLevelBpe, DataSettings, PretrainedTokenizer
from e2ray.core.file_names import TOKENIZER_FILES
from e2ray.data import tokenizer as tokenizers
from e2ray.data.corpus import fingerprint
from e2ray.records.manifest import Manifest

TokenizerSource = PretrainedTokenizer | ByteLevelBpe


def is_held_out(name: str, *, seed: int, share: float) -> bool:
    """Return whether a document of the corpus belongs to validation: a pure function of its name and the seed."""
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")
    return drawn < share * 2**64


def shards_digest(settings: DataSettings, *, tokenizer_source: TokenizerSource) -> str:
    """Return a digest that names the shards these settings give from the sources as they are now: 64 hex digits.

    It covers everything the rows are made of: settings, the path, size and age of each source file, the
    tokenizer's files, and the Python version.

    Raises:
        SettingsError: If a source matches no file or the tokenizer folder is missing.
    """
    return files.digest(
        {
            "schema_version": Manifest.schema_version,
            "settings": settings.identity(without=READ_ONLY | {"tokenizer"}),
            "tokenizer": _tokenizer_identity(tokenizer_source),
            "python": platform.python_version(),
            "corpus": fingerprint(settings.corpus),
            "validation_corpus": fingerprint(settings.validation_corpus),
        }
    )


def _tokenizer_identity(source: TokenizerSource) -> Mapping[str, object]:
    if isinstance(source, PretrainedTokenizer) and source.is_folder:
        folder = Path(source.path).expanduser()
        names = [*TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
        if not (folder / "tokenizer.json").is_file():
            names.append("merges.txt")  # else tokenizer.json holds it
        digests = {name: files.sha256(folder / name) for name in names if (folder / name).is_file()}
        if not digests:
            raise SettingsError(f"tokenizer {source.path}: not found, wanted a folder with tokenizer.json")
        return {"kind": "pretrained", "files": digests}
    return source.model_dump(mode="json")


def refuse_short_rows(window: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise SettingsError if a tokenizer's prefix leaves a row of `window` tokens no room for text."""
    size = len(tokenizers.prefix_tokens(tokenizer))
    if size >= window:
        raise SettingsError(
            f"data.window: {window} tokens, of which the tokenizer puts {size} before each text; set it to at least "
            f"{size + 1}"
        )
