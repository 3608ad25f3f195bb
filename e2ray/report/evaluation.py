"""The files that an evaluation leaves in a run's folder: tables, JSON and pictures, each whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from e2ray.config.base import SettingsError
from e2ray.evaluate.perplexity import Sums
from e2ray.evaluate.removed import scaling_of
from e2ray.records.effective import Effective
from e2ray.records.evaluation import Cell, Evaluation, Verdict
from e2ray.records.folders import RunFolder
from e2ray.records.lengths import DocumentRow, LengthCell
from e2ray.records.retrieval import Retrieval, RetrievalRow
from e2ray.records.scales import Scales
from e2ray.records.table import schema_of, table_of, write_table
from e2ray.report.frame.page import write_png
from e2ray.report.sections.lengths import draw_by_length
from e2ray.report.sections.retrieval import draw_retrieval
from e2ray.report.sections.surface import draw_evaluation


def write_evaluation(
    folder: str | Path, cells: Sequence[Cell], verdict: Verdict, *, missing_windows: Sequence[int] = ()
) -> None:
    """Write evaluation.json, evaluation.parquet and evaluation.png into a folder, each whole or not at all.

    Args:
        folder: The run's folder.
        cells: Rows of the surface.
        verdict: What `evaluate.verdict.verdict` says about them.
        missing_windows: Windows asked for that no document fills; drawn as missing rows.

    Raises:
        SettingsError: If there are no cells, or the folder cannot be written.
    """
    if not cells:
        raise SettingsError(f"{folder}: there are no measured cells to write; every window was left out")
    here = RunFolder(folder)
    write_table(here.table, table_of(Cell, cells))
    figure = draw_evaluation(
        cells,
        verdict.base_context_length,
        missing_windows=missing_windows,
        removed_scaling=scaling_of(verdict.removed_scaling),
        method=verdict.method,
    )
    write_png(here.picture, figure)
    Evaluation(rows=tuple(cells), verdict=verdict).write(here.evaluation)


def write_lengths(
    folder: Path,
    sums: Sequence[Sums],
    *,
    scales: Scales,
    effective: Effective,
    retrieval: Sequence[RetrievalRow],
    removed_scaling: str | None = None,
) -> None:
    """Write evaluation-documents.parquet, scales.json, effective.json and, where asked, retrieval.json and its picture.

    Args:
        folder: The run's folder.
        sums: NLL of each document in every cell.
        scales: As `evaluate.effective.scale_table` returns it.
        effective: As `evaluate.effective.effective_length` returns it.
        retrieval: Of both models; empty where none was asked.
        removed_scaling: Rope type that was removed from the base.
    """
    here, schema = RunFolder(folder), schema_of(DocumentRow)
    columns: dict[str, list[object]] = {name: [] for name in schema.names}
    for each in sums:
        count = len(each.documents)
        columns["model"] += [each.model] * count
        columns["window"] += [each.window] * count
        columns["scale"] += [each.scale] * count
        columns["document"] += each.documents.tolist()
        columns["nll"] += each.nll.tolist()
        columns["tokens"] += each.tokens.tolist()
    write_table(here.documents, pa.table(columns, schema=schema))
    scales.write(here.scales)
    effective.write(here.effective)
    for stale in (here.retrieval, here.retrieval_picture) if not retrieval else ():
        stale.unlink(missing_ok=True)
    if retrieval:
        Retrieval(rows=tuple(retrieval)).write(here.retrieval)
        write_png(here.retrieval_picture, draw_retrieval(retrieval, removed_scaling=removed_scaling))


def write_by_length(folder: Path, cells: Sequence[LengthCell], *, removed_scaling: str | None = None) -> None:
    """Write evaluation-lengths.parquet and .png into a run's folder; without cells, remove older ones.

    Args:
        folder: The run's folder.
        cells: As `evaluate.by_length.length_cells` returns them, of any models and scales.
        removed_scaling: Rope type that was removed from the base.
    """
    here = RunFolder(folder)
    if not cells:
        here.lengths.unlink(missing_ok=True)
        here.lengths_picture.unlink(missing_ok=True)
        return
    write_table(here.lengths, table_of(LengthCell, cells))
    write_png(here.lengths_picture, draw_by_length(cells, removed_scaling=removed_scaling))
