"""How far a run reads: claimed and effective length, and the best scale of each length beside W / L."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from e2ray.core.scales import row_scale
from e2ray.records.effective import Effective, LengthRow
from e2ray.records.scales import ScaleRow
from e2ray.report.frame.page import Column, Row, Table
from e2ray.report.frame.text import DASH, less, signed, whole
from e2ray.report.run_files import RunRecord, together
from e2ray.report.sections.section import Line, RunSection

R = TypeVar("R", ScaleRow, LengthRow)


def asked_retrieval(effective: Effective) -> bool:
    """Return whether an effective length was judged by retrieval, too, and not by NLL alone."""
    asked = effective.retrieval_lengths is not None
    return asked or any(row.retrieval is not None for row in effective.lengths)


def length_text(effective: Effective | None) -> str:
    """Return `1,024 (512 to 2,048)`, how far a run reads and its 95 % interval."""
    if effective is None or (effective.effective is None and not effective.lengths):
        return DASH
    if effective.effective is None:
        covered = effective.retrieval_lengths
        return "not even L" if covered is None or effective.lengths[0].context_length in covered else "none"
    low, high = effective.low, effective.high
    interval = "" if low is None or high is None else f" ({low:,} to {high:,})"
    return f"{effective.effective:,}{interval}"


def reach_table(records: Sequence[RunRecord]) -> Table:
    """Return the effective beside the claimed length of each run."""
    columns = [
        Column("run"), Column("claimed", "number"), Column("effective", "number"), Column("NLL may rise by", "number"),
        Column("retrieval at least", "number"),
    ]  # fmt: skip
    rows = []
    for record in records:
        read = record.effective
        if read is None:
            rows.append(Row([record.name, *[DASH] * 4], "faint"))
            continue
        least = f"{read.threshold:.1%}".replace("%", " %") if asked_retrieval(read) else "not asked"
        rows.append(Row([record.name, whole(read.claimed), length_text(read), f"{read.tolerance:g}", least]))
    caption = (
        "Claimed: the longest window measured. Effective, with its 95 % interval over documents: the longest up to "
        "which NLL at the best scale, chosen by the same documents, rises over the base window's by no more than the "
        "tolerance, in nats, and retrieval finds its share; where retrieval was asked, only lengths that it covers "
        "count."
    )
    return Table(columns, rows, caption)


def scales_table(records: Sequence[RunRecord]) -> Table:
    """Return for each length the best measured scale beside W / L, and whether the length counts as read."""
    columns = [
        Column("length W", "number"), Column("run"), Column("W/L", "number"), Column("best scale", "number"),
        Column("gain over W/L", "number"), Column("served at", "number"), Column("rise over L", "number"),
        Column("retrieval", "number"), Column("reads"),
    ]  # fmt: skip
    rows = []
    for length in sorted({window for record in records for window in record.windows}):
        for record in records:
            scale = _at(record.scales.lengths if record.scales else (), length)
            read = _at(record.effective.lengths if record.effective else (), length)
            cells = [
                *([_scale(scale.paper_scale), _scale(scale.scale), _gain(scale), _scale(row_scale(scale))]
                  if scale else [DASH] * 4),
                signed(read.rise, read.rise_low, read.rise_high) if read else DASH,
                DASH if not read or read.retrieval is None else f"{100 * read.retrieval:.0f} %",
                DASH if not read else "yes" if read.reads else "no",
            ]  # fmt: skip
            rows.append(Row([whole(length), record.name, *cells], "" if scale else "faint"))
    caption = (
        "Nats per token, with 95 % intervals over documents. Served at: the best scale where it is better than W/L "
        "beyond the spread of the documents, else W/L; export and generation use it. Reads: NLL holds here, and "
        "retrieval where it was asked; for the effective length no shorter one may fail, either."
    )
    return Table(columns, rows, caption, compact=True)


def _at(rows: Iterable[R], length: int) -> R | None:
    return next((row for row in rows if row.context_length == length), None)


def _scale(scale: float | None) -> str:
    return DASH if scale is None else f"{scale:g}"


def _gain(row: ScaleRow) -> str:
    """Return what the best scale gains over W / L: nothing where they are the same one."""
    if row.scale == row.paper_scale:
        return "0"
    return signed(row.gain, row.gain_low, row.gain_high)


def _diff(one: RunRecord, other: RunRecord) -> list[Line]:
    read = one.effective, other.effective
    claimed = (read[0].claimed if read[0] else None, read[1].claimed if read[1] else None)
    lengths = (read[0].effective if read[0] else None, read[1].effective if read[1] else None)
    comparable = together(one, other)
    lines = [("claimed length", whole(claimed[0]), whole(claimed[1]), less(claimed) if comparable else DASH)]
    by_nll = [each is not None and not asked_retrieval(each) for each in read]
    texts = [length_text(each) + (", by NLL alone" if alone else "") for each, alone in zip(read, by_nll, strict=True)]
    apart = less(lengths) if comparable and by_nll[0] == by_nll[1] else DASH
    return [*lines, ("effective length", texts[0], texts[1], apart)]


REACH = RunSection(
    "How far it reads", "reach", lambda records: [reach_table(records), scales_table(records)], diff=_diff
)
