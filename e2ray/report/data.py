"""The page about a folder of shards: what is in it, how long its documents are, and what a run will read of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from e2ray.config.base import SettingsError
from e2ray.data.order import pattern
from e2ray.records.manifest import CorpusRows, DocumentLengths, Manifest
from e2ray.report.frame.drawing import BLUE, ORANGE, SKY, new_figure, plain, tidy
from e2ray.report.frame.page import Card, Column, Part, Row, Table, Words, picture, refuse_other_names, write_page

KINDS = (("train", "training", BLUE), ("validation", "held out", ORANGE))


def write_data(path: Path, manifest: Manifest, *, location: str, rows: int | None) -> None:
    """Write the page, whole or not at all.

    Args:
        path: HTML file.
        manifest: Of the shards.
        location: Where they are, for the title.
        rows: Rows that a run reads; None for as many as there are.

    Raises:
        SettingsError: If the name does not end in .html, `rows` is not positive, or the folder cannot be written.
    """
    refuse_other_names(path)
    rows = manifest.rows if rows is None else rows
    if rows < 1:
        raise SettingsError(f"--rows: wanted at least 1, got {rows}")
    sections = [
        Card("What is in it", "content", [_contents(manifest)]),
        Card("How long the documents are", "lengths", _lengths(manifest)),
        Card("What a run reads", "mixture", _mixture(manifest, rows)),
    ]
    if manifest.num_skipped:
        sections.append(Card("What was skipped", "skipped", [_skipped(manifest)]))
    write_page(path, "Training data", location, sections)


def drawn_rows(manifest: Manifest, rows: int) -> list[int]:
    """Return how many of a run's first rows are of each corpus, exactly; one number where there is no mixture."""
    corpora = manifest.corpora
    if not corpora:
        return [rows]
    parts = tuple(corpus.parts for corpus in corpora)
    owners, _ = pattern(parts)
    cycles, rest = divmod(rows, len(owners))
    begun = np.bincount(owners[:rest], minlength=len(parts))
    return [cycles * count + int(more) for count, more in zip(parts, begun, strict=True)]


def _contents(manifest: Manifest) -> Table:
    window, padded = manifest.window, manifest.padded_tokens
    positions = manifest.rows * window
    lines: list[tuple[str, str]] = [
        ("rows", f"{manifest.rows:,} of {window:,} tokens, in {len(manifest.shards):,} files"),
        ("tokens", f"{positions - padded:,}"),
        ("packing", manifest.pack),
        ("fill", f"{(positions - padded) / positions:.4%} of the places hold a document's token"),
        ("left over", f"{manifest.dropped_tokens:,} tokens that filled no row"),
        ("tokenizer", f"{manifest.vocab_size:,} tokens, {manifest.tokenizer_hash[:16]}"),
    ]
    for _, name, facts in _halves(manifest):
        lines.append((f"{name} documents", f"{facts.count:,}, {facts.tokens:,} tokens"))
    for count, why in (
        (manifest.num_short, "shorter than min_tokens"),
        (manifest.num_long, "longer than max_tokens"),
        (manifest.num_repeated, "nearly repeat an earlier one"),
        (manifest.num_skipped, "could not be read"),
    ):
        if count:
            lines.append(("left out", f"{count:,} documents, {why}"))
    return Table([Column(""), Column("", "wide")], [Row(line) for line in lines], "As the manifest has it.")


def _halves(manifest: Manifest) -> list[tuple[str, str, DocumentLengths]]:
    """Return (key, name, facts) of the training and the held-out documents, those that exist."""
    documents = manifest.documents
    return [(key, name, documents[key]) for key, name, _ in KINDS if key in documents and documents[key].count]


def _lengths(manifest: Manifest) -> list[Part]:
    halves = _halves(manifest)
    if not halves:
        return [Words("The manifest says nothing about documents.", warning=True)]
    rows = [
        Row([name, *(f"{value:,}" for value in (facts.count, facts.min, facts.median, facts.max, facts.tokens))])
        for _, name, facts in halves
    ]
    names = ("documents", "shortest", "median", "longest", "tokens")
    columns = [Column(""), *(Column(name, "number") for name in names)]
    drawn = picture(
        draw_lengths(manifest),
        "Two bar charts of documents and of their least tokens by length, training and held out",
        "Bars stand for lengths up to the power of two below them, and over half of it. Left: how many documents. "
        "Right: how many tokens they have at least, which is what a model reads. The line is the window.",
    )
    return [Table(columns, rows, "Lengths in tokens, begin and end tokens included."), drawn]


def draw_lengths(manifest: Manifest) -> Figure:
    """Return the picture of document lengths: documents and tokens by power of two."""
    figure = new_figure(3.6)
    left, right = figure.subplots(1, 2)
    halves = {key: dict(facts.histogram or ()) for key, _, facts in _halves(manifest)}
    edges = sorted({length for histogram in halves.values() for length in histogram})
    ticks = np.arange(len(edges))
    for axis, title, weigh in (
        (left, "documents", lambda length: 1),
        (right, "tokens, at least", lambda length: length // 2 + 1),
    ):
        tidy(axis, title, grid="y")
        for shift, (key, name, colour) in enumerate(k for k in KINDS if k[0] in halves):
            heights = [halves[key].get(length, 0) * weigh(length) for length in edges]
            axis.bar(ticks + 0.4 * (shift - 0.5), heights, 0.4, color=colour, label=name)
        axis.set_xticks(ticks, [f"{length:,}" for length in edges], rotation=45, ha="right", fontsize=8)
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylim(0, 3 * axis.dataLim.ymax)  # a third of a power of ten above the highest bar
        axis.axvline(np.interp(np.log2(manifest.window), np.log2(edges), ticks), color="black", linewidth=1)
        axis.set_xlabel("tokens of a document, up to")
    left.legend(frameon=False, fontsize=9)
    return figure


def _mixture(manifest: Manifest, rows: int) -> list[Part]:
    counts = drawn_rows(manifest, rows)
    whole = CorpusRows(
        weight=1.0, first_row=0, rows=manifest.rows, shard_rows=manifest.rows, tokens=manifest.tokens, parts=1
    )
    corpora = manifest.corpora or (whole,)
    tokens = [count * corpus.tokens / corpus.rows for count, corpus in zip(counts, corpora, strict=True)]
    weights = sum(corpus.weight for corpus in corpora)
    sources = _sources(manifest, len(corpora))
    lines = [
        Row(
            [
                name,
                f"{corpus.rows:,}",
                f"{corpus.weight / weights:.2%}",
                f"{drawn / sum(tokens):.2%}",
                f"{count:,}",
                f"{count / corpus.rows:.2f}",
            ]
        )
        for name, corpus, count, drawn in zip(sources, corpora, counts, tokens, strict=True)
    ]
    names = ("rows", "share asked for", "share drawn", "rows drawn", "epochs")
    table = Table(
        [Column("source"), *(Column(name, "number") for name in names)],
        lines,
        f"Of the first {rows:,} rows of a run. Shares are of tokens; epochs say how often each row is read.",
    )
    parts: list[Part] = [table]
    epochs = [count / corpus.rows for count, corpus in zip(counts, corpora, strict=True)]
    if again := [name for name, times in zip(sources, epochs, strict=True) if times > 4]:
        text = f"Source {', '.join(again)} is read more than four times: add text to it, or make its weight smaller."
        parts.insert(0, Words(text, warning=True))
    if len(corpora) > 1:
        parts.append(
            picture(
                _draw_shares(corpora, tokens, weights, sources),
                "Bars of the share of tokens asked for and drawn of each source",
                "Rows are whole, so that shares are met to less than one row after any number of rows.",
            )
        )
    return parts


def _sources(manifest: Manifest, count: int) -> list[str]:
    """Return what the page calls each corpus: its number in the recipe and its kind."""
    kinds = [source["kind"] for source in manifest.sources]
    return [f"{number} ({kinds[number]})" if count == len(kinds) else f"{number}" for number in range(count)]


def _draw_shares(
    corpora: Sequence[CorpusRows], tokens: Sequence[float], weights: float, sources: Sequence[str]
) -> Figure:
    figure = new_figure(1.2 + 0.5 * len(corpora))
    axis = figure.subplots()
    tidy(axis, "share of a run's tokens", grid="x")
    rows = np.arange(len(corpora))
    axis.barh(rows - 0.2, [corpus.weight / weights for corpus in corpora], 0.4, color=SKY, label="asked for")
    axis.barh(rows + 0.2, np.array(tokens) / sum(tokens), 0.4, color=BLUE, label="drawn")
    axis.set_yticks(rows, [plain(f"source {name}") for name in sources])
    axis.invert_yaxis()
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _skipped(manifest: Manifest) -> Table:
    rows = [Row([reason]) for reason in manifest.skipped[:50]]
    return Table([Column("reason", "wide")], rows, f"{len(rows)} of {manifest.num_skipped:,}.", compact=True)
