"""Datasets of the Hugging Face library, from a folder that `save_to_disk` wrote or streamed from the hub.

A folder is read in ranges of rows, the hub in the files of a dataset; both in any process.
"""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from huggingface_hub import dataset_info

from e2ray.config.base import SettingsError
from e2ray.config.data import HuggingFaceSource
from e2ray.data.folder import short_line
from e2ray.optional import library

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

RANGE_BYTES = 32 * 2**20
BATCH_ROWS = 256
TEXTS = ("string", "large_string", "string_view")  # dictionaries of them are read as they are


def pieces(source: HuggingFaceSource) -> list[tuple[int, int, int]]:
    """Return (start, stop, bytes) of each piece of work: rows of a folder; file `start` of `stop` of the hub.

    Raises:
        SettingsError: If the dataset cannot be loaded, has no such split, or its column holds no text.
    """
    dataset = _open(source)
    if not source.is_folder:
        return [(number, dataset.num_shards, 0) for number in range(dataset.num_shards)]
    size = int(dataset.data.nbytes)
    count = max(-(-size // RANGE_BYTES), 1)
    rows = len(dataset)
    borders = [rows * number // count for number in range(count + 1)]
    return [(start, stop, size // count) for start, stop in pairwise(borders) if start < stop]


def read(source: HuggingFaceSource, start: int, stop: int) -> Iterator[tuple[str, object]]:
    """Yield (name, value) of each row of a piece; the caller refuses a value that is no text.

    Raises:
        SettingsError: If the dataset cannot be loaded.
    """
    dataset = _open(source).select_columns([source.column])
    title = f"{Path(source.path).name}/{source.split}"
    if source.is_folder:
        at_a_time = max(min(RANGE_BYTES * len(dataset) // max(int(dataset.data.nbytes), 1), BATCH_ROWS), 1)
        for offset, value in enumerate(_values(dataset.select(range(start, stop)), source.column, at_a_time)):
            yield f"{title}@{start + offset}", value
    else:
        for offset, value in enumerate(_values(dataset.shard(num_shards=stop, index=start), source.column, BATCH_ROWS)):
            yield f"{title}@{start}.{offset}", value


def _values(rows: "Dataset | IterableDataset", column: str, at_a_time: int) -> Iterator[object]:
    for batch in rows.iter(batch_size=at_a_time):
        yield from batch[column]


def identity(source: HuggingFaceSource) -> list[object]:
    """Return what distinguishes states of a dataset: its files, or the hub's commit.

    Raises:
        SettingsError: If there is no such folder, or the hub cannot be asked.
    """
    what: list[object] = [source.path, source.name, source.split]
    if source.is_folder:
        folder = Path(source.path).expanduser()
        if not folder.is_dir():
            raise SettingsError(f"data source {source.path}: not found, wanted a folder that save_to_disk wrote")
        stats = [(str(p.relative_to(folder)), p.stat()) for p in sorted(folder.rglob("*")) if p.is_file()]
        return [*what, [[name, status.st_size, status.st_mtime_ns] for name, status in stats]]
    try:
        return [*what, dataset_info(source.path, revision=source.revision).sha]
    except Exception as error:
        raise SettingsError(
            f"data source {source.path}: the hub cannot be asked for it ({short_line(error)}); check the id and the "
            "network, or name a folder that save_to_disk wrote (one that starts with /, ./, ../ or ~)"
        ) from None


def _open(source: HuggingFaceSource) -> "Dataset | IterableDataset":
    """Return the rows of a source's split."""
    try:
        datasets = library("datasets")
    except ImportError:
        raise SettingsError(
            f"data source {source.path}: needs the package datasets; pip install 'e2ray[data]'"
        ) from None
    datasets.disable_progress_bars()
    try:
        if source.is_folder:
            dataset = _saved(datasets, source)
        else:
            dataset = datasets.load_dataset(
                source.path, source.name, split=source.split, revision=source.revision, streaming=True
            )
    except SettingsError:
        raise
    except Exception as error:  # whatever a loader raises
        raise SettingsError(f"data source {source.path}: cannot be loaded ({short_line(error)})") from None
    columns = dataset.column_names  # None where the hub's files were not opened yet
    if columns is not None and source.column not in columns:
        raise SettingsError(
            f"data source {source.path}: has no column {source.column!r}, found {columns}; set the source's column"
        )
    feature = (dataset.features or {}).get(source.column)
    kind = getattr(feature, "dtype", None) or type(feature).__name__
    if feature is not None and kind not in TEXTS:
        raise SettingsError(
            f"data source {source.path}: column {source.column!r} holds {kind}, wanted text; set the source's column"
        )
    return dataset


def _saved(datasets: ModuleType, source: HuggingFaceSource) -> "Dataset":
    """Return the rows of a folder that `save_to_disk` wrote; its library reads none without rows."""
    folder = Path(source.path).expanduser()
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if source.split not in splits:
            raise SettingsError(f"data source {source.path}: has no split {source.split!r}, found {splits}")
        folder /= source.split
    state = folder / "state.json"
    if state.is_file() and json.loads(state.read_text(encoding="utf-8"))["_data_files"] == []:
        features = datasets.DatasetInfo.from_directory(str(folder)).features
        return datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    return datasets.load_from_disk(str(folder), keep_in_memory=False)
