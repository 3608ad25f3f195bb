import time
from itertools import pairwise

import numpy as np
import pytest

from e2ray.data.order import PARTS, ROUNDS, Corpus, Order, Reader, Scramble, local_indices, pattern, permutation


def order(*corpora, seed=3, group_shards=2):
    return Order(seed, corpora or (Corpus(0, 10, 10),), group_shards)


def first(made, count, start=0):
    return made.at(np.arange(start, start + count))


def keys(seed):
    return np.random.Philox(key=[seed, 0]).random_raw(ROUNDS)


@pytest.mark.parametrize(
    ("rows", "shard_rows", "group_shards"),
    [(10, 10, 1), (10, 3, 2), (100, 7, 3), (64, 8, 3), (65, 8, 3), (7, 1, 2), (5, 9, 4), (1, 1, 1), (96, 8, 4)],
)
def test_every_epoch_reads_every_row_once(rows, shard_rows, group_shards):
    made = order(Corpus(5, rows, shard_rows), group_shards=group_shards)
    for epoch in range(20):
        np.testing.assert_array_equal(np.sort(first(made, rows, epoch * rows)), np.arange(5, 5 + rows))


@pytest.mark.parametrize("corpora", [(Corpus(0, 65, 8),), (Corpus(0, 65, 8, 6000), Corpus(65, 9, 4, 4000))])
def test_a_row_follows_from_its_position_alone(corpora):
    made = order(*corpora)
    read = first(made, 300)
    places = np.random.default_rng(0).permutation(300)
    np.testing.assert_array_equal([made.at(np.array([place]))[0] for place in places], read[places])


def test_a_stretch_of_an_epoch_reads_from_one_group_of_shards():
    size, group = 8, 3
    made = order(Corpus(0, 10 * size - 5, size), group_shards=group)
    read = first(made, 10 * size - 5) // size
    borders = [0]
    while borders[-1] < len(read):
        seen = set()
        end = borders[-1]
        while end < len(read) and len(seen | {read[end]}) <= group:
            seen.add(read[end])
            end += 1
        borders.append(end)
    lengths = [stop - start for start, stop in pairwise(borders)]
    assert len(lengths) == 4 and sum(length % size == 0 for length in lengths) == 3  # one has the shard that is short
    groups = [frozenset(read[start:stop].tolist()) for start, stop in pairwise(borders)]
    assert sorted(shard for members in groups for shard in members) == list(range(10))


def test_a_corpus_no_larger_than_a_group_is_shuffled_as_a_whole():
    made = Order(5, (Corpus(0, 30, 8),), 4)
    np.testing.assert_array_equal(first(made, 60), np.concatenate([permutation(5, 0, 30), permutation(5, 1, 30)]))


def test_shards_take_turns_in_being_first():
    counts = np.zeros(6)
    for epoch in range(1200):
        counts[order(Corpus(0, 12, 2), group_shards=1).at(np.array([epoch * 12]))[0] // 2] += 1
    assert np.abs(counts - 200).max() < 65  # five standard deviations of a binomial draw are 64.5


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1000])
def test_a_scramble_is_a_permutation_whose_places_are_known(size):
    made = Scramble(size, keys(size))
    values = [made.at(place) for place in range(size)]
    assert sorted(values) == list(range(size))
    assert [made.index_of(value) for value in values] == list(range(size))


def test_a_scramble_puts_each_value_at_each_place_about_equally_often():
    values = np.array([[Scramble(5, keys(seed)).at(place) for place in range(5)] for seed in range(3000)])
    counts = np.array([np.bincount(values[:, place], minlength=5) for place in range(5)])
    assert np.abs(counts - 600).max() < 110  # five standard deviations of a binomial draw
    pairs = np.bincount(values[:, 0] * 5 + values[:, 1], minlength=25).reshape(5, 5)
    assert np.abs(pairs[~np.eye(5, dtype=bool)] - 150).max() < 60 and not pairs.diagonal().any()


@pytest.mark.parametrize(
    "parts", [(PARTS,), (6000, 4000), (1, 9999), (3333, 3333, 3334), (1, 1, 1, 9997), (100, 2500, 7400), (0, PARTS)]
)
def test_each_corpus_has_its_share_of_any_first_rows_to_less_than_one_row(parts):
    owners, before = pattern(parts)
    for number, count in enumerate(parts):
        mine = owners == number
        off = np.cumsum(mine) - np.arange(1, PARTS + 1) * count / PARTS
        assert np.abs(off).max() < 1
        np.testing.assert_array_equal(before[mine], np.arange(count))


def test_mixed_corpora_keep_their_shares_and_their_own_epochs():
    small, large = Corpus(0, 7, 4, 2500), Corpus(7, 100, 8, 7500)
    read = first(order(small, large), 4000)
    mine = read[read < 7]
    assert len(mine) == 1000
    for epoch in range(1000 // 7):
        np.testing.assert_array_equal(np.sort(mine[epoch * 7 : epoch * 7 + 7]), np.arange(7))
    others = read[read >= 7]
    for epoch in range(3000 // 100):
        np.testing.assert_array_equal(np.sort(others[epoch * 100 : epoch * 100 + 100]), np.arange(7, 107))
    for start in range(0, 3900, 97):
        assert abs((read[start : start + 100] < 7).sum() - 25) < 2


def test_corpora_of_the_same_size_have_their_own_order():
    read = first(order(Corpus(0, 50, 50, 5000), Corpus(50, 50, 50, 5000)), 100)
    assert (read[read < 50] != read[read >= 50] - 50).any()


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 6, 12])
def test_ranks_together_read_the_global_batch(num_workers):
    made = order(Corpus(0, 17, 5))
    parts = [Reader(made, 12, rank, num_workers).row_ids(range(5)) for rank in range(num_workers)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), first(made, 60).reshape(5, 12))
    assert {part.shape for part in parts} == {(5, 12 // num_workers)}


def test_steps_can_be_read_one_by_one():
    made = Reader(order(Corpus(0, 17, 5)), 6, 1, 2)
    np.testing.assert_array_equal(
        made.row_ids(range(2, 9)), np.concatenate([made.row_ids(range(step, step + 1)) for step in range(2, 9)])
    )


def test_the_batch_length_does_not_change_the_order():
    made = order(Corpus(0, 11, 4))
    short, long = Reader(made, 4, 0, 1).row_ids(range(15)), Reader(made, 12, 0, 1).row_ids(range(5))
    np.testing.assert_array_equal(short.reshape(-1), long.reshape(-1))


def test_epochs_seeds_corpora_and_groups_have_their_own_order():
    wanted = [(seed, epoch, c, g) for seed in (0, 2**32 - 1) for epoch in (0, 1) for c in (0, 1) for g in (0, 1)]
    orders = {tuple(permutation(seed, epoch, 50, c, g).tolist()) for seed, epoch, c, g in wanted}
    assert len(orders) == len(wanted)


def test_an_epoch_is_the_sort_of_philox_outputs():
    outputs = np.random.Generator(np.random.Philox(key=[5, 2])).bit_generator.random_raw(6)
    assert permutation(5, 2, 6).tolist() == sorted(range(6), key=lambda row: outputs[row])


def test_each_place_gets_each_row_about_equally_often():
    places = np.array([permutation(0, epoch, 4) for epoch in range(4000)])
    counts = np.array([np.bincount(places[:, place], minlength=4) for place in range(4)])
    assert np.abs(counts - 1000).max() < 150  # five standard deviations of a binomial draw are 137


def test_what_others_share_cannot_be_written_to():
    for array in (permutation(0, 0, 5), *pattern((4000, 6000))):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_the_end_of_a_huge_corpus_is_found_without_its_beginning():
    rows = 10**12  # an order of all rows or of all shards would not fit into memory
    made = Order(1, (Corpus(0, rows, 8192),), 4)
    began = time.process_time()
    read = first(made, 8, start=7 * rows - 4)
    assert len(set(read.tolist())) == 8 and 0 <= read.min() and read.max() < rows
    assert time.process_time() - began < 30


def test_impossible_places_are_refused():
    with pytest.raises(ValueError, match="at least 0, got -1"):
        order().at(np.array([3, -1]))
    with pytest.raises(ValueError, match="multiple of num_workers"):
        local_indices(0, 3, 4)
    with pytest.raises(ValueError, match="rank must lie in"):
        local_indices(2, 2, 4)
    with pytest.raises(ValueError, match="multiple of num_workers"):
        Reader(order(), 4, 0, 3).row_ids(range(2))
