"""The tokenizer of the shards: loaded or trained, named by its content, and used the one way all shards are made.

Text is encoded as text: a document in which `</s>` is written does not end there. A document begins with the
beginning-of-text token if the tokenizer puts one by itself, and always ends with the end-of-text token.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from e2ray import files
from e2ray.config.base import SettingsError, is_folder
from e2ray.config.data import ByteLevelBpe
from e2ray.data.corpus import one_line

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
LEAST_VOCABULARY = 16  # a tokenizer whose files were not understood comes out with its few special tokens


def load_tokenizer(path: str | Path, revision: str | None = None) -> Any:
    """Return the fast tokenizer of a local folder or hub id; code that lies beside it is never run.

    Raises:
        SettingsError: If there is none, it cannot be read, it is a slow one or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    name = str(path)
    if is_folder(name):
        name = os.path.abspath(os.path.expanduser(name))
        if not any(os.path.isfile(os.path.join(name, file)) for file in TOKENIZER_FILES):
            raise SettingsError(f"tokenizer {path}: holds no tokenizer, wanted one of {', '.join(TOKENIZER_FILES)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds, some from its Rust half, for files it cannot read
        raise SettingsError(f"tokenizer {path}: cannot be loaded ({one_line(error)[:300]})") from None
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise SettingsError(f"tokenizer {path}: is a slow one, wanted a folder with tokenizer.json; convert it first")
    if len(tokenizer) < LEAST_VOCABULARY:
        raise SettingsError(
            f"tokenizer {path}: has {len(tokenizer)} tokens, its files were not understood; save it as tokenizer.json"
        )
    if tokenizer.eos_token_id is None:
        raise SettingsError(f"tokenizer {path}: has no end-of-text token; set eos_token in its tokenizer_config.json")
    return tokenizer


def train_byte_level_bpe(texts: Iterable[str], settings: ByteLevelBpe) -> Any:
    """Return a byte-level BPE tokenizer trained on `texts`; the same texts give the same tokenizer.

    Raises:
        SettingsError: If there is no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    read = 0

    def counted() -> Iterable[str]:
        nonlocal read
        for text in texts:
            read += len(text)
            yield text

    backend.train_from_iterator(counted(), trainer)
    if not read:
        raise SettingsError("data.tokenizer: there is no text to train a byte_level_bpe on; check data.corpus")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT)


def tokenizer_hash(tokenizer: Any) -> str:
    """Return 64 hexadecimal digits that name what a tokenizer does, wherever it lies.

    They cover its vocabulary, merges, normalisation and splitting, and which tokens begin and end a text; not its
    folder, padding, truncation or chat template.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for key in ("version", "padding", "truncation"):
        content.pop(key, None)
    return files.digest(
        {"tokenizer": content, "begin": begin_token(tokenizer), "end": tokenizer.eos_token_id, "size": len(tokenizer)}
    )


def begin_token(tokenizer: Any) -> int | None:
    """Return the id of the beginning-of-text token if the tokenizer puts it before a text by itself, else None."""
    begin = tokenizer.bos_token_id
    ids = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True).ids
    return begin if begin is not None and ids and ids[0] == begin else None


class Encoder:
    """Turns documents into tokens, one way for every shard.

    Needs only the text of tokenizer.json, so a process that tokenises imports neither transformers nor torch.
    Truncation and padding in that file do not cut documents, and special tokens spelled out in a text stay text.
    """

    def __init__(self, tokenizer_json: str, *, begin: int | None, end: int) -> None:
        from tokenizers import Tokenizer

        self.backend = Tokenizer.from_str(tokenizer_json)
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True
        self.prefix = [] if begin is None else [begin]
        self.end = end

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Return the tokens of each text, int32 [tokens]: the begin token if any, the text, the end token."""
        return self.arrays(self.encodings(texts))

    def encodings(self, texts: Sequence[str]) -> list[Any]:
        """Return what the library makes of each text; other threads of Python run meanwhile."""
        return list(self.backend.encode_batch_fast(list(texts), add_special_tokens=False))

    def arrays(self, encodings: Sequence[Any]) -> list[npt.NDArray[np.int32]]:
        """Return the tokens of what `encodings` has returned, as `encode` does."""
        return [np.array([*self.prefix, *encoding.ids, self.end], dtype=np.int32) for encoding in encodings]
