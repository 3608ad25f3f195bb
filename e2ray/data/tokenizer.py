"""Tokenizers: loaded or trained, named by their content, saved whole, and the prefix of a text.

`prefix_tokens` alone says how a text begins: rows, evaluation, retrieval, suites and generation all use it. In shards
text is encoded as text: a document in which `</s>` is written does not end there. A document begins with the prefix
that the tokenizer adds by itself, and always ends with the end-of-text token.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from e2ray import files
from e2ray.config.base import SettingsError, is_folder
from e2ray.config.data import ByteLevelBpe
from e2ray.core.file_names import files_below, is_of_a_tokenizer
from e2ray.core.model_folder import refuse_damaged
from e2ray.data.corpus import one_line
from e2ray.data.encoder import Encoder

END_OF_TEXT = "<|endoftext|>"
PROBES = ("The year 1969.", "The", "year", "1969")  # texts that any tokenizer of a language model knows
LEAST_VOCABULARY = 16  # a tokenizer whose files were not understood has only its few special tokens


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a local folder or hub id; code beside it is never run.

    Raises:
        SettingsError: If there is none, it cannot be read, or it knows no ordinary text: some loaders yield a tokenizer
            of three tokens where its vocabulary is missing.
    """
    name = str(path)
    if isinstance(path, Path) or is_folder(name):
        name = os.path.abspath(os.path.expanduser(name))
        if not os.path.isdir(name):
            raise SettingsError(f"tokenizer {path}: no such folder; name one with tokenizer.json or a hub id")
        refuse_damaged(Path(name), only=tokenizer_files(Path(name)))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        ids = tokenizer.encode(PROBES[0], add_special_tokens=False)
    except Exception as error:  # the library raises many kinds, some from its Rust half, for files it cannot read
        reason = f"cannot be loaded ({one_line(error)[:300]})"
        if os.path.isdir(name) and not tokenizer_files(Path(name)):
            reason = "holds no tokenizer"
        raise SettingsError(f"tokenizer {path}: {reason}; name a folder with tokenizer.json or a hub id") from None
    if not ids or set(ids) == {tokenizer.unk_token_id}:
        raise SettingsError(
            f"tokenizer {path}: knows no ordinary text ({len(tokenizer)} tokens), so its vocabulary is missing; "
            "name a folder with tokenizer.json or a hub id"
        )
    return tokenizer


def load_shard_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Return a tokenizer as `load_tokenizer` does, if shards can be made with it.

    Raises:
        SettingsError: If it cannot be loaded, is a slow one, has no end-of-text token, or puts tokens into a text.
    """
    tokenizer = load_tokenizer(path, revision)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise SettingsError(f"tokenizer {path}: is a slow one, wanted a folder with tokenizer.json; convert it first")
    if len(tokenizer) < LEAST_VOCABULARY:
        raise SettingsError(
            f"tokenizer {path}: has {len(tokenizer)} tokens, its files were not understood; save it as tokenizer.json"
        )
    if tokenizer.eos_token_id is None:
        raise SettingsError(f"tokenizer {path}: has no end-of-text token; set eos_token in its tokenizer_config.json")
    prefix_tokens(tokenizer)
    return tokenizer


def train_byte_level_bpe(texts: Iterable[str], settings: ByteLevelBpe) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on `texts`; the same texts give the same tokenizer.

    Raises:
        SettingsError: If there is no text.
    """
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


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of what a tokenizer does, wherever it is stored: 64 hex digits.

    It covers its vocabulary, merges, normalisation and splitting, and which tokens begin and end a text; not its
    folder, padding, truncation or chat template.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for key in ("version", "padding", "truncation"):
        content.pop(key, None)
    return files.digest(
        {"tokenizer": content, "begin": begin_name(tokenizer), "end": tokenizer.eos_token_id, "size": len(tokenizer)}
    )


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of embeddings that a tokenizer needs, its highest id plus one; ids may have gaps."""
    return max((1 + highest for highest in tokenizer.get_vocab().values()), default=len(tokenizer))


def prefix_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that a tokenizer puts before a text by itself, maybe none, without those it appends.

    Found by comparing several texts with and without its special tokens: no name such as `bos_token` gives them.

    Raises:
        SettingsError: If it changes what is between.
    """
    fits: set[tuple[int, ...]] | None = None
    for text in PROBES:
        bare, whole = (tokenizer.encode(text, add_special_tokens=each, verbose=False) for each in (False, True))
        starts = range(len(whole) - len(bare) + 1)
        here = {tuple(whole[:start]) for start in starts if whole[start : start + len(bare)] == bare}
        fits = here if fits is None else fits & here
    if not fits:
        raise SettingsError(
            f"tokenizer {tokenizer.name_or_path}: its post_processor puts tokens into a text, wanted one that only "
            "puts the same ones before or behind each; mend it in tokenizer.json"
        )
    return list(min(fits))


def begin_name(tokenizer: PreTrainedTokenizerBase) -> int | list[int] | None:
    """Return the prefix as hashes and manifests write it: None, the id of a lone bos_token, else a list of all ids."""
    prefix = prefix_tokens(tokenizer)
    return prefix[0] if prefix == [tokenizer.bos_token_id] else prefix or None


def behind(prefix: list[int], tokens: list[int]) -> list[int]:
    """Return a text's tokens after a prefix, which is added unless they begin with it, as from a chat template."""
    return tokens if tokens[: len(prefix)] == prefix else [*prefix, *tokens]


def opening_tokens(tokenizer: PreTrainedTokenizerBase, prefix: list[int]) -> list[int]:
    """Return the tokens that an empty text begins with: the tokenizer's prefix, else its end-of-text token, if any."""
    end = tokenizer.eos_token_id
    return list(prefix) or ([] if end is None else [end])


def encoder_of(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Return the encoder that encodes as for the shards of a fast tokenizer."""
    prefix = prefix_tokens(tokenizer)
    return Encoder(tokenizer.backend_tokenizer.to_str(), prefix=prefix, end=tokenizer.eos_token_id)


def save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer; what the disk refuses is an `OSError`, also from the Rust half, which raises plain ones."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        refused = re.search(r"\(os error (\d+)\)", str(error))
        if refused is None:
            raise
        raise OSError(int(refused[1]), os.strerror(int(refused[1])), str(folder)) from None


def tokenizer_files(folder: Path, names: Iterable[str] = ()) -> list[str]:
    """Return the files of a folder that belong to its tokenizer, chat templates among them, in order.

    Args:
        folder: It may hold a model, too.
        names: Further ones, of a tokenizer class.
    """
    return [name for name in files_below(folder) if is_of_a_tokenizer(name, names)]


def whole_digest(path: str | Path, revision: str | None = None) -> str:
    """Return a digest of a tokenizer with its chat templates, from a folder's files or a hub id: 64 hex digits.

    Raises:
        SettingsError: If the folder holds none.
    """
    if not is_folder(str(path)):
        return files.digest([str(path), revision])
    folder = Path(path).expanduser()
    names = tokenizer_files(folder) if folder.is_dir() else []
    if not names:
        raise SettingsError(f"tokenizer {path}: not found, wanted a folder with tokenizer.json")
    return files.digest({name: files.sha256(folder / name) for name in names})


def save_whole(path: str | Path, folder: Path, revision: str | None = None) -> None:
    """Write the tokenizer of a folder or hub id into another folder, with all of its files and chat templates.

    Files of a folder are copied as they are. Where there is no tokenizer.json among them, or they come from the hub,
    the loaded tokenizer is saved beside them.

    Raises:
        SettingsError: If it cannot be loaded.
    """
    tokenizer = load_tokenizer(path, revision)
    source = Path(path).expanduser()
    names = tokenizer_files(source, tokenizer.vocab_files_names.values()) if source.is_dir() else []
    if "tokenizer.json" not in names:
        save(tokenizer, folder)
    for name in names:
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def serve_up_to(folder: Path, tokens: int) -> None:
    """Set the length limit of a saved tokenizer, and remove a truncation that tokenizer.json may have."""
    config, whole = folder / "tokenizer_config.json", folder / "tokenizer.json"
    known = files.read_object(config, wanted="a tokenizer's config") if config.is_file() else {}
    files.write_json(config, known | {"model_max_length": tokens})
    content = files.read_object(whole, wanted="a tokenizer") if whole.is_file() else {}
    if content.get("truncation"):
        files.write_json(whole, content | {"truncation": None})
