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
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarking import alternate, finish, goal, parser

from e2ray.config.base import SettingsError
from e2ray.data.packing import Packer
from e2ray.data.rows import TrainRows, ValidationRows
from e2ray.data.shards import SCHEMA_VERSION, ShardSet, local_batches, manifest_text

WINDOW, BATCH = 1024, 32
ROWS = 64 * 1024  # 67 million tokens
KILLS, FLIPS = 20, 1000
LENGTHS = {"mean": 6.5, "sigma": 1.2}  # of the lognormal document lengths: median 665 tokens
PEER_ROWS = 16 * 1024
MILLION = 2**20


def write_rows(folder: Path, rows: int, window: int) -> Path:
    """Write random tokens as shards and return their folder."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    writer = TrainRows(folder, window, shard_rows=8192)
    for document, first in enumerate(range(0, rows, 256)):
        count = min(256, rows - first)
        writer.add(document, generator.integers(0, 32_000, count * window, dtype=np.int32))
    dropped = writer.finish()
    held_out = ValidationRows(folder, shard_rows=8192)
    held_out.finish()
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "tokenizer_hash": "0" * 64,
        "window": window,
        "pack": "concat",
        "rows": rows,
        "rows_per_batch": writer.rows_per_batch,
        "dropped_tokens": dropped,
        "shards": writer.writer.entries,
        "validation": [],
    }
    (folder / "manifest.json").write_text(manifest_text(manifest), encoding="utf-8")
    return folder


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


def first_of(batches: Callable[[], Iterator[Any]]) -> Callable[[], None]:
    """Return a function that reads the first batch and leaves the rest."""

    def run() -> None:
        found = batches()
        next(found)
        found.close()  # type: ignore[attr-defined]

    return run


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
    began = time.perf_counter()
    for path in sorted(shards.glob("*.arrow")):
        zlib.crc32(path.read_bytes())
    verifying = (time.perf_counter() - began) / through["a_s_median"]
    tenth = write_rows(folder / "tenth", ROWS // 10, WINDOW)
    first = alternate(
        first_of(lambda: streamed(shards, start=0, steps=steps)),
        first_of(lambda: streamed(tenth, start=0, steps=steps // 10)),
        pairs=10,
        warmup=2,
    )
    resumed = {
        share: alternate(
            first_of(lambda share=share: streamed(shards, start=int(steps * share), steps=BATCH)),
            first_of(lambda: streamed(shards, start=0, steps=BATCH)),
            pairs=10,
            warmup=2,
        )
        for share in (0.01, 0.5, 0.99)
    }
    goals = [
        goal("tokens/s through Ray Data / ray.data.read_parquet", 1 / through["ratio_of_medians"], at_least=6.0),
        goal("reading and summing up all bytes / streaming them through Ray Data", verifying, at_most=0.1),
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
        "verifying_share": verifying,
        "first_batch": first,
        "resumed": {str(share): found for share, found in resumed.items()},
    }
    return runs, goals


def packing() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure fill and documents per second of best_fit on lognormal lengths at a window of 4,096."""
    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(LENGTHS["mean"], LENGTHS["sigma"], 200_000)).astype(int), 1, None)
    tokens = np.zeros(int(lengths.max()), np.int32)
    found, goals = {}, []
    for name, waiting, wanted in (("buffer of 1,000", 1000, 0.995), ("offline", len(lengths), 0.999)):
        rates, filled = [], 0.0
        for _ in range(5):
            packer = Packer(4096, pack="best_fit", waiting=waiting)
            rows = 0
            began = time.perf_counter()
            for number, length in enumerate(lengths):
                rows += len(packer.add(number, tokens[:length]))
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
        for copy in range(4):
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

    found = alternate(ours, alone, pairs=4, warmup=1)
    ratio = 1 / found["ratio_of_medians"]
    return found, [goal("tokenising prepare / the tokenizer library alone", ratio, at_least=0.85)]


def flips(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Flip one bit after the other and read everything; a flip that nothing notices is counted."""
    shards = write_rows(folder / "small", 300, 64)
    files = [*sorted(shards.glob("*.arrow")), shards / "manifest.json"]
    sizes = [path.stat().st_size for path in files]
    generator = random.Random(0)
    unnoticed = []
    for _ in range(FLIPS):
        path = generator.choices(files, weights=sizes)[0]
        whole = path.read_bytes()
        place, bit = generator.randrange(len(whole)), generator.randrange(8)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            list(local_batches(shards, seed=0, start_step=0, stop_step=300 // 20, rank=0, num_workers=1,
                               batch_sequences=20, window=64, tokenizer_hash="0" * 64))  # fmt: skip
            unnoticed.append([path.name, place, bit])
        except SettingsError:
            pass
        path.write_bytes(whole)
    share = 1 - len(unnoticed) / FLIPS
    return {"flips": FLIPS, "unnoticed": unnoticed}, [goal("share of flipped bits noticed", share, at_least=1.0)]


def leg(folder: Path, shards: Path, num_workers: int, stop: int, every: int) -> None:
    """Be a run without a model: read, draw and note from the last checkpoint on, until `stop` or a kill."""
    from e2ray import files
    from e2ray.config.model import LlamaModel
    from e2ray.config.positions import PositionSettings
    from e2ray.config.train import TrainSettings
    from e2ray.train.ledger import Ledger
    from e2ray.train.worker import Task, drawn

    latest = folder / "latest.json"
    start = json.loads(latest.read_text()) if latest.exists() else 0
    task = Task(
        name="leg",
        folder=folder,
        shards=shards,
        tokenizer_hash="0" * 64,
        vocab_size=1,
        window=64,
        base_context_length=64,
        seed=1,
        model=LlamaModel(hidden_size=8, num_layers=1, num_heads=1, num_key_value_heads=1, base_context_length=64),
        positions=PositionSettings.model_validate({"preset": "clex", "max_scale": 8}),
        train=TrainSettings(steps=stop, batch_sequences=24, checkpoint_every=every, log_every=every, lr=1e-3),
        digest="",
    )
    ledgers = [Ledger(folder, rank=rank, start_step=start) for rank in range(num_workers)]
    readers = [
        drawn(
            local_batches(shards, seed=1, start_step=start, stop_step=stop, rank=rank, num_workers=num_workers,
                          batch_sequences=24, window=64, tokenizer_hash=None),
            task, rank=rank, num_workers=num_workers, start_step=start, ledger=ledgers[rank],
        )
        for rank in range(num_workers)
    ]  # fmt: skip
    for step in range(start + 1, stop + 1):
        for reader in readers:
            next(reader)
        if step % every == 0 or step == stop:
            for ledger in ledgers:
                ledger.commit(step)
            files.write_json(latest, step)
        print(step, flush=True)


def kills(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Kill a run at random points of an epoch, go on with another number of workers, and read its ledger."""
    from e2ray.train.ledger import read_ledger

    rows, steps, every = 24 * 400, 400, 10
    shards = write_rows(folder / "epoch", rows, 64)
    generator = random.Random(0)

    def start(run: Path, num_workers: int) -> subprocess.Popen[str]:
        what = ["--leg", str(run), str(shards), str(num_workers), str(steps), str(every)]
        return subprocess.Popen([sys.executable, __file__, *what], stdout=subprocess.PIPE, text=True)

    killed, points = folder / "killed", []
    killed.mkdir()
    while len(points) < KILLS:
        workers = generator.choice([1, 2, 3, 4, 6, 8])
        child = start(killed, workers)
        assert child.stdout is not None
        begun = int(child.stdout.readline())
        more = generator.randrange(2 * steps // KILLS)
        at = begun
        for _ in range(min(more, steps - begun - 1)):
            at = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.wait()
        points.append([at, workers])
    child = start(killed, 8)
    child.communicate()
    assert child.returncode == 0
    whole = folder / "whole"
    whole.mkdir()
    child = start(whole, 1)
    child.communicate()
    found, wanted = read_ledger(killed), read_ledger(whole)
    counts = np.bincount(found.column("row").to_numpy(), minlength=rows)
    columns = ("step", "index", "row", "scale", "places", "shifts")
    pairs = zip(found.select(columns).to_pylist(), wanted.select(columns).to_pylist(), strict=False)
    same = sum(one == other for one, other in pairs)
    missing, doubled = int((counts == 0).sum()), int((counts > 1).sum())
    runs = {"rows": rows, "kills": points, "missing": missing, "doubled": doubled, "equal_to_the_unbroken_run": same}
    return runs, [
        goal("rows missing after 20 kills", missing, at_most=0),
        goal("rows doubled after 20 kills", doubled, at_most=0),
        goal("rows and draws that differ from the unbroken run's", wanted.num_rows - same, at_most=0),
    ]


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
    found["resume"] = alternate(
        first_of(lambda: streamed(million, start=half, steps=half, window=64)),
        first_of(others.stateful(folder / "million.npy", BATCH, 0.5)),
        pairs=4,
        warmup=1,
    )
    ratio = 1 / found["resume"]["ratio_of_medians"]
    goals.append(goal("first batch at half a million rows, torchdata / ours", ratio, at_least=20.0))
    return found, goals


def main() -> int:
    if sys.argv[1:2] == ["--leg"]:
        run, shards, *counts = sys.argv[2:]
        leg(Path(run), Path(shards), *map(int, counts))
        return 0
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
    from e2ray.cluster import cluster
    from e2ray.config.train import ClusterSettings

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
