import math

import pytest

from e2ray.evaluate.perplexity import Cell
from e2ray.evaluate.verdict import table, verdict
from e2ray.records.evaluation import Evaluation

L = 64


def cell(model, window, scale, nll, stderr=0.02):
    fields = (model, window, scale, nll, math.exp(nll), 4096, 8, 16, stderr)
    return Cell(**dict(zip(Cell.model_fields, fields, strict=False)))


def hand_made():
    """Two windows past L = 64: tuned beats both bases at W/L; at 256 scale 2 is better still."""
    return [
        cell("tuned", 64, 1.0, 3.50), cell("tuned", 64, 2.0, 3.55), cell("tuned", 64, 4.0, 3.60),
        cell("tuned", 128, 1.0, 4.00), cell("tuned", 128, 2.0, 3.40), cell("tuned", 128, 4.0, 3.45),
        cell("tuned", 256, 1.0, 4.50), cell("tuned", 256, 2.0, 3.30), cell("tuned", 256, 4.0, 3.37),
        cell("base", 64, 1.0, 3.45), cell("base", 64, 2.0, 3.80), cell("base", 64, 4.0, 4.20),
        cell("base", 128, 1.0, 4.20), cell("base", 128, 2.0, 3.70), cell("base", 128, 4.0, 4.30),
        cell("base", 256, 1.0, 5.00), cell("base", 256, 2.0, 4.40), cell("base", 256, 4.0, 4.60),
    ]  # fmt: skip


def test_each_window_is_compared_at_the_papers_scale_and_at_the_best():
    row = verdict(hand_made(), L).windows[2]
    assert (row.window, row.paper_scale) == (256, 4.0)
    assert (row.tuned, row.tuned_best, row.tuned_best_scale) == (3.37, 3.30, 2.0)
    assert (row.base_untouched, row.base_untrained) == (5.00, 4.60)
    assert (row.base_best, row.base_best_scale) == (4.40, 2.0)
    assert row.gain_over_untouched == pytest.approx(1.63)
    assert row.gain_over_untrained == pytest.approx(1.23)
    assert row.gain_over_base_best == pytest.approx(1.03)
    assert row.best_over_paper_scale == pytest.approx(0.07)


def test_a_model_below_both_bases_is_said_to_be():
    found = verdict(hand_made(), L)
    assert found.below_base_everywhere is True
    assert "every measured window from 128 to 256 tokens, by at least 0.300 nats" in found.sentences[0]
    assert "a window of 256 is read best at scale 2, 0.070 nats below scale 4" in found.sentences[1]


def test_a_single_window_above_a_base_is_named():
    cells = [c for c in hand_made() if (c.model, c.window, c.scale) != ("base", 128, 2.0)] + [
        cell("base", 128, 2.0, 3.39)
    ]
    found = verdict(cells, L)
    assert found.below_base_everywhere is False
    assert found.sentences[0].endswith("not below both bases everywhere: it is not at 128 tokens.")


def test_the_price_inside_the_base_window_is_told():
    found = verdict(hand_made(), L)
    assert found.short_cost.plain() == {"window": 64, "tuned": 3.50, "base": 3.45, "rise": pytest.approx(0.05)}
    assert "At the base window of 64 tokens, scale 1, tuning costs 0.050 nats per token." in found.sentences


@pytest.mark.parametrize(("nll", "reads"), [(3.49, True), (3.505, True), (3.6, False)])
def test_the_open_question_is_answered_by_scale_1_beyond_the_base_window(nll, reads):
    cells = [c for c in hand_made() if not (c.model == "tuned" and c.scale == 1.0 and c.window > L)]
    cells += [cell("tuned", 128, 1.0, 3.45), cell("tuned", 256, 1.0, nll)]
    found = verdict(cells, L)
    assert found.reads_unscaled is reads
    assert found.unscaled[1].rise_over_base_window == pytest.approx(nll - 3.50)
    assert found.unscaled[1].rise_over_paper_scale == pytest.approx(nll - 3.37)
    assert f"the tuned model {'does' if reads else 'does not'} read past 64 tokens" in found.sentences[-1]


def test_what_was_not_measured_is_none_and_shown_as_missing():
    cells = [c for c in hand_made() if not (c.model == "base" and c.window == 256)]
    found = verdict(cells, L)
    assert found.below_base_everywhere is None
    assert found.windows[2].gain_over_untrained is None
    assert "Other windows miss a cell." in found.sentences[0]
    line = next(line for line in table(cells, found).splitlines() if line.startswith("|      256"))
    assert [text.strip() for text in line.split("|")[1:-1]] == [
        "256", "4", "3.370 ± 0.020", "3.300 ± 0.020 (g = 2)", "missing", "missing", "missing",
    ]  # fmt: skip


def test_one_model_alone_has_no_comparison():
    found = verdict([c for c in hand_made() if c.model == "base"], L)
    assert found.below_base_everywhere is None
    assert found.reads_unscaled is None
    assert found.short_cost.rise is None
    assert found.sentences == ()


def test_windows_inside_the_base_window_are_served_at_scale_1():
    assert verdict([cell("tuned", 32, 1.0, 4.0)], L).windows[0].paper_scale == 1.0


def test_table_is_aligned_markdown_with_the_protocol():
    lines = table(hand_made(), verdict(hand_made(), L)).splitlines()
    assert len({len(line) for line in lines[:5]}) == 1
    assert {line.count("|") for line in lines[:5]} == {8}
    assert "3.400 ± 0.020" in lines[3]
    assert "+0.300" in lines[3]
    assert "8 documents, 4096 scored tokens, stride 16" in lines[6]


def test_a_single_document_is_shown_without_a_spread():
    text = table([cell("tuned", 64, 1.0, 3.5, stderr=None)], verdict([cell("tuned", 64, 1.0, 3.5, stderr=None)], L))
    assert "3.500 |" in text
    assert "3.500 ±" not in text


def test_a_verdict_of_an_earlier_version_reads_as_one_of_linear_scaling():
    found = verdict(hand_made(), L)
    older = {"base_untrained": "base_linear", "gain_over_untrained": "gain_over_linear"}
    before = {key: value for key, value in found.plain().items() if key != "method"}
    before["windows"] = [{older.get(key, key): value for key, value in row.items()} for row in before["windows"]]
    written = {"rows": [cell.plain() for cell in hand_made()], "verdict": before}
    as_now = Evaluation.parse(written, where="evaluation.json").verdict
    assert as_now == found == Evaluation(rows=tuple(hand_made()), verdict=found).verdict
    assert table(hand_made(), as_now) == table(hand_made(), found)


def with_linear(at_128=4.0, at_256=4.9):
    linear = [cell("base_linear", 64, 1.0, 3.45), cell("base_linear", 128, 2.0, at_128)]
    return [*hand_made(), *linear, cell("base_linear", 256, 4.0, at_256)]


def test_a_further_method_without_training_stands_in_rows_table_and_words():
    found = verdict(with_linear(), L, method="YaRN")
    assert [row.untrained for row in found.windows] == [{"linear": 3.45}, {"linear": 4.0}, {"linear": 4.9}]
    assert "base under untrained YaRN scaling at every measured window" in found.sentences[0]
    assert found.sentences[1] == (
        "It is below the base under untrained linear scaling at every measured window from 128 to 256 tokens, by at "
        "least 0.600 nats per token."
    )
    header, _, *rows = table(with_linear(), found).splitlines()
    assert "base at W/L, untrained linear" in header and "base at W/L, untrained YaRN" in header
    assert [row.split("|")[6].strip() for row in rows[:3]] == ["3.450 ± 0.020", "4.000 ± 0.020", "4.900 ± 0.020"]


def test_a_further_method_that_reads_better_is_named_with_its_window():
    assert "It is not below the base under untrained linear scaling at 128 tokens." in (
        verdict(with_linear(at_128=3.0), L).sentences
    )


def test_without_a_further_method_rows_table_and_words_know_none():
    found = verdict(hand_made(), L)
    assert all(row.untrained is None for row in found.windows)
    assert "| base at W/L, untrained |" in table(hand_made(), found)
