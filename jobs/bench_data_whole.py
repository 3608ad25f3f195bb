"""Is every row read, once, and none that was damaged? Part of bench_data.py.

A thousand bits flipped one by one over shards and manifest; and a run killed twenty times that goes on with another
number of workers each time, told by its ledger.
"""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from benchmarking import goal

from e2ray.config.base import SettingsError
from e2ray.data.rows import TrainRows, ValidationRows
from e2ray.data.shards import local_batches
from e2ray.records.folders import ShardFolder
from e2ray.records.manifest import Manifest

KILLS, FLIPS = 20, 1000


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
    manifest = Manifest(
        tokenizer_hash="0" * 64,
        window=window,
        rows=rows,
        rows_per_batch=writer.rows_per_batch,
        dropped_tokens=dropped,
        shards=tuple(writer.writer.entries),
        validation=(),
    )
    manifest.write(ShardFolder(folder).manifest)
    return folder


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
    from e2ray.train.task import Task
    from e2ray.train.worker import drawn

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
        rows_digest="",
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
        what = [str(run), str(shards), str(num_workers), str(steps), str(every)]
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


if __name__ == "__main__":
    run, shards, *counts = sys.argv[1:]
    leg(Path(run), Path(shards), *map(int, counts))
