import dataclasses

import numpy as np
import pytest

from e2ray.core.scales import served_at
from e2ray.evaluate.effective import effective_length, scale_table, sentences
from e2ray.evaluate.perplexity import Sums
from e2ray.records.retrieval import RetrievalRow

L = 128
TOKENS = np.array([100, 120, 80, 100])


def sums(window, scale, nll, *, model="tuned", spread=0.0):
    noise = spread * np.array([1.0, -1.0, 0.5, -0.5])
    return Sums(model, window, scale, 32, np.arange(4), TOKENS * (nll + noise), TOKENS)


def surface(**changes):
    nll = {(128, 1): 3.40, (256, 2): 3.395, (512, 4): 3.405, (1024, 8): 3.45, (2048, 16): 3.40} | changes.get("nll", {})
    return [sums(window, float(scale), value) for (window, scale), value in nll.items()]


def test_a_length_counts_only_if_every_shorter_one_does():
    found = effective_length(surface(), L)
    assert [row.reads for row in found.lengths] == [True, True, True, False, True]
    assert (found.claimed, found.effective) == (2048, 512)
    assert (found.low, found.high) == (512, 512)  # no document differs from another


def test_the_tolerance_decides():
    assert effective_length(surface(), L, tolerance=0.1).effective == 2048
    assert effective_length(surface(), L, tolerance=0.0).effective == 256


def rows(task="passkey", trials=10, **found):
    return [
        RetrievalRow(task=task, context_length=int(window[1:]), depth=None, scale=1.0, found=each, trials=trials)
        for window, each in found.items()
    ]


def test_retrieval_has_to_hold_where_it_was_asked():
    assert effective_length(surface(), L, retrieval=rows(w128=10, w256=9, w512=8)).effective == 256
    assert effective_length(surface(), L, retrieval=rows(w128=10, w256=5, w512=10)).effective == 128
    found = effective_length(surface(), L, retrieval=rows(w128=0))
    assert found.effective is None
    assert sentences(scale_table(surface(), L), found)[0] == (
        "Claimed 2,048 tokens, effective: not even the base window. Retrieval was measured at 128."
    )


def test_only_lengths_that_retrieval_covers_count():
    found = effective_length(surface(), L, retrieval=rows(w256=10))
    assert (found.effective, found.low, found.high, found.retrieval_lengths) == (256, 256, 256, (256,))
    assert [row.reads for row in found.lengths] == [False, True, False, False, False]
    assert effective_length(surface(), L, retrieval=rows(w2048=10)).effective is None  # NLL fails at 1,024
    assert effective_length(surface(), L, retrieval=rows(w512=10)).effective == 512
    nowhere = effective_length(surface(), L, retrieval=rows(w300=10))
    assert (nowhere.effective, nowhere.retrieval_lengths, nowhere.low) == (None, (), 0)
    assert sentences(scale_table(surface(), L), nowhere)[0] == (
        "Claimed 2,048 tokens, effective: none. Retrieval was asked and covers none of the windows, so no length "
        "counts."
    )
    failed = effective_length(surface(), L, retrieval=rows(w256=1))
    assert "effective: none. Retrieval was measured at 256." in sentences(scale_table(surface(), L), failed)[0]
    assert effective_length(surface(), L).retrieval_lengths is None


def test_each_task_weighs_the_same_however_many_depths_it_has():
    several = [*rows(w256=10) * 5, *rows("common_words", w256=6)]
    row = effective_length(surface(), L, retrieval=[*rows(w128=10), *several]).lengths[1]
    assert (row.context_length, row.retrieval, row.reads) == (256, pytest.approx(0.8), False)


def ended(window, scale, nll, end_nll):
    """Sums whose last tokens, 16 of each document, have an NLL of their own."""
    counts = np.full(4, 16)
    return dataclasses.replace(sums(window, scale, nll), end_nll=counts * end_nll, end_tokens=counts, stride=16)


def test_a_length_is_judged_by_the_last_tokens_of_its_windows():
    found = effective_length(
        [
            ended(128, 1.0, 3.4, 3.3),
            ended(256, 2.0, 3.4, 3.305),
            ended(512, 4.0, 3.4, 3.32),
            ended(512, 8.0, 3.5, 1.0),  # whole documents choose the scale
            ended(1024, 8.0, 3.9, 3.2),
        ],
        L,
    )
    assert [row.nll for row in found.lengths] == pytest.approx([3.3, 3.305, 3.32, 3.2])
    assert [row.nll_low for row in found.lengths] == pytest.approx([3.3, 3.305, 3.32, 3.2])
    assert [row.reads for row in found.lengths] == [True, True, False, True]
    assert (found.effective, found.criterion, found.last) == (256, "last_tokens", 16)
    line = sentences(scale_table(surface(), L), found)[0]
    assert "up to there NLL on the last 16 tokens of windows is at most 0.01 nats above the base window's" in line


def test_a_length_without_last_tokens_is_judged_by_whole_documents_and_says_so():
    found = effective_length([ended(128, 1.0, 3.4, 3.3), ended(256, 2.0, 3.4, 3.4), sums(512, 4.0, 3.405)], L)
    assert [row.criterion for row in found.lengths] == ["last_tokens", "last_tokens", "sliding"]
    assert found.lengths[2].rise == pytest.approx(0.005)  # 3.405 - 3.40, both of whole documents
    assert (found.criterion, found.effective) == ("mixed", 128)
    line = sentences(scale_table(surface(), L), found)[0]
    assert "last 16 tokens of windows (at 512: of sliding windows over whole documents)" in line
    without = effective_length([sums(128, 1.0, 3.4), ended(256, 2.0, 3.4, 3.9)], L)  # nothing to compare with at L
    assert (without.criterion, without.last, without.effective) == ("sliding", None, 256)
    assert "NLL of sliding windows over whole documents" in sentences(scale_table(surface(), L), without)[0]


def test_the_base_window_is_its_own_reference_whatever_scale_reads_it_best():
    found = effective_length(
        [ended(128, 1.0, 3.4, 3.3), ended(128, 2.0, 3.39, 3.5), ended(256, 2.0, 3.4, 3.3)],
        L,
    )
    assert [(row.scale, row.rise) for row in found.lengths] == [(1.0, 0.0), (2.0, 0.0)]
    assert found.effective == 256


def test_documents_that_disagree_widen_the_interval():
    cells = [sums(128, 1.0, 3.4), sums(256, 2.0, 3.4), sums(512, 4.0, 3.405, spread=0.1)]
    found = effective_length(cells, L)
    assert found.effective == 512
    assert (found.low, found.high) == (256, 512)
    row = found.lengths[-1]
    assert row.rise_low < row.rise < row.rise_high


def test_a_measurement_without_the_base_window_says_nothing():
    found = effective_length([sums(256, 2.0, 3.4)], L)
    assert (found.claimed, found.effective, found.lengths) == (256, None, ())
    assert sentences(scale_table([sums(256, 2.0, 3.4)], L), found) == []


def test_one_document_has_no_interval():
    cells = [Sums("tuned", w, w / 128, 32, np.arange(1), np.array([340.0]), np.array([100])) for w in (128, 256)]
    found = effective_length(cells, L)
    assert (found.effective, found.low, found.high) == (256, None, None)


def test_the_best_scale_stands_beside_the_papers():
    cells = [*surface(), sums(1024, 12.0, 3.42), sums(1024, 16.0, 3.44), sums(256, 1.0, 9.0, model="base")]
    table = scale_table(cells, L)
    assert table.base_context_length == L
    rows = {row.context_length: row for row in table.lengths}
    assert [*rows] == [128, 256, 512, 1024, 2048]
    assert (rows[1024].scale, rows[1024].paper_scale) == (12.0, 8.0)
    assert rows[1024].gain == pytest.approx(0.03)
    assert rows[1024].gain_low == pytest.approx(0.03)
    assert (rows[512].scale, rows[512].gain) == (4.0, 0.0)
    assert {window: row.served for window, row in rows.items()} == {128: 1, 256: 2, 512: 4, 1024: 12, 2048: 16}
    words = sentences(table, effective_length(cells, L))
    assert words[-1] == (
        "Beyond the spread of the documents, which also chose it, another scale than W/L reads better: 1,024 at 12."
    )


def test_a_papers_scale_that_was_not_measured_is_missing():
    (row,) = scale_table([sums(384, 4.0, 3.4)], L).lengths
    assert (row.paper_scale, row.paper_nll, row.gain, row.gain_low) == (3.0, None, None, None)


@pytest.mark.parametrize("scales", [(1.0, 4.0), (1.0,)])
def test_nothing_but_the_papers_scale_is_served_where_it_was_not_measured(scales):
    table = scale_table([sums(2048, scale, 3.4 - 0.1 * scale) for scale in scales], L)
    (row,) = table.lengths
    assert (row.scale, row.served) == (scales[-1], 16.0)
    assert served_at(table, 2000) == 16.0
    older = table.changed(lengths=[row.changed(served=scales[-1])])
    assert served_at(older, 2000) == 16.0
    assert "reads better" not in "".join(sentences(table, effective_length([sums(2048, 1.0, 3.3)], L)))


@pytest.mark.parametrize(
    ("tokens", "scale"), [(1, 1.0), (128, 1.0), (129, 2.0), (1000, 12.0), (2048, 16.0), (4096, 32.0)]
)
def test_a_request_is_served_as_the_next_longer_length(tokens, scale):
    table = scale_table([*surface(), sums(1024, 12.0, 3.42)], L)
    assert served_at(table, tokens) == scale


def test_the_sentence_tells_claimed_and_effective_side_by_side():
    cells = surface()
    line = sentences(scale_table(cells, L), effective_length(cells, L, retrieval=rows(w128=10, w512=10)))[0]
    assert line == (
        "Claimed 2,048 tokens, effective 512 (95 % interval 512 to 512): up to there NLL of sliding windows over whole "
        "documents is at most 0.01 nats above the base window's and retrieval is at least 85.6%, at the scale that the "
        "same documents chose. Retrieval was measured at 128, 512."
    )


def test_a_gain_within_the_spread_of_documents_changes_nothing_that_is_served():
    cells = [sums(128, 1.0, 3.4), sums(256, 2.0, 3.41), sums(256, 4.0, 3.40, spread=0.1)]
    row = scale_table(cells, L).lengths[1]
    assert (row.scale, row.served) == (4.0, 2.0)
    assert row.gain_low < 0 < row.gain < row.gain_high
