"""The report on one run or several: a page that opens offline, and the same as Markdown for a model card.

Both are made of one list of sections, so that they cannot disagree. Runs whose NLLs may not be compared stand in
tables and pictures of their own, and the page begins with saying so.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from e2ray.config.base import SettingsError
from e2ray.config.places import public
from e2ray.files import write_text
from e2ray.report import markdown
from e2ray.report.by_length import draw_by_length
from e2ray.report.lengths import draw_retrieval
from e2ray.report.page import Part, Picture, Points, Section, Words, png, write_page, write_png
from e2ray.report.run_files import RunRecord, comparable, read_run
from e2ray.report.run_folder import RunFolder
from e2ray.report.run_pictures import draw_nll, draw_surfaces
from e2ray.report.run_tables import (
    asked_lengths,
    base_note,
    cost_table,
    nll_table,
    reach_table,
    retrieval_table,
    runs_table,
    scales_table,
    settings_table,
    suites_table,
)
from e2ray.report.run_words import findings, incomparable, measured_words
from e2ray.report.watched import draw_watched, watched_lines


def write_report(page: Path, runs: Sequence[RunFolder]) -> Path:
    """Write the page, the Markdown beside it and its pictures, each whole or not at all; return the Markdown's path.

    The same runs give the same bytes.

    Args:
        page: HTML file; the Markdown is named after it, its pictures lie in `<name>-pictures/`.
        runs: What `open_runs` returns.

    Raises:
        SettingsError: If the name does not end in .html, a run is damaged, or the folder cannot be written.
    """
    if page.suffix.lower() != ".html":
        raise SettingsError(f"{page}: the report is a page; give it a name that ends in .html")
    records = [read_run(run) for run in runs]
    title = f"{'Run' if len(runs) == 1 else 'Runs'} {', '.join(run.name for run in runs)}"
    subtitle = (
        "E2-LLM: trained on short windows, read at longer ones by choosing the scale of positions. Every figure is of "
        "the runs' own files."
    )
    parts = sections(records)
    text, folder = page.with_suffix(".md"), page.with_name(f"{page.stem}-pictures")
    names = markdown.file_names(parts, Path(folder.name))
    for section in parts:
        for part in section.parts:
            if isinstance(part, Picture):
                write_png(page.parent / names[id(part)], part.png)
    links = {part: quote(name) for part, name in names.items()}
    write_page(page, title, subtitle, parts)
    write_text(text, markdown.render(title, subtitle, parts, links))
    _remove_others(folder, {Path(name).name for name in names.values()})
    return text


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Remove pictures of an earlier report that this one does not have."""
    for path in folder.glob("*.png"):
        if path.name not in kept and re.fullmatch(r"(nll|surface|position|watched|retrieval)-[0-9]+\.png", path.name):
            path.unlink()


def sections(records: Sequence[RunRecord]) -> list[Section]:
    """Return the sections of the report in their order; what no run has is left out."""
    found = [
        Section("In plain words", "words", [Points(findings(records))]),
        Section("The runs" if len(records) > 1 else "The run", "runs", [runs_table(records)]),
        Section("NLL by window", "nll", _nll(records)),
        Section("Window and scale", "surface", _surfaces(records)),
        *([Section("NLL by position", "position", positions)] if (positions := _positions(records)) else []),
        *([Section("While it trained", "watched", watched)] if (watched := _watched(records)) else []),
        Section("How far it reads", "reach", [reach_table(records), scales_table(records)]),
    ]
    if any(record.retrieval for record in records):
        found.append(Section("Retrieval", "retrieval", _retrieval(records)))
    if any(record.suites or record.suites_missing for record in records):
        found.append(Section("Suites", "suites", [suites_table(records), *_no_scores(records)]))
    found.append(Section("Cost", "cost", [cost_table(records)]))
    if len(records) > 1:
        table = settings_table(records, shown=public)
        found.append(Section("Settings that differ", "settings", [table or Words("None but the names.")]))
    return [*found, Section("How it was measured", "method", measured_words(records))]


def _nll(records: Sequence[RunRecord]) -> list[Part]:
    groups = comparable(records)
    missing = [record for record in records if not record.cells]
    parts: list[Part] = [Words(f"{point.head} {point.text}", warning=True) for point in incomparable(groups)]
    for place, group in enumerate(groups):
        names = ", ".join(record.name for record in group)
        first = "its base" if len(group) == 1 else group[0].name
        removed = any(record.removed_scaling for record in group)
        base = "base at scale 1" if removed else "untouched base at scale 1, which is all it was made for"
        parts.append(
            Picture(
                png(draw_nll(group)),
                f"NLL by window of {names}, tuned and base",
                f"Tuned at scale W/L, and the {base}. Right: the "
                f"difference to {first}, document by document. Bands and bars are 95 % intervals over documents. "
                "Bands of models that read the same documents overlap for what these have in common, which the "
                "differences do not hold." + base_note(group),
            )
        )
        parts.append(nll_table(group, [] if place else missing))
    return parts


def _surfaces(records: Sequence[RunRecord]) -> list[Part]:
    parts: list[Part] = []
    for group in comparable(records):
        parts += [
            Picture(
                png(draw_surfaces(record, group)),
                f"NLL of {record.name} over window and scale",
                f"{record.name}: what each scale reads of each window. Framed: scale W/L, as the paper serves; "
                "starred: the best of its window. Hatched: not measured.",
            )
            for record in group
        ]
    return [*parts, *(_no_evaluation(record) for record in records if not record.cells)]


def _positions(records: Sequence[RunRecord]) -> list[Part]:
    return [
        Picture(
            png(draw_by_length(record.by_length, removed_scaling=record.removed_scaling)),
            f"NLL of {record.name} by position, a curve for each scale",
            f"{record.name}: each scale reads the beginning of every document once; the curve shows how well it "
            "predicts each stretch with all that stands before it. The lowest curve of a stretch is the "
            "scale that reads a context of that length best.",
        )
        for record in records
        if record.by_length
    ]


def _watched(records: Sequence[RunRecord]) -> list[Part]:
    parts: list[Part] = []
    for record in records:
        looks = watched_lines(record.metrics)
        if not looks:
            continue
        price = looks[-1].get("price_at_base")
        told = "" if price is None else f" At the last look NLL at L was {price:+.3f} nats against the base."
        parts.append(
            Picture(
                png(draw_watched(record.metrics)),
                f"NLL of {record.name} on held-out text while it trained, by window",
                f"{record.name}: every window scores the same last tokens of the same few documents.{told}",
            )
        )
    return parts


def _retrieval(records: Sequence[RunRecord]) -> list[Part]:
    lengths = asked_lengths(records)
    parts: list[Part] = []
    for record in records:
        if not record.retrieval:
            said = "no retrieval was asked" if record.cells else "has no evaluation"
            parts.append(Words(f"{record.name}: {said}; its cells are missing.", warning=True))
            continue
        parts.append(
            Picture(
                png(draw_retrieval(record.retrieval, context_lengths=lengths, removed_scaling=record.removed_scaling)),
                f"Answers that {record.name} found, by task, context length and depth",
                f"{record.name}: share of answers found by context length and depth, the fraction of the text before "
                "what is asked for. Hatched: not measured, since the length holds no such prompt or was not asked for.",
            )
        )
    return [*parts, retrieval_table(records)]


def _no_scores(records: Sequence[RunRecord]) -> list[Words]:
    said = []
    for record in records:
        models: dict[tuple[str, str], list[str]] = {}  # most often base and tuned lack a score for one reason
        for row in record.suites_missing:
            models.setdefault((row["task"], row["reason"]), []).append(row["model"])
        said += [
            Words(f"{record.name}, {' and '.join(which)}: {task} has no score: {reason}", warning=True)
            for (task, reason), which in models.items()
        ]
    return said


def _no_evaluation(record: RunRecord) -> Words:
    return Words(f"{record.name}: {record.run.what_is_missing}. It has no surface here.", warning=True)
