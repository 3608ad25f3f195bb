import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from e2ray.evaluate.intervals import RESAMPLES, ratio_interval, ratio_stderr, resampled


def test_the_interval_holds_the_ratio_and_narrows_with_documents():
    rng = np.random.default_rng(0)
    widths = []
    for count in (10, 1000):
        counts = rng.integers(50, 200, count)
        sums = counts * rng.normal(3.0, 0.5, count)
        low, high = ratio_interval(sums, counts)
        assert low < sums.sum() / counts.sum() < high
        widths.append(high - low)
    assert widths[0] > 5 * widths[1]


def test_for_many_documents_it_is_the_normal_interval_of_the_standard_error():
    rng = np.random.default_rng(1)
    counts = rng.integers(50, 200, 2000)
    sums = counts * rng.normal(3.0, 0.5, 2000)
    low, high = ratio_interval(sums, counts)
    assert high - low == pytest.approx(2 * norm.ppf(0.975) * ratio_stderr(sums, counts), rel=0.1)


@pytest.mark.parametrize("documents", [2, 3, 40, 257])
def test_it_is_scipys_percentile_bootstrap_to_the_bit(documents):
    rng = np.random.default_rng(documents)
    counts = rng.integers(50, 200, documents)
    sums = counts * rng.normal(3.0, 0.5, documents)
    reference = bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert ratio_interval(sums, counts) == (reference.low, reference.high)


def test_it_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        counts = rng.integers(80, 120, 40)
        low, high = ratio_interval(counts * rng.normal(3.0, 0.5, 40), counts)
        covered += low < 3.0 < high
    assert 0.88 <= covered / 200 <= 0.99  # 95 % less what 40 documents and the percentile method miss


def test_the_same_documents_give_the_same_interval():
    sums, counts = np.array([1.0, 2.0, 4.0]), np.array([1, 1, 2])
    assert ratio_interval(sums, counts) == ratio_interval(sums, counts)


def test_one_document_has_none():
    assert ratio_interval(np.array([1.0]), np.array([1])) is None
    assert ratio_stderr(np.array([1.0]), np.array([1])) is None


def test_resamples_are_fixed_and_draw_every_document():
    draws = resampled(5)
    assert draws.shape == (RESAMPLES, 5)
    np.testing.assert_array_equal(draws, resampled(5))
    assert set(draws.ravel()) == set(range(5))
