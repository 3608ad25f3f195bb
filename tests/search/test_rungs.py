"""Which trials go on at a rung."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from e2ray.config.search import AshaStopping, HyperbandStopping
from e2ray.search.rungs import bracket_of, goes_on, verdict

values = st.lists(st.floats(0, 10), max_size=40)


@given(st.floats(0, 10), values, st.integers(2, 5))
def test_one_in_eta_goes_on_and_the_best_one_always(value, others, factor):
    better = sum(other < value for other in others)
    allowed = max((len(others) + 1) // factor, 1)
    assert goes_on(value, others, factor) == (better < allowed)


def test_of_many_that_arrive_in_good_order_one_in_eta_stays():
    reached, kept = [], 0
    for value in sorted(range(300), key=lambda v: (v * 7919) % 300):
        kept += goes_on(value, reached, 3)
        reached.append(value)
    assert 80 <= kept <= 130


def test_asha_has_one_bracket():
    assert {bracket_of(AshaStopping(), number, (1, 3, 9)) for number in range(50)} == {0}


def test_hyperband_deals_trials_to_brackets_as_published():
    dealt = Counter(bracket_of(HyperbandStopping(), number, (1, 3, 9)) for number in range(49))
    assert dealt == {0: 27, 1: 12, 2: 6, 3: 4}  # ceil(4 * 3^s / (s + 1)) for s = 3, 2, 1, 0


def test_a_bracket_passes_its_first_rungs_and_competes_with_its_own():
    rule, rungs = HyperbandStopping(), (1, 3, 9)
    late = next(number for number in range(49) if bracket_of(rule, number, rungs) == 1)
    others = {number: 0.0 for number in range(10) if number != late}
    assert not verdict(rule, rungs, 1, number=late, value=9.0, others=others)
    rivals = {n: 0.0 for n in range(49) if bracket_of(rule, n, rungs) == 1 and n != late}
    assert verdict(rule, rungs, 3, number=late, value=9.0, others=others | rivals)
    strangers = {n: 0.0 for n in range(49) if bracket_of(rule, n, rungs) != 1}
    assert not verdict(rule, rungs, 3, number=late, value=9.0, others=strangers)
    assert verdict(AshaStopping(), rungs, 1, number=late, value=9.0, others=others)
