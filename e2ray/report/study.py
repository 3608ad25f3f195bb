"""The report of a study: report.html, which opens offline, and its pictures as files.

The page begins with the findings in plain words, then what to train with, then the evidence from the Pareto front to
the last trial, and ends with how it was measured. What a study does not hold (no full trial, no repeats, no
retrieval) is said in its place.
"""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from e2ray.report.frame.page import Card, Part, Picture, Points, Words, png, write_page, write_png
from e2ray.report.frame.text import nats, plural
from e2ray.report.space_pictures import MOST_AXES, draw_importances, draw_parallel, draw_ranges, draw_slices
from e2ray.report.study_pictures import draw_pareto, draw_progress, draw_rungs, draw_surfaces
from e2ray.report.study_tables import all_trials, correlations, measurement, ranges, recommendation
from e2ray.report.study_terms import best_trial, paper_trial
from e2ray.report.study_words import findings
from e2ray.search.record import StudyResults

PICTURES = {
    "pareto": draw_pareto,
    "ranges": draw_ranges,
    "importances": draw_importances,
    "slices": draw_slices,
    "parallel": draw_parallel,
    "surfaces": draw_surfaces,
    "progress": draw_progress,
    "rungs": draw_rungs,
}


def write_study(
    folder: Path, results: StudyResults, *, coverage: Mapping[str, Figure] | None = None, journal_command: str
) -> Path:
    """Write report.html and pictures/*.png into a folder, each whole or not at all, and return the page's path.

    The same results give the same bytes. A picture for which the study holds nothing is left out, and an older one of
    its name removed.

    Args:
        folder: The study's export folder.
        results: All that follows from the study's records.
        coverage: Figures of the distances that draws show, by their titles.
        journal_command: The command that opens the study's journal in optuna-dashboard.

    Raises:
        SettingsError: If the folder cannot be written.
    """
    folder = Path(folder)
    figures = {name: draw(results) for name, draw in PICTURES.items()}
    drawn = {name: png(figure) for name, figure in figures.items() if figure is not None}
    covered = {title: png(figure) for title, figure in (coverage or {}).items()}
    files = drawn | {f"coverage-{place}": content for place, content in enumerate(covered.values(), start=1)}
    for name, content in files.items():
        write_png(folder / "pictures" / f"{name}.png", content)
    for name in PICTURES.keys() - drawn.keys():
        (folder / "pictures" / f"{name}.png").unlink(missing_ok=True)
    facts = results.facts
    subtitle = (
        f"Which augmentation ranges to train with: {plural(facts.trials, 'trial')}, base context length "
        f"{facts.base_context_length} tokens, up to scale {facts.max_scale:g}."
    )
    path = folder / "report.html"
    write_page(path, f"Study {facts.name}", subtitle, _sections(results, drawn, covered, journal_command))
    return path


def _sections(
    results: StudyResults, drawn: Mapping[str, bytes], covered: Mapping[str, bytes], journal_command: str
) -> list[Card]:
    """Return the page's sections in their order."""
    sections = [
        Card("In plain words", "words", [Points(findings(results))]),
        Card("What to train with", "recommendation", recommendation(results)),
        Card("Pareto front", "pareto", [_picture(results, drawn, "pareto")]),
        Card("Ranges", "ranges", [_picture(results, drawn, "ranges"), *ranges(results)]),
        Card("Importances", "importances", [_picture(results, drawn, "importances")]),
        Card("Slices", "slices", [_picture(results, drawn, "slices")]),
        Card("Parallel coordinates", "parallel", [_picture(results, drawn, "parallel")]),
        Card("Best against the paper's preset", "surfaces", [_picture(results, drawn, "surfaces")]),
        Card(
            "Progress and rungs",
            "progress",
            [*(_picture(results, drawn, name) for name in ("progress", "rungs")), *correlations(results)],
        ),
        Card("All trials", "trials", [all_trials(results)]),
        Card("How it was measured", "method", measurement(results, journal_command)),
    ]
    if covered:
        parts = [_coverage(title, content) for title, content in covered.items()]
        place = next(place for place, section in enumerate(sections) if section.anchor == "parallel")
        sections.insert(place + 1, Card("Which distances the draws show", "coverage", parts))
    return sections


def _coverage(title: str, content: bytes) -> Picture:
    caption = f"{title}: the distances between tokens that the draws show in training, scale by scale."
    return Picture(content, f"Scale coverage: {title}", caption)


def _picture(results: StudyResults, drawn: Mapping[str, bytes], name: str) -> Part:
    """Return a picture with its texts, or the words that say why it is missing."""
    alt, caption, missing = _TEXTS[name]
    if name not in drawn:
        return Words(missing, warning=True)
    notes = {
        "pareto": "" if results.noise.long is not None else " The noise is unknown, so no error bars are drawn.",
        "parallel": f" Only the {MOST_AXES} most important settings are drawn."
        if len(results.facts.space) > MOST_AXES
        else "",
        "surfaces": _surface_note(results),
    }
    return Picture(drawn[name], alt, caption + notes.get(name, ""))


_NO_FULL_TRIAL = "No trial ran in full, so there is nothing to draw."
_TEXTS = {
    "pareto": (
        "Scatter plot of all full trials, long objective against short objective, with the Pareto front",
        "Every trial that ran in full; lower left is better. On the front no other trial is better on both. Trials "
        "that were stopped early are not in it: their numbers belong to fewer updates. Unlabelled squares are further "
        "seeds of the paper's preset.",
        _NO_FULL_TRIAL,
    ),
    "ranges": (
        "Bars of the recommended interval inside the searched interval for each setting, and counts of kinds",
        "Each number on its own axis from the searched low to the searched high, logarithmic where it says log; dark "
        "is the central 80 % of the trials within one noise of the best. Hatched: fewer than five such trials use the "
        "setting, so it is undetermined. The slim bar below, or the words: where a surrogate fitted to all trials "
        "predicts no more than one noise above the best; filled where the trials bear that out.",
        "No trial ran in full, so there are no ranges.",
    ),
    "importances": (
        "Bars of each setting's importance for being among the best quarter of the full trials",
        "What tells the best quarter of the full trials from the rest, by PED-ANOVA; the shares sum to 1. A thin line "
        "spans the shares with any one trial left out: what a single trial decides. The true uncertainty is larger.",
        "The importances could not be computed: too few trials ran in full, or they all came out alike.",
    ),
    "slices": (
        "Small scatter plots of the weighted number against each searched setting",
        "Each trial that uses the setting. Grey ones were stopped early: their number belongs to fewer updates and "
        "mostly stands above where it would have ended. A point alone shows what went together, not what caused it: "
        "the other settings vary too. Kinds are spread sideways only to keep points apart.",
        _NO_FULL_TRIAL,
    ),
    "parallel": (
        "Parallel coordinates: one line per full trial through its settings, coloured by the weighted number",
        "One line per full trial, dark is worse and light is better, the balanced best is thick. Each number runs from "
        "the searched low to the searched high. A line passes through the level 'not used' where a trial's kinds leave "
        "a setting without meaning. Published methods that the space cannot express are not in it.",
        "No sampled trial ran in full, so there is nothing to draw.",
    ),
    "surfaces": (
        "NLL by window of the best trial, the paper's preset and the base model, and surfaces of NLL over window and "
        "scale of both and their difference",
        "NLL of single trials at their last update; error bars are over documents, not over seeds. Below: each window "
        "read at each scale.",
        "No full trial has measured curves, so there is nothing to draw.",
    ),
    "progress": (
        "Weighted number of each full trial and the best so far, by trial number and by tokens",
        "Only trials that ran in full count for the best so far. Tokens are added in the order of trial numbers; "
        "trials that ran side by side ended in another order. Ticks at the bottom are trials stopped early or failed.",
        _NO_FULL_TRIAL,
    ),
    "rungs": (
        "Weighted number of each trial at each rung",
        "Each line is a trial, read at the rungs and at its last update; a cross ends a trial that was stopped early. "
        "Lines that cross show how the order changes with the budget.",
        "No trial was read before its end, so there is nothing to draw.",
    ),
}


def _surface_note(results: StudyResults) -> str:
    best, paper = best_trial(results), paper_trial(results)
    if paper is None:
        return " The paper's preset did not run in full, so it is missing."
    if best is not None and best.number == paper.number:
        return " The best is the paper's preset itself, so there is no difference to draw."
    if results.noise.long is None:
        return " Blue: best is better. The noise is unknown, so no cell of the difference is a finding."
    return (
        f" Blue: best is better. For scale: two single trials differ by chance by {nats(2**0.5 * results.noise.long)} "
        "nats in the mean over windows, and by more in a single cell."
    )
