"""The report of a study, read as its reader gets it: the page, its pictures and what it claims."""

import dataclasses
import math
import re

import pytest
from matplotlib import image as images
from matplotlib.figure import Figure

from e2ray.records.study import Interval, RungRow, StudyNoise, SurrogateFound
from e2ray.report.frame.text import count, duration, nats, number
from e2ray.report.sections.draws import settings_words
from e2ray.report.study.method import measurement
from e2ray.report.study.page import PICTURES, SECTIONS, write_study
from e2ray.report.study.pareto import draw_pareto
from e2ray.report.study.progress import draw_rungs
from e2ray.report.study.ranges import draw_ranges
from e2ray.report.study.recommendation import conclusion
from e2ray.report.study.section import Reported
from e2ray.report.study.space import NOT_USED, draw_parallel, draw_slices
from e2ray.report.study.surfaces import draw_surfaces
from e2ray.report.study.terms import correlation_words, difference, difference_words, range_words, searched_words
from e2ray.search.ranks import chance_correlation
from e2ray.search.results import results as follow
from e2ray.testing.pages import read, unrendered
from e2ray.testing.studies import SPACE, L, failed, importances_of, made_up

COMMAND = "optuna-dashboard /studies/made-up/study.journal"
HEADINGS = [
    "In plain words", "What to train with", "Pareto front", "Ranges", "Importances", "Slices", "Parallel coordinates",
    "Best against the paper's preset", "Progress and rungs", "All trials", "How it was measured",
]  # fmt: skip


@pytest.fixture(scope="module")
def study():
    return made_up()


@pytest.fixture(scope="module")
def written(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    figure = Figure()
    figure.subplots().plot([1, 2])
    return write_study(folder, study, coverage={"Paper's preset": figure}, journal_command=COMMAND)


def follows(study, records, importances=None):
    return follow(records, study.facts, study.importances if importances is None else importances)


def text_of(path):
    return " ".join(" ".join(read(path.read_text(encoding="utf-8")).texts).split())


def words_of(folder, study):
    """Return what a study's page says beside its pictures."""
    with unrendered():
        return text_of(write_study(folder, study, journal_command=COMMAND))


def findings(study):
    return [point for section in SECTIONS for point in section.findings(Reported(study, COMMAND))]


def said(study):
    return {point.head: point.text for point in findings(study)}


def test_the_page_holds_every_section_in_order_and_every_picture_with_a_text(written):
    reader = read(written.read_text(encoding="utf-8"))
    links = [attrs["href"].removeprefix("#") for tag, attrs in reader.tags if tag == "a"]
    sections = [attrs["id"] for tag, attrs in reader.tags if tag == "section"]
    assert links == sections
    texts = text_of(written)
    places = [texts.index(heading, texts.index("up to scale 16.")) for heading in HEADINGS]
    assert places == sorted(places)
    assert sections.index("coverage") == sections.index("parallel") + 1
    pictures = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert len(pictures) == len(PICTURES) + 1
    assert all(attrs["src"].startswith("data:image/png;base64,iVBOR") for attrs in pictures)
    assert all(len(attrs["alt"]) > 10 for attrs in pictures)


def test_nothing_on_the_page_is_fetched(written):
    html = written.read_text(encoding="utf-8")
    assert "script" not in {tag for tag, _ in read(html).tags}
    assert not re.search(r"https?:|url\(|@import|//[a-z]", re.sub(r'base64,[^"]*"', "", html))
    assert len(html) < 5_000_000


def test_pictures_lie_beside_the_page_large_enough_to_read(written):
    found = {path.name for path in (written.parent / "pictures").iterdir()}
    assert found == {f"{name}.png" for name in [*PICTURES, "coverage-1"]}
    for name in PICTURES:
        height, width = images.imread(written.parent / "pictures" / f"{name}.png").shape[:2]
        assert width >= 1200
        assert height >= 300


def test_the_same_study_gives_the_same_bytes(written, study, tmp_path):
    figure = Figure()
    figure.subplots().plot([1, 2])
    again = write_study(tmp_path, study, coverage={"Paper's preset": figure}, journal_command=COMMAND)
    assert again == tmp_path / "report.html"
    assert again.read_bytes() == written.read_bytes()
    for path in (written.parent / "pictures").iterdir():
        assert (tmp_path / "pictures" / path.name).read_bytes() == path.read_bytes()


def test_every_trial_is_in_the_table_and_the_command_in_the_page(written, study):
    html = written.read_text(encoding="utf-8")
    table = html[html.index('id="trials"') : html.index('id="method"')]
    assert table.count("<tr") == 1 + len(study.records)
    assert table.count("Failed: the loss became NaN at update 12") == 2
    assert f"<code>{COMMAND}</code>" in html


def test_names_and_reasons_of_others_never_become_markup(study, tmp_path):
    evil = "<script>alert(1)</script> $x_1$ {{ 1 }}"
    records = [
        dataclasses.replace(record, baseline=evil) if record.baseline == "pose" else record for record in study.records
    ]
    records[14] = failed(records[14], evil)
    hostile = follows(study, records)
    hostile = dataclasses.replace(hostile, facts=dataclasses.replace(hostile.facts, name=evil))
    path = write_study(tmp_path, hostile, journal_command=evil)
    assert "script" not in {tag for tag, _ in read(path.read_text(encoding="utf-8")).tags}
    assert text_of(path).count(evil) >= 5


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    ("times", "grade", "words"),
    [
        (0.0, "within", "not told apart"),
        (1.0, "within", "not told apart"),
        (1.0001, "hint", "a hint, no proof"),
        (2.0, "hint", "a hint, no proof"),
        (2.0001, "beyond", "beyond the noise"),
        (30.0, "beyond", "over 10 times"),
    ],
)
def test_a_difference_is_judged_against_the_noise_of_a_difference(sign, times, grade, words):
    # 1/64 is exact, and so is a difference of multiples of its sqrt(2) from zero
    found = difference(sign * times * math.sqrt(2) / 64, 0.0, 1 / 64)
    assert found.grade == grade
    assert words in difference_words(found)
    assert ("lower" if sign * times < 0 else "higher") in difference_words(found)


def test_without_noise_no_difference_is_a_finding():
    found = difference(3.0, 4.0, None)
    assert found.grade == "unknown"
    assert difference_words(found) == "1.000 nats lower, noise unknown: not a finding yet"


def test_repeats_that_do_not_differ_leave_every_difference_beyond_them():
    assert difference(3.0, 3.0, 0.0).grade == "within"
    assert difference_words(difference(2.99, 3.0, 0.0)).endswith(
        "over 10 times the noise of a difference: beyond the noise"
    )


@pytest.mark.parametrize(
    ("long", "short", "words"),
    [
        (-1.0, -1.0, "better on both, beyond the noise"),
        (-1.0, 1.0, "a trade: better on long and worse on short"),
        (-1.0, 0.01, "better on long beyond the noise; on the other it is not shown"),
        (0.01, -1.0, "better on short beyond the noise; on the other it is not shown"),
        (0.01, 1.0, "worse on short beyond the noise, and not shown to be better on anything"),
        (0.01, -0.2, "not shown to be better or worse"),
        (1.0, 1.0, "worse on long and on short"),
    ],
)
def test_the_conclusion_claims_only_what_is_beyond_the_noise(long, short, words):
    assert words in conclusion(difference(long, 0, 0.1), difference(short, 0, 0.1))


def noise_of(runs, long, short, value):
    return StudyNoise(runs=runs, long=long, short=short, value=value, retrieval=None, answer_nll=None)


def with_best(study, long, short, noise):
    """The study with its balanced best moved to a distance from the paper's preset, and another noise."""
    paper, best = study.records[0], study.chosen["balanced"]
    records = [
        dataclasses.replace(r, long=paper.long + long, short=paper.short + short) if r.number == best else r
        for r in study.records
    ]
    return dataclasses.replace(study, records=records, noise=noise_of(3, noise, noise, noise))


def test_the_page_says_within_the_noise_just_inside_it_and_a_hint_just_outside(study):
    inside = said(with_best(study, -0.0141, -0.0141, 0.01))["Against the paper's preset."]
    assert inside.count("within the noise of a difference (± 0.014)") == 2
    assert "It is not shown to be better or worse." in inside
    outside = said(with_best(study, -0.0142, -0.0284, 0.01))["Against the paper's preset."]
    assert "on long, 0.014 nats lower, 1.0 times the noise of a difference: a hint, no proof" in outside
    assert "on short, 0.028 nats lower, 2.0 times the noise of a difference: beyond the noise" in outside


def test_windows_where_the_best_reads_worse_are_named_though_the_mean_is_better(study):
    text = said(study)["By window."]
    assert re.search(r"lower, beyond the noise, at 128 \(-0\.[23]\d\d\)", text)
    assert re.search(r"higher, beyond the noise, at .*2048 \(\+0\.\d+\)", text)
    (point,) = [point for point in findings(study) if point.head == "By window."]
    assert point.warning


def test_importances_carry_what_one_trial_decides(study):
    known = said(study)["Settings that matter."]
    assert re.search(r"learning rate \d+ % \(\d+ to \d+\)", known) and "any one trial left out" in known
    unknown = said(dataclasses.replace(study, importance_spread={}))["Settings that matter."]
    assert "(" not in unknown and "own error was not measured" in unknown


def test_what_only_stopped_trials_tried_is_said_to_be_unmeasured(study):
    assert "Hidden by early stopping." not in said(with_stopped(study, above=2))
    told = said(with_stopped(study, above=3))["Hidden by early stopping."]
    assert re.match(r"All trials with learning rate above \S+ \(3 trials\) were stopped early", told)


def with_stopped(study, *, above):
    """The study with so many stopped trials whose learning rate no full trial has."""
    complete = [record for record in study.records if record.state == "complete"]
    most = max(record.params.get("train.lr", 0.0) for record in complete if record.baseline is None)
    template = next(record for record in complete if record.baseline is None)
    stopped = [
        dataclasses.replace(template, number=100 + i, state="pruned", params=template.params | {"train.lr": most * 1.1})
        for i in range(above)
    ]
    return follows(study, [*complete, *stopped])


def test_a_study_with_one_seed_of_the_paper_says_that_its_noise_is_unknown(tmp_path):
    lonely = made_up(24, repeats=1)
    points = said(lonely)
    assert "ran in full under 1 seed, and noise needs two" in points["Noise unknown."]
    assert points["Against the paper's preset."].count("noise unknown: not a finding yet") == 2
    assert "cannot be said without the noise" in points["Against the paper's preset."]
    assert "noise unknown, at 128" in points["By window."]
    assert "without the noise nobody can say" in points["Ranges to train with."]
    text = words_of(tmp_path, lonely)
    assert "± 0" not in text
    assert "nats per token; the noise of a trial is unknown." in text
    assert "The noise is unknown, so no error bars are drawn." in text


def test_few_trials_make_no_rank_correlation_trustworthy():
    assert correlation_words(RungRow(step=1, spearman=0.95, trials=4)).startswith("not told apart from chance")
    assert "few trials, so rough" in correlation_words(RungRow(step=1, spearman=0.9, trials=8))
    assert correlation_words(RungRow(step=1, spearman=0.8, trials=50)) == "orders the trials much as the end does"
    assert correlation_words(RungRow(step=1, spearman=0.79, trials=50)) == "orders many trials another way"
    assert correlation_words(RungRow(step=1, spearman=None, trials=2)) == "not computable"
    assert chance_correlation(1) == chance_correlation(2) == 1.0
    assert chance_correlation(50) == pytest.approx(0.28)


def test_a_study_of_failures_reports_reasons_and_draws_nothing(study, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "pareto.png").write_bytes(b"of an older report")
    records = [failed(record, f"reason {record.number % 7}") for record in study.records]
    path = write_study(tmp_path, follows(study, records, {}), journal_command=COMMAND)
    reader = read(path.read_text(encoding="utf-8"))
    assert [tag for tag, _ in reader.tags if tag == "img"] == []
    assert list((tmp_path / "pictures").iterdir()) == []
    text = text_of(path)
    assert "No trial ran in full, so the study recommends nothing." in text
    assert "and 2 further reasons" in text
    assert "45 trials (number 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)" in text


def test_a_study_whose_trials_were_all_stopped_draws_only_the_rungs(study, tmp_path):
    records = [record for record in study.records if record.state == "pruned"]
    write_study(tmp_path, follows(study, records, {}), journal_command=COMMAND)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["rungs.png"]


def test_a_study_without_records_is_written(study, tmp_path):
    text = text_of(write_study(tmp_path, follows(study, [], {}), journal_command=COMMAND))
    assert "45 not ended yet, so this report is provisional" in text


@pytest.mark.parametrize("path", ["train.lr", "positions.per"])
def test_one_searched_setting_is_enough(tmp_path, path):
    alone = made_up(18, space={path: SPACE[path]})
    html = write_study(tmp_path, alone, journal_command=COMMAND).read_text(encoding="utf-8")
    assert html.count("<img ") == len(PICTURES)


def test_one_full_trial_is_enough(study, tmp_path):
    alone = follows(study, [study.records[20]], {})
    text = text_of(write_study(tmp_path, alone, journal_command=COMMAND))
    assert "The paper's preset did not run in full, so there is nothing to compare it with." in text


def test_a_best_that_is_the_papers_preset_is_called_that(study, tmp_path):
    alone = follows(study, [record for record in study.records if record.repeat is not None])
    assert "That is the paper's preset itself" in said(alone)["Balanced best."]
    text = words_of(tmp_path, alone)
    assert "The best is the paper's preset itself, so there is no difference to draw." in text


def test_retrieval_gets_its_columns_and_its_place_in_the_weighted_number(tmp_path):
    text = words_of(tmp_path, made_up(18, retrieval=True))
    assert "Passkeys" in text
    assert "40 %" in text
    assert "value = 1 * long + 0.5 * short + 0.2 * (1 - share of passkeys found)" in text


def test_five_hundred_trials_stay_below_five_megabytes(tmp_path):
    path = write_study(tmp_path, made_up(500), journal_command=COMMAND)
    assert path.stat().st_size < 5_000_000
    assert "Show all 500 trials" in text_of(path)


def test_cells_that_were_not_measured_look_missing():
    figure = draw_surfaces(made_up(20, surface=False))
    _, best, paper, change = figure.axes
    for axis in (best, paper, change):
        assert len(axis.texts) == 5  # the diagonal
        assert sum(patch.get_hatch() == "////" for patch in axis.patches) == 20


def test_the_difference_of_surfaces_is_best_minus_paper(study):
    figure = draw_surfaces(study)
    best, paper, change = ([float(text.get_text()) for text in axis.texts] for axis in figure.axes[1:])
    assert len(change) == 25
    assert change == pytest.approx([a - b for a, b in zip(best, paper, strict=True)], abs=0.0151)  # two decimals


def test_stopped_trials_are_not_in_the_pareto_picture(study):
    axis = draw_pareto(study).axes[0]
    drawn = sum(len(line.get_xdata()) for line in axis.lines[:2])
    assert drawn == sum(record.state == "complete" for record in study.records)
    labels = {text.get_text() for text in axis.texts}
    assert {"E²-LLM", "PoSE", "RandPos", "CREAM", "CLEX", "EndPrompt", "PI", "native"} <= labels


def test_labels_of_the_pareto_picture_do_not_cover_each_other(study):
    figure = draw_pareto(study)
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
        assert boxes
        assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])


def test_ranges_are_drawn_where_they_were_found(study):
    figure = draw_ranges(study)
    texts = [text.get_text() for text in figure.axes[0].texts]
    parameters = study.ranges.parameters
    for path, row in parameters.items():
        if row.kind != "choice":
            told = f"undetermined ({row.trials or 'no'} trial" if row.undetermined else range_words(row)
            assert any(told in text for text in texts), path
    assert any(not row.undetermined for row in parameters.values())
    assert any(row.undetermined for row in parameters.values())


def test_what_the_surrogate_says_lies_below_each_range_filled_where_it_is_determined(study):
    numbers = [path for path, spec in study.facts.space.items() if spec["kind"] != "choice"]
    low, high = (study.facts.space[numbers[0]][end] for end in ("low", "high"))
    known = {"trials": 9, "held": 0.9, "narrow": 0.9}
    least = study.facts.space[numbers[1]]["low"]
    said = {
        numbers[0]: Interval(low=low, high=high, share=1.0, determined=False, **known),
        numbers[1]: Interval(low=least, high=least, share=0.1, determined=True, **known),
    }
    found = SurrogateFound(trials=12, full=9, left_out_spearman=0.71, coverage=0.92, parameters=said)
    figure = draw_ranges(dataclasses.replace(study, ranges=study.ranges.changed(surrogate=found)))
    slim = [patch for patch in figure.axes[0].patches if patch.get_height() < 0.2]
    assert [patch.get_width() for patch in slim] == pytest.approx([1.0, 0.006])  # as wide as can be seen at least
    assert [patch.get_facecolor()[:3] == (1, 1, 1) for patch in slim] == [True, False]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "surrogate: determined" in labels
    without = draw_ranges(dataclasses.replace(study, ranges=study.ranges.changed(surrogate=None)))
    assert not [patch for patch in without.axes[0].patches if patch.get_height() < 0.2]


def test_a_setting_without_use_stands_on_its_own_level(study):
    axis = draw_parallel(study).axes[0]
    lines = axis.collections[0].get_segments()
    complete = [r for r in study.records if r.state == "complete" and r.params and not r.repeat]
    assert len(lines) == len(complete)
    unused = sum(len(SPACE) - len(record.params) for record in complete)
    assert sum((line[:, 1] == NOT_USED).sum() for line in lines) == unused
    assert all(((line[:, 1] == NOT_USED) | ((line[:, 1] >= 0) & (line[:, 1] <= 1))).all() for line in lines)


def test_slices_show_one_noise_above_the_best(study):
    axis = draw_slices(study).axes[0]
    (band,) = axis.patches
    best = min(record.value for record in study.records if record.state == "complete")
    assert band.get_y() == pytest.approx(best)
    assert band.get_height() == pytest.approx(study.noise.value)


def test_stopped_trials_end_at_their_rung(study):
    axis = draw_rungs(study).axes[0]
    ends = sorted(line.get_xdata()[-1] for line in axis.lines if line.get_marker() == "x")
    assert ends == sorted(record.step for record in study.records if record.state == "pruned")


def test_untrained_yarn_stands_beside_the_base_and_answers_beside_the_passkeys(tmp_path):
    found = made_up(18)
    assert "untrained YaRN" not in words_of(tmp_path, found)
    cells = [cell | {"nll": 2.345} for cell in found.facts.base]
    facts = dataclasses.replace(found.facts, base_answer_nll=3.5, base_yarn={"cells": cells, "answer_nll": 1.25})
    records = [dataclasses.replace(record, answer_nll=2.0) for record in found.records]
    more = dataclasses.replace(found, facts=facts, records=records)
    text = words_of(tmp_path, more)
    assert "Answers" in text
    assert "untrained YaRN no training, each window at scale W/L 2.345 0 by definition 1.250" in text
    assert "0 by definition 3.500" in text


def test_the_table_of_a_surrogate_says_what_is_determined(tmp_path):
    row = Interval(low=0.1, high=0.3, trials=9, share=0.25, held=0.9, narrow=0.9, determined=True)
    found = made_up(18)
    parameters = dict.fromkeys(found.facts.space, None) | {next(iter(found.facts.space)): row}
    said = SurrogateFound(trials=12, full=9, left_out_spearman=0.71, coverage=0.92, parameters=parameters)
    ranges = found.ranges.changed(surrogate=said)
    text = words_of(tmp_path, dataclasses.replace(found, ranges=ranges))
    assert (
        "A Gaussian process fitted to 12 trials, 9 of them in full" in text and "92% of them" in text and "0.71" in text
    )
    assert "no full trial has it" in text
    without = dataclasses.replace(found, ranges=found.ranges.changed(surrogate=None))
    assert "A Gaussian process" not in words_of(tmp_path, without)


def test_settings_are_said_in_words():
    positions = {
        "scale": {"kind": "power", "max_scale": 16.0, "exponent": -0.8, "native_share": 0.13},
        "placement": {"kind": "random_breaks", "num_breaks": 3, "jump": {"kind": "beta", "a": 2.0, "b": 1.0}},
        "per": "sequence",
    }
    assert settings_words({"positions": positions, "train.lr": 1.4e-3, "train.weight_decay": 0.1}) == (
        "scale: power, up to 16, exponent -0.8, 13 % native; placement: random breaks, 3, jump beta, a 2, b 1; "
        "per sequence; lr 1.4e-3; weight_decay 0.1"
    )
    choices = {"kind": "choice", "choices": [{"scale": 1.0, "weight": 2.0}, {"scale": 8.0, "weight": 1.0}]}
    clex = {"kind": "sorted_random", "pin_first": True, "pin_last": False}
    yarn = {"kind": "yarn", "fast": 32.0, "slow": 1.0, "temperature": {"kind": "log", "coefficient": 0.1}}
    assert settings_words({"positions": {"method": yarn}}) == "read by yarn, fast 32, slow 1, temperature log, 0.1"
    listed = {"kind": "factors", "factors": [1.0, 2.0], "max_scale": 8.0, "temperature": {"kind": "none"}}
    assert settings_words({"positions": {"method": listed}}) == "read by factors, listed at 8, temperature none"
    assert settings_words({"positions": {"method": {"kind": "linear"}, "per": "step"}}) == "per step"
    assert settings_words({"positions": {"scale": choices, "placement": clex, "per": "step"}}) == (
        "scale: choice, 1 (weight 2), 8 (weight 1); placement: sorted random, pin first; per step"
    )


def test_numbers_are_said_short():
    assert [number(value) for value in (1.37e-3, 3e-4, 0.13, 16.0, 16, True, None, "log_uniform", 123456.0, 0.0)] == [
        "1.37e-3", "3e-4", "0.13", "16", "16", "yes", "none", "log uniform", "1.23e5", "0",
    ]  # fmt: skip
    assert [count(value) for value in (0, 950, 12_300, 1_228_800, 4.5e9)] == ["0", "950", "12.3 k", "1.23 M", "4.5 G"]
    assert [duration(value) for value in (4.25, 270, 9000)] == ["4.25 s", "4.5 min", "2.5 h"]
    assert [nats(value) for value in (0.0, 3.5119, 0.0041, 2e-6, None)] == [
        "0.000",
        "3.512",
        "0.0041",
        "2e-06",
        "unknown",
    ]


def test_what_was_searched_names_its_condition():
    assert searched_words(SPACE["positions.placement.prefix"]) == "1 to 32, log, whole; where placement.kind is prefix"
    assert searched_words(SPACE["positions.per"]) == "sequence, step"


def test_more_settings_than_axes_keep_the_most_important(tmp_path):
    space = {f"train.made_up_{place}": SPACE["train.lr"] for place in range(15)}
    wide = made_up(14, space=space)
    wide = dataclasses.replace(wide, importances=dict(reversed(importances_of(space).items())))
    assert len(draw_parallel(wide).axes[0].get_xticks()) == 14
    text = words_of(tmp_path, wide)
    assert "Only the 14 most important settings are drawn." in text


def test_the_pareto_mode_says_what_the_weighted_number_is_for():
    points, _, command = measurement(made_up(12, mode="pareto"), COMMAND)
    text = " ".join(point.text for point in points.items)
    assert "the search itself minimised the objectives side by side" in text
    assert f"NLL at {L} tokens and scale 1" in text
    assert command.text == COMMAND


def test_a_base_whose_scaling_was_removed_is_called_that(study, tmp_path):
    removed = dataclasses.replace(study, facts=dataclasses.replace(study.facts, removed_scaling="yarn"))
    with unrendered():
        text = write_study(tmp_path, removed, coverage={}, journal_command="x").read_text()
    assert "base, its yarn scaling removed" in text and "the base without its yarn scaling" in text
    assert "untouched" not in text
