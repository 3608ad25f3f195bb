"""From sources to a finished folder of shards: list, train the tokenizer, tokenise, split, cut into rows, commit.

The folder is filled under another name and renamed when it is whole, so a killed or failed `prepare` leaves nothing
that looks finished; the next one removes the rest. The same sources and settings give the same bytes.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.data import DataSettings, PasskeySource, Source
from e2ray.data import tokenizer as tokenizers
from e2ray.data.build import Build
from e2ray.data.corpus import Item, list_items, source_files
from e2ray.data.identity import TokenizerSource, is_held_out, shards_digest
from e2ray.data.pace import Pace
from e2ray.data.parts import Parts
from e2ray.data.shards import ShardSet
from e2ray.data.unpack import Limits
from e2ray.records.folders import ShardFolder
from e2ray.records.manifest import Manifest
from e2ray.records.record import NewerError

TOKENS = 2  # version of tokenising; parts of an earlier version are made again


def prepare(
    settings: DataSettings,
    folder: Path,
    *,
    tokenizer_source: TokenizerSource,
    progress: Callable[[str], None],
) -> Manifest:
    """Return the manifest of the shards in `folder`, made now unless they are there already. Needs a running Ray.

    Args:
        settings: The corpus, the window and the split.
        folder: Becomes the folder of shards; an older one made by `prepare` is replaced.
        tokenizer_source: A tokenizer to load, or to train on the training documents.
        progress: Gets one line every few seconds, with done, total and time left.

    Raises:
        SettingsError: If a source, a document (`on_bad: error`), the tokenizer or the disk is unusable, there is no
            whole row or no validation document, or another process prepares the same folder.
    """
    folder = Path(folder).expanduser().absolute()
    digest = shards_digest(settings, tokenizer_source=tokenizer_source)
    with files.lock(folder.with_name(f".{folder.name}.lock"), what="preparing the same shards"):
        finished = _finished(folder, digest, progress)
        if finished is not None:
            progress(f"prepare: {folder} is up to date, {finished.rows} rows of {finished.window} tokens")
            return finished
        items, held_out = _items(settings)
        sizes = [len(pieces) for pieces in (*held_out, *items)]
        parts = _parts(folder, files.digest([TOKENS, digest, sizes])[:16])
        try:
            with (
                files.atomic_folder(folder) as aside,
                Pace(progress, "prepare", total=sum(sizes), unit="pieces") as pace,
            ):
                build = Build(settings, aside, tokenizer_source, pace, parts)
                build.make_tokenizer([item for pieces in items for item in pieces])
                for source, pieces in zip(settings.corpus, items, strict=True):
                    build.add(pieces, source, held_out=False)
                for source, pieces in zip(settings.validation_corpus, held_out, strict=True):
                    build.add(pieces, source, held_out=True)
                build.finish(digest).write(ShardFolder(aside).manifest)
        except SettingsError:
            parts.remove()  # a change that mends it changes the tokens; a lost worker or a kill does not
            raise
        parts.remove()
        manifest = ShardSet.open(folder).manifest
        if manifest.padded_tokens:
            progress(f"prepare: rows are {fill(manifest):.2%} full")
        return manifest


def _items(settings: DataSettings) -> tuple[list[list[Item]], list[list[Item]]]:
    """Return the pieces of work of each source of the corpus, and of each one that is held out."""
    limits = Limits.of(settings)
    held_out = [list_items([source], limits=limits) for source in settings.validation_corpus]
    without = frozenset(
        os.path.realpath(file.path) for source in settings.validation_corpus for file in source_files(source)
    )
    items = [
        list_items([source], without=without | _held_out_files(settings, source), limits=limits)
        for source in settings.corpus
    ]
    return items, held_out


def _parts(folder: Path, name: str) -> Parts:
    """Return the parts that keep the tokens of items under a name, after removing those of other names.

    A part names its items by number.
    """
    for left in folder.parent.glob(f"{files.TEMPORARY}*-{folder.name}"):
        shutil.rmtree(left, ignore_errors=True)
    kept = folder.with_name(f".{folder.name}.parts-{name}")
    for left in folder.parent.glob(f".{folder.name}.parts-*"):
        if left != kept:
            shutil.rmtree(left, ignore_errors=True)
    return Parts(kept)


def fill(manifest: Manifest) -> float:
    """Return the share of the tokens in rows that are of a document, not padding, exactly, 0 to 1."""
    return float(manifest.tokens / (manifest.rows * manifest.window))


def _held_out_files(settings: DataSettings, source: Source) -> frozenset[str]:
    """Return the real paths of held-out files, from which made documents must not be cut."""
    if not isinstance(source, PasskeySource):
        return frozenset()
    seed, share = settings.seed, settings.validation_share
    held_out = [file for file in source_files(source) if is_held_out(file.name, seed=seed, share=share)]
    return frozenset(os.path.realpath(file.path) for file in held_out)


def _finished(folder: Path, digest: str, progress: Callable[[str], None]) -> Manifest | None:
    """Return the manifest in `folder` if it is whole and has this digest; report damage, refuse others' folders."""
    ours = ShardFolder(folder).manifest.is_file() and any(folder.glob("train-*.arrow"))
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder}: exists and holds no shards; choose an empty or new folder for data.shards")
    if not ours:
        return None
    try:
        manifest = ShardSet.open(folder).manifest
        if manifest.corpus_digest != digest:
            return None
        tokenizer = tokenizers.load_shard_tokenizer(ShardFolder(folder).tokenizer)
    except NewerError:
        raise
    except SettingsError as error:
        progress(f"prepare: the shards are made anew; {error}")
        return None
    return manifest if manifest.begin_token == tokenizers.begin_name(tokenizer) else None
