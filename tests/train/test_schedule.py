import itertools
import math

import pytest

from e2ray.config.train import TrainSettings
from e2ray.train.schedule import learning_rate


def settings(**changes):
    return TrainSettings(**({"steps": 100, "lr": 1e-3, "warmup_steps": 10, "final_lr_share": 0.1} | changes))


def test_warm_up_is_linear_and_reaches_the_peak():
    rates = [learning_rate(settings(), step) for step in range(10)]
    assert rates == pytest.approx([1e-4 * (step + 1) for step in range(10)])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_starts_at_the_peak_and_falls_to_the_final_share(schedule):
    rates = [learning_rate(settings(schedule=schedule), step) for step in range(10, 101)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-4)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


def test_halfway_linear_and_cosine_agree_and_a_quarter_in_they_differ_by_the_closed_form():
    linear, cosine = settings(schedule="linear"), settings(schedule="cosine")
    assert learning_rate(linear, 55) == pytest.approx(learning_rate(cosine, 55))
    quarter = (1 + math.cos(math.pi / 4)) / 2
    assert learning_rate(settings(schedule="cosine", warmup_steps=0), 25) == pytest.approx(1e-3 * (0.1 + 0.9 * quarter))


def test_constant_stays_at_the_peak_whatever_the_final_share():
    assert {learning_rate(settings(schedule="constant"), step) for step in range(10, 100)} == {1e-3}
