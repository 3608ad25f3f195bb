"""Draws against closed forms, against an independent reading of the papers, and their invariants."""

import itertools
import math
from collections import Counter
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2ray.config.methods import PRESETS
from e2ray.config.positions import PositionSettings
from e2ray.core.positions import Draw, draw, positions, room

NO_JUMPS = {"kind": "none"}
MANY = 4000


def make(scale, placement=NO_JUMPS, **rest):
    return PositionSettings.model_validate({"scale": scale, "placement": placement, **rest})


def rows(drawn_from, *, num=MANY, window=8, length=8, seed=0, step=0):
    return draw(drawn_from, seed=seed, step=step, indices=range(num), window=window, base_context_length=length)


def assert_follows_cdf(samples, cdf):
    """Kolmogorov-Smirnov at p = 0.001."""
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    wanted = np.array([cdf(x) for x in ordered])
    count = len(ordered)
    gap = max((np.arange(1, count + 1) / count - wanted).max(), (wanted - np.arange(count) / count).max())
    assert gap * math.sqrt(count) < 1.95


def assert_follows_probabilities(outcomes, probabilities):
    """Chi-square at p = 0.001; no outcome may lie outside the table. Cells expected less than 5 times are pooled."""
    counted = Counter(outcomes)
    assert counted.keys() <= probabilities.keys()
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-9)
    total = sum(counted.values())
    cells = [(counted[cell], total * share) for cell, share in probabilities.items()]
    rare = [cell for cell in cells if cell[1] < 5]
    cells = [cell for cell in cells if cell[1] >= 5]
    if sum(expected for _, expected in rare) >= 5:
        cells.append((sum(found for found, _ in rare), sum(expected for _, expected in rare)))
    statistic = sum((found - expected) ** 2 / expected for found, expected in cells)
    freedom = max(len(cells) - 1, 1)
    spread = 2 / (9 * freedom)
    assert statistic < freedom * (1 - spread + 3.09 * math.sqrt(spread)) ** 3  # Wilson-Hilferty


def equally(cells):
    cells = list(cells)
    return dict.fromkeys(cells, 1 / len(cells))


# Scales


@pytest.mark.parametrize(
    ("scale", "cdf"),
    [
        ({"kind": "uniform", "max_scale": 9.0}, lambda g: (g - 1) / 8),
        ({"kind": "log_uniform", "max_scale": 9.0}, lambda g: math.log(g) / math.log(9)),
        ({"kind": "power", "max_scale": 9.0, "exponent": -1.0}, lambda g: math.log(g) / math.log(9)),
        ({"kind": "power", "max_scale": 9.0, "exponent": 0.0}, lambda g: (g - 1) / 8),
        ({"kind": "power", "max_scale": 9.0, "exponent": 2.0}, lambda g: (g**3 - 1) / (9**3 - 1)),
        ({"kind": "power", "max_scale": 9.0, "exponent": -3.0}, lambda g: (1 - g**-2) / (1 - 9**-2)),
        ({"kind": "beta", "max_scale": 9.0, "a": 3.0, "b": 1.0}, lambda g: ((g - 1) / 8) ** 3),
        ({"kind": "beta", "max_scale": 9.0, "a": 1.0, "b": 2.0}, lambda g: 1 - (1 - (g - 1) / 8) ** 2),
    ],
)
def test_continuous_scales_follow_their_distribution(scale, cdf):
    drawn = rows(make(scale)).scale
    assert drawn.dtype == torch.float32
    assert drawn.min() >= 1
    assert drawn.max() <= 9
    assert_follows_cdf(drawn.numpy(), cdf)


def test_power_meets_log_uniform_near_exponent_minus_one():
    exact = rows(make({"kind": "power", "max_scale": 20.0, "exponent": -1.0}), num=200).scale
    near = rows(make({"kind": "power", "max_scale": 20.0, "exponent": -1.0 + 1e-9}), num=200).scale
    torch.testing.assert_close(near, exact, rtol=1e-6, atol=0)


def test_discrete_scales_follow_their_distribution():
    assert set(rows(make({"kind": "fixed", "max_scale": 6.5}), num=50).scale.tolist()) == {6.5}
    integers = rows(make({"kind": "uniform_int", "max_scale": 20.0})).scale.tolist()
    assert_follows_probabilities(integers, equally(map(float, range(1, 21))))
    weights = {1.0: 0.5, 4.0: 1.5, 16.0: 2.0}
    choice = {"kind": "choice", "choices": [{"scale": g, "weight": w} for g, w in weights.items()]}
    assert_follows_probabilities(rows(make(choice)).scale.tolist(), {g: w / 4 for g, w in weights.items()})


def test_native_share_is_the_probability_of_scale_one_on_top_of_the_distribution():
    drawn = rows(make({"kind": "fixed", "max_scale": 4.0, "native_share": 0.25})).scale.tolist()
    assert_follows_probabilities(drawn, {1.0: 0.25, 4.0: 0.75})
    drawn = rows(make({"kind": "uniform_int", "max_scale": 2.0, "native_share": 0.5})).scale.tolist()
    assert_follows_probabilities(drawn, {1.0: 0.75, 2.0: 0.25})
    assert set(rows(make({"kind": "uniform", "max_scale": 4.0, "native_share": 1.0})).scale.tolist()) == {1.0}


def test_a_native_row_has_no_room_where_the_window_is_the_base_window():
    placement = {"kind": "prefix", "jump": {"kind": "ends", "p": 1.0}}
    drawn = rows(make({"kind": "fixed", "max_scale": 4.0, "native_share": 0.5}, placement), num=100)
    assert torch.equal(drawn.offsets.max(dim=1).values > 0, drawn.scale > 1)


@pytest.mark.parametrize(
    ("scale", "length", "window", "wanted"),
    [(1.0, 8, 8, 0), (1.0, 8, 12, 0), (4.0, 4096, 4096, 12288), (1.5, 7, 8, 2), (1.25, 8, 2, 8)],
)
def test_room_is_what_the_scaled_context_leaves_beside_the_window(scale, length, window, wanted):
    assert room(scale, length, window) == wanted


# Jumps, seen behind a prefix: scale 3, L = R = 8 leave a room of 16


def jumps(jump):
    drawn = rows(make({"kind": "fixed", "max_scale": 3.0}, {"kind": "prefix", "prefix": 2, "jump": jump}))
    assert (drawn.offsets[:, :2] == 0).all()
    assert (drawn.offsets[:, 2:] == drawn.offsets[:, 2:3]).all()
    return drawn.offsets[:, 2].tolist()


def test_uniform_jumps_reach_both_ends_of_the_room_equally():
    assert_follows_probabilities(jumps({"kind": "uniform"}), equally(range(17)))


def test_beta_jumps_are_rounded_shares_of_the_room():
    wanted = {}
    for tokens in range(17):  # Beta(2, 1) has the distribution function x ** 2
        low, high = max(tokens - 0.5, 0) / 16, min(tokens + 0.5, 16) / 16
        wanted[tokens] = high**2 - low**2
    assert_follows_probabilities(jumps({"kind": "beta", "a": 2.0, "b": 1.0}), wanted)


def test_ends_jumps_take_the_whole_room_with_probability_p_and_else_are_uniform():
    wanted = {tokens: 0.7 / 17 for tokens in range(16)} | {16: 0.3 + 0.7 / 17}
    assert_follows_probabilities(jumps({"kind": "ends", "p": 0.3}), wanted)


# Placements


def test_random_breaks_are_distinct_uniform_places_with_sorted_jumps():
    far = make({"kind": "fixed", "max_scale": 2.0**20}, {"kind": "random_breaks", "num_breaks": 2})
    offsets = rows(far, window=6, length=8).offsets
    breaks = [tuple((np.diff(row) > 0).nonzero()[0] + 1) for row in offsets.numpy()]  # the room is 2^23: no ties
    assert_follows_probabilities(breaks, equally(itertools.combinations(range(1, 6), 2)))
    assert (offsets[:, 0] == 0).all()

    near = make({"kind": "fixed", "max_scale": 1.5}, {"kind": "random_breaks", "num_breaks": 2})
    offsets = rows(near, window=3, length=4).offsets  # both breaks used; two sorted jumps in {0, ..., 3}
    wanted = Counter(tuple(sorted(pair)) for pair in itertools.product(range(4), repeat=2))
    assert_follows_probabilities(map(tuple, offsets[:, 1:].tolist()), {key: n / 16 for key, n in wanted.items()})


@pytest.mark.parametrize("pins", [(False, False), (True, False), (False, True), (True, True)])
def test_sorted_random_takes_every_subset_equally_often(pins):
    placement = {"kind": "sorted_random", "pin_first": pins[0], "pin_last": pins[1]}
    offsets = rows(make({"kind": "fixed", "max_scale": 1.5}, placement), window=3, length=4).offsets  # room 3
    stands = [tuple(row) for row in (offsets + torch.arange(3)).tolist()]
    subsets = [
        subset
        for subset in itertools.combinations(range(6), 3)
        if (not pins[0] or subset[0] == 0) and (not pins[1] or subset[-1] == 5)
    ]
    assert_follows_probabilities(stands, equally(subsets))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 10.0])
def test_head_middle_tail_places_the_middle_by_a_truncated_gaussian(sigma):
    placement = {"kind": "head_middle_tail", "tokens": 3, "sigma": sigma}
    offsets = rows(make({"kind": "fixed", "max_scale": 3.0}, placement), window=10, length=10).offsets  # room 20
    assert (offsets[:, :3] == 0).all()
    assert (offsets[:, -3:] == 20).all()
    assert (offsets[:, 3:7] == offsets[:, 3:4]).all()
    normal = NormalDist(10, sigma * 20)
    mass = {o: normal.cdf(min(o + 0.5, 20)) - normal.cdf(max(o - 0.5, 0)) for o in range(21)}
    inside = normal.cdf(20) - normal.cdf(0)
    assert_follows_probabilities(offsets[:, 3].tolist(), {o: m / inside for o, m in mass.items()})


def test_a_narrow_gaussian_stays_in_the_middle():
    placement = {"kind": "head_middle_tail", "tokens": 1, "sigma": 1e-4}
    offsets = rows(make({"kind": "fixed", "max_scale": 3.0}, placement), num=500, window=10, length=10).offsets
    assert (offsets[:, 1:-1] == 10).all()


def test_terminal_moves_only_the_last_tokens_by_the_whole_room():
    drawn = rows(make({"kind": "fixed", "max_scale": 3.0}, {"kind": "terminal", "tokens": 3}), num=20)
    assert (drawn.offsets == torch.tensor([0] * 5 + [16] * 3)).all()
    uniform = {"kind": "terminal", "tokens": 3, "jump": {"kind": "uniform"}}
    drawn = rows(make({"kind": "fixed", "max_scale": 3.0}, uniform))
    assert_follows_probabilities(drawn.offsets[:, -1].tolist(), equally(range(17)))


def test_chunks_start_anywhere_in_their_own_stretch():
    offsets = rows(make({"kind": "fixed", "max_scale": 2.0}, {"kind": "chunks", "num_chunks": 2}), length=9).offsets
    stands = offsets + torch.arange(8)  # 18 places in two stretches of 9; chunks of 4 tokens
    starts = [tuple(row) for row in stands[:, ::4].tolist()]
    assert_follows_probabilities(starts, equally(itertools.product(range(6), range(9, 15))))
    assert (stands.reshape(-1, 2, 4).diff(dim=-1) == 1).all()


def test_no_placement_leaves_tokens_side_by_side():
    assert not rows(make({"kind": "uniform", "max_scale": 8.0}), num=50).offsets.any()


# The paper


@pytest.mark.parametrize(("length", "window"), [(8, 8), (8, 6), (8, 12)])
def test_e2llm_preset_agrees_with_an_independent_reading_of_the_paper(length, window):
    """g uniform on 1..g_max; t = 0 for tokens 0 to 3, one t in {0, ..., gL - R} for the rest; (m + t) / g."""
    g_max = 3
    joint = {}
    for g in range(1, g_max + 1):
        shifts = range(g * length - window + 1) if g * length >= window else range(1)
        for t in shifts:
            joint[g, t] = 1 / g_max / len(shifts)
    e2llm = PositionSettings.model_validate({"preset": "e2llm", "max_scale": float(g_max)})
    drawn = rows(e2llm, window=window, length=length)
    outcomes = []
    for g, row in zip(drawn.scale.tolist(), positions(drawn).tolist(), strict=True):
        t = round(row[-1] * g) - (window - 1)
        outcomes.append((int(g), t))
        wanted = [Fraction(m if m <= 3 else m + t) / Fraction(g) for m in range(window)]
        assert row == pytest.approx([float(place) for place in wanted], rel=2**-23)
    assert_follows_probabilities(outcomes, joint)


def test_pose_preset_agrees_with_an_independent_reading_of_the_paper():
    """Two chunks split anywhere; the second is moved by a uniform u in {0, ..., W - R}; positions over W / L."""
    pose = PositionSettings.model_validate({"preset": "pose", "max_scale": 4.0})
    drawn = rows(pose, window=4, length=4)
    assert (drawn.scale == 4).all()
    joint = Counter()
    for split, jump in itertools.product(range(1, 4), range(4 * 4 - 4 + 1)):
        joint[tuple([0] * split + [jump] * (4 - split))] += 1 / 39
    assert_follows_probabilities(map(tuple, drawn.offsets.tolist()), joint)


def test_clex_preset_shares_one_draw_per_step_and_pins_both_ends():
    clex = PositionSettings.model_validate({"preset": "clex", "max_scale": 8.0})
    for step in range(20):
        drawn = rows(clex, num=5, window=16, length=16, step=step)
        assert (drawn.offsets == drawn.offsets[0]).all()
        assert (drawn.scale == drawn.scale[0]).all()
        assert drawn.offsets[0, 0] == 0
        assert drawn.offsets[0, -1] == 16 * drawn.scale[0] - 16


# A pure function of (seed, step, index)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_row_is_the_same_in_every_split_of_the_batch(preset):
    chosen = PositionSettings.model_validate({"preset": preset, "max_scale": 8.0})
    args = {"seed": 3, "step": 7, "window": 96, "base_context_length": 96}
    whole = draw(chosen, indices=range(12), **args)
    for indices in ([5], range(0, 12, 2), range(6, 12), [11, 0, 3]):
        part = draw(chosen, indices=indices, **args)
        assert torch.equal(part.scale, whole.scale[list(indices)])
        assert torch.equal(part.offsets, whole.offsets[list(indices)])


def test_seed_step_and_index_each_change_the_draw():
    chosen = make({"kind": "uniform", "max_scale": 8.0}, {"kind": "sorted_random"})
    base = {"seed": 0, "step": 0, "indices": [0], "window": 32, "base_context_length": 32}
    seen = [draw(chosen, **base | change) for change in ({}, {"seed": 1}, {"step": 1}, {"indices": [1]})]
    assert len({float(one.scale[0]) for one in seen}) == 4
    per_step = make({"kind": "uniform", "max_scale": 8.0}, {"kind": "sorted_random"}, per="step")
    seen = [draw(per_step, **base | change) for change in ({}, {"seed": 1}, {"step": 1}, {"indices": [1]})]
    assert len({float(one.scale[0]) for one in seen}) == 3


def test_drawing_leaves_global_random_states_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    rows(make({"kind": "uniform", "max_scale": 8.0}, {"kind": "random_breaks"}), num=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_a_placement_that_does_not_fit_the_window_is_refused():
    with pytest.raises(ValueError, match=r"num_breaks of at most 3 \(window - 1\), got 4"):
        rows(make({"kind": "fixed", "max_scale": 2.0}, {"kind": "random_breaks", "num_breaks": 4}), window=4)


# Invariants

SCALES = st.one_of(
    st.builds(lambda g: {"kind": "fixed", "max_scale": g}, st.floats(1, 64)),
    st.builds(lambda g: {"kind": "uniform_int", "max_scale": float(g)}, st.integers(1, 64)),
    st.builds(
        lambda kind, g: {"kind": kind, "max_scale": g}, st.sampled_from(["uniform", "log_uniform"]), st.floats(1, 64)
    ),
    st.builds(lambda g, a: {"kind": "power", "max_scale": g, "exponent": a}, st.floats(1, 64), st.floats(-10, 10)),
    st.builds(lambda g: {"kind": "beta", "max_scale": g, "a": 0.3, "b": 0.2}, st.floats(1, 64)),
)
JUMPS = st.sampled_from(
    [{"kind": "uniform"}, {"kind": "beta", "a": 0.2, "b": 0.2}, {"kind": "ends", "p": 0.5}, {"kind": "ends", "p": 1.0}]
)


@st.composite
def cases(draw_value):
    window = draw_value(st.integers(2, 40))
    length = draw_value(st.integers(2, 60))
    kinds = {
        "none": {},
        "prefix": {"prefix": draw_value(st.integers(0, window - 1)), "jump": draw_value(JUMPS)},
        "random_breaks": {"num_breaks": draw_value(st.integers(1, window - 1)), "jump": draw_value(JUMPS)},
        "sorted_random": {"pin_first": draw_value(st.booleans()), "pin_last": draw_value(st.booleans())},
        "terminal": {"tokens": draw_value(st.integers(1, window - 1)), "jump": draw_value(JUMPS)},
        "chunks": {"num_chunks": draw_value(st.sampled_from([n for n in range(1, window + 1) if window % n == 0]))},
    }
    if window > 2:
        sigma = draw_value(st.floats(1e-6, 10))
        kinds["head_middle_tail"] = {"tokens": draw_value(st.integers(1, (window - 1) // 2)), "sigma": sigma}
    kind = draw_value(st.sampled_from(sorted(kinds)))
    chosen = make(
        draw_value(SCALES), {"kind": kind, **kinds[kind]}, per=draw_value(st.sampled_from(["sequence", "step"]))
    )
    return chosen, window, length, draw_value(st.integers(0, 2**32 - 1)), draw_value(st.integers(0, 2**40))


@given(cases())
@settings(max_examples=400, deadline=None, derandomize=True)
def test_every_draw_keeps_the_order_of_tokens_and_the_positions_the_base_model_knows(case):
    chosen, window, length, seed, step = case
    drawn = draw(chosen, seed=seed, step=step, indices=range(3), window=window, base_context_length=length)
    assert drawn.scale.shape == (3,)
    assert drawn.offsets.shape == (3, window)
    assert (drawn.scale.dtype, drawn.offsets.dtype) == (torch.float32, torch.int64)
    assert (drawn.scale >= 1).all()
    assert (drawn.offsets >= 0).all()
    assert (drawn.offsets.diff(dim=1) >= 0).all()
    for scale, offsets in zip(drawn.scale.tolist(), drawn.offsets, strict=True):
        assert offsets[-1] <= room(scale, length, window)
    if window <= length:
        assert positions(drawn).max() < length


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("max_scale", [1.0, 8.0])
def test_the_shortest_window_and_no_room_are_served(preset, max_scale):
    chosen = PositionSettings.model_validate({"preset": preset, "max_scale": max_scale})
    small = {"prefix": {"prefix": 1}, "terminal": {"tokens": 1}, "head_middle_tail": {"tokens": 1}}
    kind = chosen.placement.kind
    window = 3 if kind == "head_middle_tail" else 2
    chosen = make(chosen.scale.model_dump(), chosen.placement.model_dump() | small.get(kind, {}))
    drawn = rows(chosen, num=20, window=window, length=window)
    assert (drawn.offsets[:, -1] <= window * (drawn.scale - 1)).all()
    if max_scale == 1:
        assert not drawn.offsets.any()


def test_positions_are_exact_quotients_in_float32():
    drawn = Draw(torch.tensor([1.0, 4.0, 3.0]), torch.tensor([[0, 0, 0], [0, 5, 5], [0, 0, 131_069]]))
    third = torch.tensor([0.0, 1.0, 131_071.0]) / 3
    assert torch.equal(
        positions(drawn), torch.stack([torch.tensor([0.0, 1, 2]), torch.tensor([0.0, 1.5, 1.75]), third])
    )
    assert positions(drawn).dtype == torch.float32


def test_a_draw_can_be_sliced():
    drawn = rows(make({"kind": "uniform", "max_scale": 8.0}, {"kind": "sorted_random"}), num=6)
    part = drawn[2:5]
    assert torch.equal(part.scale, drawn.scale[2:5])
    assert torch.equal(part.offsets, drawn.offsets[2:5])


def test_no_rows_give_an_empty_draw():
    drawn = rows(make({"kind": "fixed", "max_scale": 2.0}), num=0)
    assert drawn.scale.shape == (0,)
    assert drawn.offsets.shape == (0, 8)
