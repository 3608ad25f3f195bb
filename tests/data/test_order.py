import numpy as np
import pytest

from e2ray.data.order import Reader, local_indices, permutation, rows_of_step


def stream(seed, rows, batch, steps):
    return np.concatenate([rows_of_step(seed=seed, step=s, rows=rows, batch_sequences=batch) for s in range(steps)])


@pytest.mark.parametrize(("rows", "batch"), [(10, 4), (7, 7), (5, 12), (1, 3)])
def test_every_epoch_reads_every_row_once(rows, batch):
    read = stream(3, rows, batch, 20)
    for epoch in range(len(read) // rows):
        np.testing.assert_array_equal(np.sort(read[epoch * rows : (epoch + 1) * rows]), np.arange(rows))


def test_the_place_of_a_row_follows_from_its_number_alone():
    rows, batch, seed = 10, 4, 9
    read = stream(seed, rows, batch, 30)
    for n, row in enumerate(read):
        assert row == permutation(seed, n // rows, rows)[n % rows]


def test_the_batch_length_does_not_change_the_order():
    np.testing.assert_array_equal(stream(1, 11, 4, 15), stream(1, 11, 12, 5))


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 6, 12])
def test_ranks_together_read_the_global_batch(num_workers):
    for step in range(5):
        whole = rows_of_step(seed=2, step=step, rows=17, batch_sequences=12)
        parts = [Reader(2, 17, 12, rank, num_workers).row_ids(step) for rank in range(num_workers)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert {len(part) for part in parts} == {12 // num_workers}


def test_epochs_and_seeds_have_their_own_order():
    orders = [permutation(seed, epoch, 50).tolist() for seed in (0, 1, 2**32 - 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_an_epoch_is_the_sort_of_philox_outputs():
    keys = np.random.Generator(np.random.Philox(key=[5, 2])).bit_generator.random_raw(6)
    assert permutation(5, 2, 6).tolist() == sorted(range(6), key=lambda row: keys[row])


def test_each_place_gets_each_row_about_equally_often():
    places = np.array([permutation(0, epoch, 4) for epoch in range(4000)])
    counts = np.array([np.bincount(places[:, place], minlength=4) for place in range(4)])
    assert np.abs(counts - 1000).max() < 150  # five standard deviations of a binomial draw are 137


def test_a_permutation_that_others_share_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        permutation(0, 0, 5)[0] = 1


def test_a_far_step_is_known_without_the_ones_before():
    assert rows_of_step(seed=1, step=10**12, rows=100, batch_sequences=8).shape == (8,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "rows and batch_sequences must be at least 1"),
        ({"batch_sequences": 0}, "at least 1"),
        ({"step": -1}, "step at least 0"),
        ({"start": 3, "stop": 2}, r"must lie in \[0, 4\]"),
        ({"stop": 5}, r"must lie in \[0, 4\]"),
    ],
)
def test_impossible_ranges_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rows_of_step(**({"seed": 0, "step": 0, "rows": 8, "batch_sequences": 4} | arguments))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of num_workers"):
        local_indices(0, 3, 4)
    with pytest.raises(ValueError, match="rank must lie in"):
        local_indices(2, 2, 4)
