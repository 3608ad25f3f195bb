"""Coverage against closed forms and against a plain count of all pairs of the run's own draws."""

import dataclasses
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2ray.config.methods import PRESETS
from e2ray.config.positions import PositionSettings
from e2ray.core import coverage as coverage_module
from e2ray.core.coverage import SEEN_PAIRS_PER_ROW, measure, pairs_below, percent, text_below
from e2ray.core.positions import draw

L = 32


def preset(name, max_scale=16, **rest):
    scale = {} if name == "native" else {"max_scale": max_scale}
    tokens = {"cream": "head_middle_tail", "endprompt": "terminal"}  # 32 tokens, their own, do not fit a tiny window
    placement = {"placement": {"kind": tokens[name], "tokens": 4}} if name in tokens else {}
    return PositionSettings.model_validate({"preset": name, **scale, **placement, **rest})


def make(scale, placement, **rest):
    return PositionSettings.model_validate({"scale": scale, "placement": placement, **rest})


def found(positions, *, window=L, length=L, scales=(1, 2, 4, 8, 16), steps=50, batch=4, seed=0):
    return measure(
        positions,
        window=window,
        base_context_length=length,
        scales=tuple(map(float, scales)),
        steps=steps,
        batch_sequences=batch,
        seed=seed,
    )


def total(window):
    return window * (window - 1) / 2


def counted(positions, *, window, length, scales, steps, batch, seed, leading):
    """Count every pair with exact fractions: (pairs, ordinary, beyond) per row, and rows, by scale."""
    bins = min(64, length // 2)
    pairs, ordinary = np.zeros((len(scales), bins)), np.zeros((len(scales), bins))
    beyond, rows = np.zeros(len(scales)), np.zeros(len(scales))
    for step in range(steps):
        drawn = draw(positions, seed=seed, step=step, indices=range(batch), window=window, base_context_length=length)
        for scale, offsets in zip(drawn.scale.tolist(), drawn.offsets.tolist(), strict=True):
            place = min(range(len(scales)), key=lambda i, g=scale: max(g / scales[i], scales[i] / g))
            rows[place] += 1
            for (i, earlier), (j, later) in combinations(enumerate(offsets), 2):
                part = Fraction(j - i + later - earlier) / Fraction(scale) * bins / length
                if part >= bins:
                    beyond[place] += 1
                else:
                    pairs[place, int(part)] += 1
                    ordinary[place, int(part)] += i >= leading
    num = steps * batch
    return pairs / num, ordinary / num, beyond / num, rows / num


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("window", [16, 48])
def test_counts_equal_a_plain_count_of_all_pairs_of_the_runs_draws(name, window):
    where = {"window": window, "length": L, "scales": (1, 2, 4, 8), "steps": 4, "batch": 3, "seed": 7}
    pairs, ordinary, beyond, rows = counted(preset(name, 8), **where, leading=4)
    measured = found(preset(name, 8), **where)
    np.testing.assert_allclose(measured.pairs, pairs, rtol=1e-12)
    np.testing.assert_allclose(measured.pairs_ordinary, ordinary, rtol=1e-12)
    np.testing.assert_allclose(measured.beyond, beyond, rtol=1e-12)
    assert [row.rows for row in measured.scales] == pytest.approx(rows.tolist())
    assert measured.num_rows == measured.run_rows == 12


def test_scales_that_are_no_whole_numbers_are_counted_exactly_too():
    positions = make({"kind": "log_uniform", "max_scale": 8}, {"kind": "random_breaks", "num_breaks": 3})
    where = {"window": 16, "length": 24, "scales": (1, 3, 8), "steps": 6, "batch": 2, "seed": 3}
    pairs, ordinary, beyond, _ = counted(positions, **where, leading=4)
    measured = found(positions, **where)
    np.testing.assert_allclose(measured.pairs, pairs, rtol=1e-12)
    np.testing.assert_allclose(measured.pairs_ordinary, ordinary, rtol=1e-12)
    np.testing.assert_allclose(measured.beyond, beyond, rtol=1e-12)


@given(
    name=st.sampled_from(PRESETS),
    max_scale=st.integers(1, 40),
    window=st.integers(9, 70),
    length=st.integers(2, 70),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_no_pair_is_lost(name, max_scale, window, length, seed):
    measured = found(preset(name, max_scale), window=window, length=length, steps=2, batch=3, seed=seed)
    assert measured.pairs.sum() + measured.beyond.sum() == pytest.approx(total(window))
    assert (measured.pairs_ordinary <= measured.pairs).all() and (measured.pairs_ordinary >= 0).all()
    assert sum(row.rows for row in measured.scales) == pytest.approx(1)
    for row in measured.scales:
        assert 0 <= row.reach_ordinary <= row.reach <= 1
        assert -1e-12 <= row.overlap <= 1 + 1e-12
        assert row.farthest_ordinary <= row.farthest
        assert (row.near is None) == (row.neighbours is None) == (row.rows == 0)


def test_native_rows_show_what_text_at_the_base_window_shows():
    measured = found(preset("native"), scales=(1,))
    distances = np.arange(1, L)
    wanted, _ = np.histogram(distances, measured.edges, weights=L - distances)
    np.testing.assert_allclose(measured.pairs[0], wanted, rtol=1e-12)
    (row,) = measured.scales
    assert (row.reach, row.rows, row.neighbours, row.near, row.farthest) == (1, 1, 1, 1, L - 1)
    assert row.overlap == pytest.approx(1)
    assert row.farthest_ordinary == L - 5
    assert measured.beyond.tolist() == [0]


@pytest.mark.parametrize("scale", [2, 4, 8, 16])
def test_interpolation_on_short_rows_ends_exactly_at_r_over_g(scale):
    measured = found(preset("pi", scale), scales=(scale,))
    (row,) = measured.scales
    assert row.farthest == (L - 1) / scale
    assert row.reach == pytest.approx(1 / scale)
    np.testing.assert_array_equal(measured.pairs[0] > 0, measured.edges[:-1] < L / scale)
    assert row.near == 1
    shown, text = (
        np.histogram(np.arange(1, tokens) / scale, measured.edges, weights=tokens - np.arange(1, tokens))[0]
        / total(tokens)
        for tokens in (L, scale * L)
    )
    assert row.overlap == pytest.approx(np.minimum(shown, text).sum())
    assert row.near_text == pytest.approx(1 - total(scale * L - L + 1) / total(scale * L))


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_prefix_shift_shows_far_distances_only_from_the_prefix(scale):
    measured = found(make({"kind": "fixed", "max_scale": scale}, {"kind": "prefix", "prefix": 4}), scales=(scale,))
    (row,) = measured.scales
    assert measured.leading == 4
    assert row.farthest_ordinary == (L - 5) / scale
    assert row.reach == 1
    assert row.reach_ordinary == np.count_nonzero(measured.edges[:-1] <= (L - 5) / scale) / 16
    assert row.farthest > 0.9 * L
    longest = total(L - 4) / total(L)  # at least the pairs of ordinary tokens are near
    assert longest < row.near < 1


def test_a_longer_prefix_is_left_out_whole():
    positions = make({"kind": "fixed", "max_scale": 8}, {"kind": "prefix", "prefix": 12})
    measured = found(positions, scales=(8,))
    assert measured.leading == 12
    assert measured.scales[0].farthest_ordinary == (L - 13) / 8
    assert measured.pairs_ordinary.sum() == pytest.approx(total(L - 12))


@pytest.mark.parametrize("leading", [0, 1, 4, 7])
def test_a_window_within_the_leading_tokens_has_no_ordinary_pairs(leading):
    stands = np.array([0, 3, 4, 9])
    below = pairs_below(stands, np.array([0, 1, 2, 4, 100]), leading)
    assert below[0].tolist() == [0, 0, 1, 2, 6]
    assert below[1].tolist() == {0: [0, 0, 1, 2, 6], 1: [0, 0, 1, 1, 3]}.get(leading, [0] * 5)


def test_random_breaks_show_far_distances_between_ordinary_tokens():
    (row,) = found(preset("pose"), scales=(16,), steps=200).scales
    assert row.reach == row.reach_ordinary == 1
    assert row.farthest_ordinary > 0.95 * L
    e2llm = found(preset("e2llm"), scales=(1, 2, 4, 8, 16), steps=200)
    assert e2llm.scales[-1].reach > 0.95 > 0.2 > e2llm.scales[-1].reach_ordinary


def test_rows_torn_apart_look_like_text_and_keep_no_neighbours():
    (row,) = found(preset("randpos"), scales=(16,), steps=200).scales
    assert row.overlap > 0.97
    assert row.neighbours == pytest.approx((L - 1) * L / (16 * L) / (L - 1), abs=0.02)  # about R / (g * L)
    (pose,) = found(preset("pose"), scales=(16,), steps=200).scales
    assert pose.neighbours > 1 - 1.01 / (L - 1)
    assert pose.overlap < row.overlap


def test_a_scale_that_is_never_drawn_counts_as_unseen_and_lowers_the_number():
    measured = found(preset("pose"))
    assert [row.rows for row in measured.scales] == [0, 0, 0, 0, 1]
    assert [row.reach for row in measured.scales] == [0, 0, 0, 0, 1]
    assert measured.reach == measured.reach_ordinary == pytest.approx(0.2)
    assert measured.overlap == pytest.approx(measured.scales[-1].overlap / 5)
    assert measured.scales[0].near is None


def test_a_draw_belongs_to_the_nearest_served_scale_in_log():
    choices = [{"scale": scale, "weight": 1} for scale in (1.4, 1.5, 2.8, 2.9, 30.0)]
    measured = found(make({"kind": "choice", "choices": choices}, {"kind": "none"}), scales=(4, 1, 2, 2), steps=500)
    assert [row.scale for row in measured.scales] == [1, 2, 4]
    assert [row.rows for row in measured.scales] == pytest.approx([0.2, 0.4, 0.4], abs=0.03)
    assert [row.context_length for row in measured.scales] == [L, 2 * L, 4 * L]


def test_reach_asks_for_a_pair_in_a_hundred_rows_of_the_run():
    def share(native):
        scale = {"kind": "fixed", "max_scale": 4, "native_share": native}
        return found(make(scale, {"kind": "none"}), scales=(1, 4), steps=400, batch=5)

    rare = share(0.004)  # the last bin of a native row holds 3 pairs: 30 and 31 tokens apart
    assert 0 < rare.scales[0].rows < 0.01
    assert 0 < rare.pairs[0, -1] == rare.scales[0].rows * 3
    assert rare.scales[0].reach == np.count_nonzero(rare.pairs[0] >= SEEN_PAIRS_PER_ROW) / 16
    assert share(0.5).scales[0].reach == 1


def test_the_same_settings_give_the_same_coverage_and_another_seed_does_not():
    first, again, other = (found(preset("e2llm"), seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.pairs, again.pairs)
    assert first.scales == again.scales
    assert not np.array_equal(first.pairs, other.pairs)


def test_a_shared_draw_stands_for_all_rows_of_its_step():
    shared = found(preset("clex"), steps=30, batch=8)
    assert (shared.num_draws, shared.num_rows, shared.run_rows) == (30, 240, 240)
    assert shared.pairs.sum() == pytest.approx(total(L))
    alone = found(preset("clex"), steps=30, batch=1)
    np.testing.assert_array_equal(shared.pairs, alone.pairs)


def test_long_windows_are_measured_on_the_first_rows_of_the_run(monkeypatch):
    monkeypatch.setattr(coverage_module, "MOST_TOKENS", 10 * L)
    monkeypatch.setattr(coverage_module, "FEWEST_DRAWS", 7)
    few = found(preset("e2llm"), steps=1000, batch=4)
    assert (few.num_rows, few.num_draws, few.run_rows) == (10, 10, 4000)
    assert found(preset("e2llm"), window=16 * L, steps=1000, batch=4).num_rows == 7
    monkeypatch.undo()
    np.testing.assert_array_equal(few.pairs, _first_rows(preset("e2llm"), 10))


def _first_rows(positions, num):
    """Count the first rows of a run with batches of 4 by hand."""
    below = np.zeros((5, 17))
    for row in range(num):
        drawn = draw(positions, seed=0, step=row // 4, indices=[row % 4], window=L, base_context_length=L)
        scale, stands = drawn.scale.item(), drawn.offsets[0].numpy() + np.arange(L)
        apart = np.abs(stands[:, None] - stands)[np.triu_indices(L, 1)] / scale
        below[np.abs(np.arange(5) - np.log2(scale)).argmin()] += [
            (apart < edge).sum() for edge in np.linspace(0, L, 17)
        ]
    return np.diff(below, axis=1) / num


def test_pieces_of_a_window_add_up(monkeypatch):
    stands = np.cumsum(np.random.default_rng(1).integers(1, 9, 50))
    limits = np.arange(0, 300, 7)
    whole = pairs_below(stands, limits, 4)
    monkeypatch.setattr(coverage_module, "PIECE", 7)
    np.testing.assert_array_equal(pairs_below(stands, limits, 4), whole)


@pytest.mark.parametrize("length", [2, 3, 10, 64])
def test_text_has_w_minus_k_pairs_k_tokens_apart(length):
    limits = np.arange(0, length + 3)
    distances = [later - earlier for earlier, later in combinations(range(length), 2)]
    wanted = [sum(distance < limit for distance in distances) / len(distances) for limit in limits]
    np.testing.assert_allclose(text_below(length, limits), wanted, rtol=1e-12)


def test_the_headline_names_scales_and_both_numbers():
    assert found(preset("e2llm"), scales=(1, 16)).headline.startswith(
        "On average at the scales 1 and 16 the draws show "
    )
    text = found(preset("native"), scales=(1,)).headline
    assert text == (
        "On average at scale 1 the draws show 100 % of the distances below L = 32 tokens, "
        "and 88 % between ordinary tokens."
    )


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (0.0001, "under 1 %"), (0.5, "50 %"), (0.999, "99 %"), (1 - 1e-14, "100 %"), (1.0, "100 %")],
)
def test_only_all_is_shown_as_all_and_only_nothing_as_nothing(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 1}, "window must be at least 2, got 1"),
        ({"length": 1}, "base_context_length must be at least 2, got 1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch": 0}, "batch_sequences must be at least 1, got 0"),
        ({"scales": ()}, "scales must be one or more numbers of at least 1, got"),
        ({"scales": (0.5, 2)}, "scales must be one or more numbers of at least 1, got"),
        ({"window": 4}, "prefix needs prefix below the window"),
    ],
)
def test_numbers_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        found(preset("e2llm"), **change)


def test_a_coverage_is_plain_data():
    measured = found(preset("e2llm"), scales=(1, 2))
    for row in measured.scales:
        for value in dataclasses.asdict(row).values():
            assert type(value) in (int, float)
