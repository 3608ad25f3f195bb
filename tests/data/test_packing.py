"""Which documents share a row: nothing lost, nothing cut that fits, rows nearly full."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2ray.data.packing import Packer


def packed(lengths, *, window, waiting, pack="best_fit"):
    """Return the rows of documents of some lengths, as lists of (document, tokens)."""
    packer = Packer(window, pack=pack, waiting=waiting)
    ends = np.cumsum(lengths, dtype=np.int64)
    rows = []
    for number, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        rows += packer.add(number, np.arange(end - length, end, dtype=np.int32))
    return rows + list(packer.finish())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=60),
    window=st.integers(2, 16),
    waiting=st.integers(1, 30),
    pack=st.sampled_from(["document", "best_fit"]),
)
def test_every_token_is_in_one_row_and_what_fits_is_not_cut(lengths, window, waiting, pack):
    rows = packed(lengths, window=window, waiting=waiting, pack=pack)
    assert all(0 < sum(len(tokens) for _, tokens in row) <= window for row in rows)
    found = np.concatenate([np.empty(0, np.int32), *(tokens for row in rows for _, tokens in row)])
    np.testing.assert_array_equal(np.sort(found), np.arange(sum(lengths)))
    parts = {number: [] for number in range(len(lengths))}
    for row in rows:
        for document, tokens in row:
            parts[document].append(tokens)
    for number, length in enumerate(lengths):
        whole, rest = divmod(length, window)
        assert sorted(map(len, parts[number]), reverse=True) == [window] * whole + [rest] * (rest > 0)
        assert all(np.array_equal(part, np.arange(part[0], part[0] + len(part))) for part in parts[number])
    if pack == "document":
        assert all(len(row) == 1 for row in rows)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40), waiting=st.integers(1, 50))
def test_a_row_takes_the_longest_waiting_document_that_fits(lengths, waiting):
    window = 12
    rows = packed(lengths, window=window, waiting=waiting)
    wanted, at_hand = [], []

    def row():
        taken, room = [], window
        while fitting := [entry for entry in at_hand if entry[0] <= room]:
            longest = max(length for length, _ in fitting)
            entry = next(entry for entry in at_hand if entry[0] == longest)  # the one that waits longest
            at_hand.remove(entry)
            taken.append(entry[1])
            room -= longest
        return taken

    for number, length in enumerate(lengths):
        if length == window:
            wanted.append([number])
            continue
        at_hand.append((length, number))
        if len(at_hand) > waiting:
            wanted.append(row())
    while at_hand:
        wanted.append(row())
    assert [[document for document, _ in row] for row in rows] == wanted


@pytest.mark.parametrize(("waiting", "least"), [(1000, 0.995), (10**9, 0.999)])
def test_rows_of_documents_of_natural_lengths_are_nearly_full(waiting, least):
    lengths = np.random.default_rng(0).lognormal(6.0, 1.2, 20_000).astype(int) + 1
    rows = packed(lengths, window=4096, waiting=waiting)
    assert lengths.sum() / (len(rows) * 4096) >= least


def test_the_same_documents_give_the_same_rows():
    lengths = np.random.default_rng(1).integers(1, 300, 500)
    one, other = (packed(lengths, window=128, waiting=50) for _ in range(2))
    assert [[document for document, _ in row] for row in one] == [[document for document, _ in row] for row in other]


def test_a_long_row_costs_no_memory_of_its_square():
    tracemalloc.start()
    packer = Packer(2**20, pack="best_fit", waiting=10)
    for number, length in enumerate([2**19, 5, 2**18, 100] * 5):
        packer.add(number, np.zeros(length, np.int32)[:length])
    rows = list(packer.finish())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows and peak < 200 * 2**20  # the tokens themselves take 16 MiB
