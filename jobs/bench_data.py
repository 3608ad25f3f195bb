"""Is the data path fast, exact and whole?

python jobs/bench_data.py --peers

Speed: tokens per second through Ray Data into the process that trains, checksums on, against `ray.data.read_parquet` on
the same tokens, alternately; the time to the first batch on ten times the data and behind a resume; documents per
second of the packing and its fill; tokenising on two cores against the tokenizer library alone. --peers compares with
mosaicml-streaming, datasets, litdata and torchdata, too, and wants an environment that has them beside this package.
Wholeness: a thousand bits flipped one by one over shards and manifest, and a run killed twenty times that goes on with
another number of workers each time, told by its ledger.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_data_whole import flips, kills, write_rows
from benchmarking import alternate, finish, goal, parser

from e2ray.data.packing import Packer
from e2ray.data.shards import ShardSet, local_batches

WINDOW, BATCH = 1024, 32
ROWS = 64 * 1024  # 67 million tokens
LENGTHS = {"mean": 6.5, "sigma": 1.2}  # of the lognormal document lengths: median 665 tokens
PEER_ROWS = 16 * 1024
MILLION = 2**20
COPIES = 16  # of the standard library, each document with a first line of its own: 200 MB of text to tokenise


def write_parquet(shards: Path, folder: Path) -> Path:
    """Write the same rows as Parquet files, one for each shard, and return their folder."""
    folder.mkdir()
    opened = ShardSet.open(shards)
    for number, first in enumerate(range(0, opened.rows, 8192)):
        tokens = opened.tokens(np.arange(first, min(first + 8192, opened.rows)))
        column = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), opened.window)
        pq.write_table(pa.table({"tokens": column}), folder / f"{number:05d}.parquet", row_group_size=1024)
    return folder


def streamed(folder: Path, *, start: int, steps: int, window: int = WINDOW) -> Iterator[Any]:
    """Yield the rows of some steps through Ray Data, as one worker of a run reads them."""
    from e2ray.data.stream import batches

    yield from batches(
        folder,
        seed=0,
        start_step=start,
        stop_step=start + steps,
        rank=0,
        num_workers=1,
        batch_sequences=BATCH,
        window=window,
        tokenizer_hash=None,
    )


def parquet_batches(folder: Path) -> Iterator[Any]:
    """Yield the tokens of Parquet files through Ray Data, in its own way."""
    import ray.data

    dataset = ray.data.read_parquet(str(folder))
    dataset.context.enable_progress_bars = False
    for batch in dataset.iter_batches(batch_size=BATCH, batch_format="numpy"):
        yield np.stack(batch["tokens"])


def drained(batches: Callable[[], Iterator[Any]]) -> Callable[[], None]:
    """Return a function that reads batches to their end."""

    def run() -> None:
        count = sum(1 for _ in batches())
        assert count, "no batch came"

    return run


UNFINISHED: list[tuple[Any, bool]] = []


def first_of(batches: Callable[[], Iterator[Any]], *, to_end: bool = True) -> Callable[[], None]:
    """Return a function that reads the first batch; `idle` reads the rest, or closes what is not read `to_end`."""

    def run() -> None:
        found = batches()
        next(found)
        UNFINISHED.append((found, to_end))

    return run


def idle() -> None:
    """Read to their ends what `first_of` has begun, and wait until no task reads any more.

    Closing a pipeline half-way takes Ray as long as it takes to end its tasks, and its next one the start of processes.
    """
    import ray

    while UNFINISHED:
        found, to_end = UNFINISHED.pop()
        if not to_end:
            found.close()
        for _ in found:
            pass
    total = ray.cluster_resources()["CPU"]
    while ray.available_resources().get("CPU", 0) < total:
        time.sleep(0.05)
    time.sleep(0.2)


def unverified(plain: Callable[[], Iterator[Any]]) -> Callable[[], Iterator[Any]]:
    """Return the same reader with its checksums left out, as no setting allows it."""
    from e2ray.data import shards

    def read() -> Iterator[Any]:
        with unittest.mock.patch.object(shards._Shard, "_verified", _taken):
            yield from plain()

    return read


def _taken(shard: Any, block: int) -> pa.Buffer:
    return shard.file.read(shard.blocks[block - 1][0] if block else 0, shard.blocks[block][0])


def speed(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare tokens per second with Parquet, and the first batch with itself on ten times the data."""
    shards = write_rows(folder / "shards", ROWS, WINDOW)
    parquet = write_parquet(shards, folder / "parquet")
    steps = ROWS // BATCH
    through = alternate(
        drained(lambda: streamed(shards, start=0, steps=steps)),
        drained(lambda: parquet_batches(parquet)),
        pairs=4,
        warmup=1,
    )

    def plain() -> Iterator[Any]:
        yield from local_batches(shards, seed=0, start_step=0, stop_step=steps, rank=0, num_workers=1,
                                 batch_sequences=BATCH, window=WINDOW, tokenizer_hash=None)  # fmt: skip

    verified = alternate(drained(plain), drained(unverified(plain)), pairs=20, warmup=1)
    tenth = write_rows(folder / "tenth", ROWS // 10, WINDOW)
    first = alternate(
        first_of(lambda: streamed(shards, start=0, steps=steps)),
        first_of(lambda: streamed(tenth, start=0, steps=steps // 10)),
        pairs=10,
        warmup=2,
        before=idle,
    )
    resumed = {
        share: alternate(
            first_of(lambda share=share: streamed(shards, start=int(steps * share), steps=BATCH)),
            first_of(lambda: streamed(shards, start=0, steps=BATCH)),
            pairs=10,
            warmup=2,
            before=idle,
        )
        for share in (0.01, 0.5, 0.99)
    }
    goals = [
        goal("tokens/s through Ray Data / ray.data.read_parquet", 1 / through["ratio_of_medians"], at_least=6.0),
        goal("plain reader with checksums / without, less 1", verified["ratio_of_medians"] - 1, at_most=0.1),
        goal("first batch, 10 times the data / once", first["ratio_of_medians"], at_most=1.1),
        *(
            goal(f"first batch of a resume at {share:.0%} / of a fresh start", found["ratio_of_medians"], at_most=1.2)
            for share, found in resumed.items()
        ),
    ]
    tokens = ROWS * WINDOW
    runs = {
        "tokens": tokens,
        "tokens_per_second": tokens / through["a_s_median"],
        "parquet_tokens_per_second": tokens / through["b_s_median"],
        "through": through,
        "verified": verified,
        "first_batch": first,
        "resumed": {str(share): found for share, found in resumed.items()},
    }
    return runs, goals


def packing() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure fill and documents per second of best_fit on lognormal lengths at a window of 4,096."""
    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(LENGTHS["mean"], LENGTHS["sigma"], 200_000)).astype(int), 1, None)
    tokens = np.zeros(int(lengths.max()), np.int32)
    documents = [tokens[:length] for length in lengths.tolist()]
    found, goals = {}, []
    for name, waiting, wanted in (("buffer of 1,000", 1000, 0.995), ("offline", len(lengths), 0.999)):
        rates, filled = [], 0.0
        for _ in range(5):
            packer = Packer(4096, pack="best_fit", waiting=waiting)
            rows = 0
            began = time.perf_counter()
            for number, document in enumerate(documents):
                rows += len(packer.add(number, document))
            rows += sum(1 for _ in packer.finish())
            rates.append(len(lengths) / (time.perf_counter() - began))
            filled = int(lengths.sum()) / (rows * 4096)
        found[name] = {"fill": filled, "documents_per_second": rates}
        goals += [
            goal(f"fill of best_fit, {name}", filled, at_least=wanted),
            goal(f"documents/s of best_fit, {name}", statistics.median(rates), at_least=250_000),
        ]
    return found, goals


def tokenising(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare `prepare` with the tokenizer library alone, on the same text and the same two cores."""
    from tokenizers import Tokenizer

    from e2ray.config.data import ByteLevelBpe, DataSettings, PretrainedTokenizer, PythonStdlibSource
    from e2ray.data.corpus import Document, list_items, read_item
    from e2ray.data.prepare import prepare

    text = [d.text for item in list_items([PythonStdlibSource()]) for d in read_item(item) if isinstance(d, Document)]
    corpus = folder / "corpus.jsonl"
    with corpus.open("w") as file:
        for copy in range(COPIES):
            file.writelines(json.dumps({"text": f"# {copy}\n{one}"}) + "\n" for one in text)
    settings = DataSettings.model_validate({"corpus": [{"kind": "jsonl", "paths": [str(corpus)]}], "window": WINDOW})
    prepare(settings, folder / "first", tokenizer_source=ByteLevelBpe(vocab_size=8192), progress=lambda line: None)
    source = PretrainedTokenizer(path=str(folder / "first" / "tokenizer"))
    texts = [json.loads(line)["text"] for line in corpus.open()]
    made = iter(range(1000))

    def ours() -> None:
        prepare(settings, folder / f"made-{next(made)}", tokenizer_source=source, progress=lambda line: None)

    library = Tokenizer.from_file(str(folder / "first" / "tokenizer" / "tokenizer.json"))

    def alone() -> None:
        for first in range(0, len(texts), 256):
            library.encode_batch_fast(texts[first : first + 256], add_special_tokens=False)

    found = alternate(ours, alone, pairs=2, warmup=0) | {"text_bytes": corpus.stat().st_size}
    ratio = 1 / found["ratio_of_medians"]
    return found, [goal("tokenising prepare / the tokenizer library alone", ratio, at_least=0.85)]


def peers(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare with other loaders, each measured alternately with ours."""
    import bench_data_peers as others

    shards = write_rows(folder / "of-peers", PEER_ROWS, WINDOW)
    rows = ShardSet.open(shards).tokens(np.arange(PEER_ROWS))
    steps = PEER_ROWS // BATCH

    def plain() -> Iterator[Any]:
        yield from local_batches(shards, seed=0, start_step=0, stop_step=steps, rank=0, num_workers=1,
                                 batch_sequences=BATCH, window=WINDOW, tokenizer_hash=None)  # fmt: skip

    def through_ray() -> Iterator[Any]:
        yield from streamed(shards, start=0, steps=steps)

    found, goals = {}, []
    for name, make, ours, wanted in (
        ("mosaicml-streaming", others.mosaic, through_ray, 1.5),
        ("datasets and torch's DataLoader", others.hugging_face, through_ray, 1.5),
        ("litdata, ours without Ray", others.litdata, plain, 1.0),
    ):
        theirs = make(rows, folder / name.split()[0], BATCH)
        found[name] = alternate(drained(ours), drained(theirs), pairs=4, warmup=1)
        goals.append(goal(f"tokens/s / {name}", 1 / found[name]["ratio_of_medians"], at_least=wanted))
    million = write_rows(folder / "million", MILLION, 64)
    np.save(folder / "million.npy", ShardSet.open(million).tokens(np.arange(MILLION)))
    half = MILLION // BATCH // 2
    theirs = first_of(others.stateful(folder / "million.npy", BATCH, 0.5), to_end=False)

    def resumed() -> Iterator[Any]:
        yield from local_batches(million, seed=0, start_step=half, stop_step=2 * half, rank=0, num_workers=1,
                                 batch_sequences=BATCH, window=64, tokenizer_hash=None)  # fmt: skip

    streamed_again = first_of(lambda: streamed(million, start=half, steps=half, window=64))
    found["resume"] = alternate(first_of(resumed), theirs, pairs=10, warmup=1, before=idle)
    found["resume_through_ray"] = alternate(streamed_again, theirs, pairs=10, warmup=1, before=idle)
    ratio = 1 / found["resume"]["ratio_of_medians"]
    goals.append(goal("first batch at half a million rows, torchdata / ours without Ray", ratio, at_least=20.0))
    return found, goals


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--peers", action="store_true", help="compare with other loaders, which must be installed")
    made.add_argument("--only", nargs="*", choices=("speed", "packing", "tokenising", "flips", "kills", "peers"))
    parsed = made.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    parts = parsed.only or ["flips", "kills", "packing", "speed", "tokenising", *(["peers"] if parsed.peers else [])]
    runs, goals = measure(parts, parsed)
    return finish("data", config={"parts": parts}, runs=runs, goals=goals, check=parsed.check)


def measure(parts: list[str], parsed: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure the named parts."""
    from e2ray.config.train import ClusterSettings
    from e2ray.stages.cluster import cluster

    runs: dict[str, Any] = {}
    goals: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone: dict[str, Callable[[], Any]] = {
            "flips": lambda: flips(folder),
            "kills": lambda: kills(folder),
            "packing": packing,
        }
        through_ray: dict[str, Callable[[], Any]] = {
            "speed": lambda: speed(folder),
            "tokenising": lambda: tokenising(folder),
            "peers": lambda: peers(folder),
        }
        for part in [part for part in parts if part in alone]:
            runs[part], more = alone[part]()
            goals += more
        if set(parts) & through_ray.keys():
            with cluster(ClusterSettings(object_store_mib=512)):
                for part in [part for part in parts if part in through_ray]:
                    runs[part], more = through_ray[part]()
                    goals += more
    return runs, goals


if __name__ == "__main__":
    sys.exit(main())
