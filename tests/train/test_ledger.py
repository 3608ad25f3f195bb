"""The ledger tells each step that the weights have seen once, whatever was killed in between."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from e2ray.config.base import SettingsError
from e2ray.config.positions import PositionSettings
from e2ray.core.positions import draw
from e2ray.data.order import Corpus, Order, Reader, local_indices
from e2ray.train.ledger import Ledger, read_ledger, replayed, rows_of

WINDOW, ROWS, BATCH, SEED = 16, 50, 12, 3
ORDER = Order(SEED, (Corpus(0, ROWS, 8),), 3)
POSITIONS = PositionSettings.model_validate({"preset": "clex", "max_scale": 8})


def draws(step, indices):
    return draw(POSITIONS, seed=SEED, step=step, indices=indices, window=WINDOW, base_context_length=WINDOW)


def work(folder, *, num_workers, start, commits, stop):
    """Train from a checkpoint at `start` with so many workers, commit at some steps, and be killed before `stop`."""
    ledgers = [Ledger(folder, rank=rank, start_step=start) for rank in range(num_workers)]
    for step in range(start, stop):
        for rank, ledger in enumerate(ledgers):
            indices = local_indices(rank, num_workers, BATCH)
            (ids,) = Reader(ORDER, BATCH, rank, num_workers).row_ids(range(step, step + 1))
            ledger.add(step, indices, torch.from_numpy(ids), draws(step, indices))
        if step + 1 in commits:
            for ledger in ledgers:
                ledger.commit(step + 1)


def audit(folder, steps):
    """Compare a ledger with what every step was meant to be."""
    found = read_ledger(folder)
    assert found.num_rows == steps * BATCH
    for row in found.to_pylist():
        row_id = ORDER.at(np.array([row["step"] * BATCH + row["index"]]))[0]
        wanted = draws(row["step"], range(row["index"], row["index"] + 1))
        assert row["row"] == row_id and row["scale"] == float(wanted.scale[0])
        assert torch.equal(replayed(row, WINDOW), wanted.offsets[0])
    places = [(row["step"], row["index"]) for row in found.to_pylist()]
    assert places == [(step, index) for step in range(steps) for index in range(BATCH)]


def test_a_run_that_is_killed_again_and_again_with_other_worker_counts_has_every_row_once(tmp_path):
    work(tmp_path, num_workers=2, start=0, commits=(4, 8), stop=11)  # killed in its eleventh step
    audit(tmp_path, 8)
    work(tmp_path, num_workers=3, start=8, commits=(), stop=10)  # killed before a checkpoint
    audit(tmp_path, 8)
    work(tmp_path, num_workers=4, start=8, commits=(12, 16), stop=16)
    audit(tmp_path, 16)
    # the checkpoint at 16 was lost: it was killed between the ledger's commit and the checkpoint's
    work(tmp_path, num_workers=1, start=12, commits=(16, 20), stop=20)
    audit(tmp_path, 20)


def test_a_run_without_a_ledger_has_an_empty_one(tmp_path):
    assert read_ledger(tmp_path).num_rows == 0
    ledger = Ledger(tmp_path, rank=0, start_step=5)
    ledger.commit(5)
    assert not (tmp_path / "ledger").exists()


def test_files_that_are_not_the_ledgers_are_left_alone(tmp_path):
    (tmp_path / "ledger").mkdir()
    note = tmp_path / "ledger" / "note.arrow"
    note.write_bytes(b"mine")
    Ledger(tmp_path, rank=0, start_step=0)
    assert note.read_bytes() == b"mine"


KILLED_COMMIT = """
import os, signal, sys
from pathlib import Path
from e2ray import files
from e2ray.train.ledger import Ledger
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
ledger = Ledger(Path(sys.argv[1]), rank=0, start_step=0)
ledger.commit(4)
"""


def test_what_a_killed_commit_left_is_no_part_of_the_ledger(tmp_path):
    work(tmp_path, num_workers=1, start=0, commits=[2], stop=2)
    done = subprocess.run([sys.executable, "-c", KILLED_COMMIT, str(tmp_path)], timeout=120)
    assert done.returncode == -9
    left = list((tmp_path / "ledger").glob(".tmp-*"))
    assert left and not set(left) & set((tmp_path / "ledger").glob("steps-*"))
    assert read_ledger(tmp_path).num_rows == 0  # step 0 was begun anew before the kill
    work(tmp_path, num_workers=1, start=0, commits=[4], stop=4)
    assert not list((tmp_path / "ledger").glob(".tmp-*"))
    audit(tmp_path, 4)


@pytest.mark.parametrize("preset", ["e2llm", "pose", "randpos", "cream", "endprompt", "native"])
def test_shifts_are_told_exactly(tmp_path, preset):
    positions = PositionSettings.model_validate({"preset": preset, "max_scale": 8})
    drawn = draw(positions, seed=1, step=0, indices=range(6), window=128, base_context_length=128)
    ledger = Ledger(tmp_path, rank=0, start_step=0)
    ledger.add(0, range(6), torch.arange(6), drawn)
    ledger.commit(1)
    for place, row in enumerate(read_ledger(tmp_path).to_pylist()):
        assert torch.equal(replayed(row, 128), drawn.offsets[place])


def test_rows_of_a_batch_tell_their_draws_as_the_ledger_does():
    drawn = draws(4, range(ROWS))
    nll = torch.arange(ROWS, dtype=torch.float32)
    nll[3], nll[5] = torch.nan, torch.inf
    found = rows_of(torch.arange(ROWS) + 100, drawn, nll)
    assert [row.row for row in found] == list(range(100, 100 + ROWS))
    assert [row.loss for row in found] == [None if n in (3, 5) else n for n in range(ROWS)]
    for place, row in enumerate(json.loads(json.dumps([row.plain() for row in found], allow_nan=False))):
        assert row["scale"] == float(drawn.scale[place])
        assert torch.equal(replayed(row, WINDOW), drawn.offsets[place])


def test_every_flipped_bit_of_the_ledger_is_named(tmp_path):
    work(tmp_path, num_workers=2, start=0, commits=(2, 4), stop=4)
    path = sorted((tmp_path / "ledger").iterdir())[1]
    content = path.read_bytes()
    for place in random.Random(0).sample(range(8 * len(content)), 300):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(
            SettingsError, match=rf"{path.name}: is damaged, its name tells another digest; put it back"
        ):
            read_ledger(tmp_path)
    path.write_bytes(content)
    path.rename(path.with_name(path.name[: path.name.rindex("-")] + ".arrow"))  # as an earlier version named it
    audit(tmp_path, 4)
