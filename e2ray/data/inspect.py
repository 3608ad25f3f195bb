"""A folder of shards for people: what is in it, and whether it is as `prepare` wrote it."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2ray.config.base import SettingsError
from e2ray.data.folder import Folder
from e2ray.data.order import PARTS
from e2ray.data.shards import read_manifest
from e2ray.records.manifest import DocumentLengths, Manifest, ShardEntry

BAR = 40  # characters of the longest bar of a histogram


def verify(location: str | Path, *, show: Callable[[str], None]) -> None:
    """Compare every file of a folder of shards with its manifest; report each one that differs in one line.

    Args:
        location: Where `prepare` put the shards, or a URI of where they were copied to.
        show: Takes each line.

    Raises:
        SettingsError: If the manifest is missing or damaged, or any file is damaged, missing, swapped or extra.
    """
    folder = Folder(location)
    manifest = read_manifest(folder)
    entries = manifest.shards + manifest.validation
    sizes = folder.sizes()
    owners = {entry.sha256: entry.file for entry in entries}

    def problem(entry: ShardEntry) -> str | None:
        path, size = folder.name(entry.file), sizes.get(entry.file)
        if size is None:
            return f"{path}: missing shard"
        try:
            sha256 = folder.sha256(entry.file)
        except SettingsError as error:
            return str(error)
        if sha256 == entry.sha256:
            return None
        if sha256 in owners:
            return f"{path}: swapped, holds what {owners[sha256]} should hold"
        if size != entry.bytes:
            return f"{path}: damaged shard, {size} bytes, wanted {entry.bytes}"
        return f"{path}: damaged shard, its sha256 does not match"

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        damage = [line for line in pool.map(problem, entries) if line]
    known = {entry.file for entry in entries}
    damage += [
        f"{folder.name(name)}: extra shard that the manifest does not name"
        for name in sorted(sizes)
        if name.endswith(".arrow") and name not in known
    ]
    for line in damage:
        show(line)
    if damage:
        raise SettingsError(
            f"{folder.shown}: {len(damage)} of {len(entries)} files are not what prepare wrote; remove the folder and "
            "rerun prepare, or remove what is extra"
        )
    size = sum(entry.bytes for entry in entries)
    show(f"{folder.shown}: whole, {len(entries)} files of {size:,} bytes match their sha256")


def info(location: str | Path) -> list[str]:
    """Return lines on what a folder of shards holds; only the manifest is read.

    Raises:
        SettingsError: If the manifest is missing or damaged.
    """
    folder = Folder(location)
    manifest = read_manifest(folder)
    files_of = {"train": manifest.shards, "validation": manifest.validation}
    size = sum(entry.bytes for entries in files_of.values() for entry in entries)
    full = manifest.tokens / (manifest.rows * manifest.window)
    lines = [
        f"{folder.shown}: {size:,} bytes, schema version {Manifest.schema_version}, shards "
        f"{manifest.corpus_digest[:16] or 'without a digest of their corpus'}",
        f"rows        {manifest.rows:,} of {manifest.window:,} tokens in {len(files_of['train'])} files; "
        f"{manifest.dropped_tokens:,} tokens at the end filled no row",
        f"packing     {manifest.pack}" + (f", rows {full:.4%} full" if manifest.pack != "concat" else ""),
        f"tokenizer   {manifest.tokenizer_hash[:16]}, {manifest.vocab_size:,} tokens",
    ]
    lines += _mixture(manifest)
    for kind in files_of:
        lines += _documents(kind, manifest.documents.get(kind))
    if manifest.num_short:
        lines.append(f"left out    {manifest.num_short:,} documents with fewer tokens than min_tokens")
    if manifest.num_long:
        lines.append(f"left out    {manifest.num_long:,} documents with more tokens than their source's max_tokens")
    if manifest.num_repeated:
        lines.append(f"left out    {manifest.num_repeated:,} documents that nearly repeat an earlier one")
    if manifest.num_skipped:
        lines += [f"skipped     {manifest.num_skipped:,} documents, for example:"]
        lines += [f"  {reason}" for reason in manifest.skipped[:3]]
    return lines


def _mixture(manifest: Manifest) -> list[str]:
    """Return one line for each corpus of a mixture: its share of a run, and what it holds."""
    corpora = manifest.corpora or ()
    drawn = [corpus.parts * corpus.tokens / corpus.rows for corpus in corpora]
    return [
        f"source {number:<5}{tokens / sum(drawn):.2%} of a run's tokens, {corpus.parts / PARTS:.2%} of its rows; "
        f"has {corpus.rows:,} rows, {corpus.tokens:,} tokens"
        for number, (corpus, tokens) in enumerate(zip(corpora, drawn, strict=True))
    ]


def _documents(kind: str, facts: DocumentLengths | None) -> list[str]:
    """Return the lines of one half of the corpus: counts, then how long its documents are."""
    if facts is None or not facts.count:
        return [f"{kind:<12}no documents"]
    lines = [
        f"{kind:<12}{facts.count:,} documents, {facts.tokens:,} tokens; {facts.min:,} to {facts.max:,} "
        f"tokens each, median {facts.median:,}"
    ]
    histogram = facts.histogram or ()
    most = max(count for _, count in histogram)
    width = max(len(f"{length:,}") for length, _ in histogram)
    for length, count in histogram:
        bar = "#" * max(1, round(BAR * count / most))
        lines.append(f"  up to {length:>{width},} tokens  {count:>9,}  {bar}")
    return lines
