"""The ranges to train with: tables of what was found and of what a surrogate predicts, and the findings."""

from e2ray.report.frame.page import Column, Part, Point, Row, Table
from e2ray.report.frame.text import nats, number, plural, share_words
from e2ray.report.study.terms import range_words, ranges_by_space, searched_words, short_name
from e2ray.search.record import StudyResults
from e2ray.search.results import MIN_TRIALS
from e2ray.search.surrogate import COVERED, FEWEST_TRIALS, WIDEST

HIDDEN_FROM = 3  # stopped trials beyond every full one before it is told


def ranges(results: StudyResults) -> list[Part]:
    """Return the table of the ranges; nothing where no trial ran in full."""
    parameters = ranges_by_space(results)
    if not parameters:
        return []
    rows = []
    for path, row in parameters.items():
        spec = results.facts.space.get(path, {})
        found = "undetermined" if row["undetermined"] else range_words(row)
        importance = row.get("importance")
        share = "unknown" if importance is None else share_words(importance, row.get("importance_spread"))
        cells = [path, searched_words(spec), found, str(row["trials"]), share]
        rows.append(Row(cells, "faint" if row["undetermined"] else ""))
    columns = [
        Column("Setting"), Column("Searched", "wide"), Column("Train with"), Column("Trials", "number"),
        Column("Importance", "number"),
    ]  # fmt: skip
    within = results.ranges.get("within")
    near = plural(results.ranges.get("trials") or 0, "trial")
    caption = (
        "Train with: the central 80 %, or how often each kind was found, among the trials within one noise of the "
        f"best; here {near}, one noise being {nats(within)} nats of the weighted number. Undetermined: fewer than "
        f"{MIN_TRIALS} of them use the setting. The sampler looks mostly where trials came out well, so counts of "
        "kinds follow it too."
        if within is not None
        else "Undetermined throughout: without the noise nobody can say which trials are as good as the best."
    )
    return [Table(columns, rows, caption), *_surrogate(results)]


def _surrogate(results: StudyResults) -> list[Part]:
    """Return the table of what a surrogate of all full trials says; nothing without one."""
    found = results.ranges.get("surrogate")
    if found is None:
        return []
    rows = []
    for path in results.facts.space:
        row = found["parameters"].get(path)
        if row is None:
            rows.append(Row([path, "no full trial has it", "", "", ""], "faint"))
            continue
        words = ", ".join(map(number, row["kinds"])) if "kinds" in row else range_words(row)
        cells = [path, words, _percent(row["share"]), _percent(row["held"]), "yes" if row["determined"] else "no"]
        rows.append(Row(cells, "" if row["determined"] else "faint"))
    columns = [
        Column("Setting"), Column("Predicted within one noise", "wide"), Column("Of what was searched", "number"),
        Column("Held by refits", "number"), Column("Determined"),
    ]  # fmt: skip
    ranks = found["left_out_spearman"]
    said = "not computable" if ranks is None else f"{ranks:.2f}"
    caption = (
        f"A Gaussian process fitted to {plural(found['trials'], 'trial')}, {found['full']} of them in full: where its "
        "prediction of the number at the end stays within one noise of the lowest, all other settings as in the best "
        "trial, and where no trial was. Held by refits: the share of the fits with one trial left out whose interval "
        f"has the best place. Determined: at most {WIDEST:.0%} of what was searched, in at least {COVERED:.0%} of the "
        f"refits, too, held by as many, tried by at least {FEWEST_TRIALS} trials, and left-out trials bear the "
        f"surrogate out: {found['coverage']:.0%} of them lie where nine of ten should, and their rank correlation with "
        f"the prediction is {said}."
    )
    return [Table(columns, rows, caption)]


def _percent(share: float | None) -> str:
    return "missing" if share is None else f"{100 * share:.0f} %"


def ranges_findings(results: StudyResults) -> list[Point]:
    """Return what to train with, what is undetermined, and which ends stopped trials alone have seen."""
    return [*_ranges(results), *_hidden_by_stopping(results)]


def _ranges(results: StudyResults) -> list[Point]:
    head, parameters = "Ranges to train with.", ranges_by_space(results)
    within, trials = results.ranges.get("within"), results.ranges.get("trials") or 0
    if results.ranges.get("best") is None:
        return [Point(head, "None: no trial ran in full.", warning=True)]
    if within is None:
        text = "None: without the noise nobody can say which trials are as good as the best."
        return [Point(head, text, warning=True)]
    known = {path: row for path, row in parameters.items() if not row["undetermined"]}
    told = "; ".join(f"{short_name(path)}: {range_words(row)}" for path, row in known.items())
    text = (
        f"{told[:1].upper()}{told[1:]}. That is the central 80 %, or the kinds found with their number, among the "
        f"{plural(trials, 'full trial')} within one noise ({nats(within)} nats of the weighted number) of the best."
    )
    points = [Point(head, text)] if known else []
    open_ones = [short_name(path) for path in parameters if path not in known]
    if open_ones:
        text = (
            f"{', '.join(open_ones)}: of the {plural(trials, 'full trial')} within one noise ({nats(within)} nats) of "
            f"the best, fewer than {MIN_TRIALS} use them, so the study recommends no range."
        )
        points.append(Point("Undetermined.", text, warning=True))
    return points


def _hidden_by_stopping(results: StudyResults) -> list[Point]:
    """Return which ends of the searched intervals were seen by stopped trials alone; empty where there are none."""
    sampled = [record for record in results.records if record.baseline is None]
    told = []
    for path, parameter in results.facts.space.items():
        if parameter["kind"] == "choice":
            continue
        full, stopped = (
            [record.params[path] for record in sampled if record.state == state and path in record.params]
            for state in ("complete", "pruned")
        )
        if not full:
            continue
        for words, end, beyond in (
            ("above", max(full), [value for value in stopped if value > max(full)]),
            ("below", min(full), [value for value in stopped if value < min(full)]),
        ):
            if len(beyond) >= HIDDEN_FROM:
                told.append(f"{short_name(path)} {words} {number(end)} ({plural(len(beyond), 'trial')})")
    if not told:
        return []
    return [
        Point(
            "Hidden by early stopping.",
            f"All trials with {'; with '.join(told)} were stopped early. What such settings give at full length was "
            "not measured, so ranges, importances and the choice of trials leave them out.",
            warning=True,
        )
    ]
