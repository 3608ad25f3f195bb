"""The files that an evaluation leaves in a run's folder: tables, JSON and pictures, each whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from e2ray.config.base import SettingsError
from e2ray.evaluate.by_length import LengthCell
from e2ray.evaluate.perplexity import Cell, Sums
from e2ray.evaluate.removed import scaling_of
from e2ray.files import write_sealed
from e2ray.records.table import write_table
from e2ray.report.frame.page import write_png
from e2ray.report.run_files import LENGTHS, LENGTHS_SCHEMA, SCHEMA, SUMS, SUMS_SCHEMA
from e2ray.report.sections.lengths import draw_by_length
from e2ray.report.sections.retrieval import draw_retrieval
from e2ray.report.sections.surface import draw_evaluation


def write_evaluation(
    folder: str | Path, cells: Sequence[Cell], verdict: Mapping[str, Any], *, missing_windows: Sequence[int] = ()
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
    folder = Path(folder)
    rows = [cell.row() for cell in cells]
    write_table(folder / "evaluation.parquet", pa.Table.from_pylist(rows, schema=SCHEMA))
    scaling, length = scaling_of(verdict.get("removed_scaling")), verdict["base_context_length"]
    named = {"removed_scaling": scaling, "method": verdict["method"]}
    figure = draw_evaluation(cells, length, missing_windows=missing_windows, **named)
    write_png(folder / "evaluation.png", figure)
    write_sealed(folder / "evaluation.json", {"rows": rows, "verdict": dict(verdict)})


def write_lengths(
    folder: Path,
    sums: Sequence[Sums],
    *,
    scales: Mapping[str, Any],
    effective: Mapping[str, Any],
    retrieval: Sequence[Mapping[str, Any]],
    removed_scaling: str | None = None,
) -> None:
    """Write evaluation-documents.parquet, scales.json, effective.json and, where asked, retrieval.json and its picture.

    Args:
        folder: The run's folder.
        sums: NLL of each document in every cell.
        scales: As `evaluate.effective.scale_table` returns it.
        effective: As `evaluate.effective.effective_length` returns it.
        retrieval: Rows {model, task, context_length, depth, scale, found, trials, tokens}; empty where none was asked.
        removed_scaling: Rope type that was removed from the base.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SUMS_SCHEMA.names}
    for each in sums:
        count = len(each.documents)
        columns["model"] += [each.model] * count
        columns["window"] += [each.window] * count
        columns["scale"] += [each.scale] * count
        columns["document"] += each.documents.tolist()
        columns["nll"] += each.nll.tolist()
        columns["tokens"] += each.tokens.tolist()
    write_table(folder / SUMS, pa.table(columns, schema=SUMS_SCHEMA))
    write_sealed(folder / "scales.json", dict(scales))
    write_sealed(folder / "effective.json", dict(effective))
    for stale in ("retrieval.json", "retrieval.png") if not retrieval else ():
        (folder / stale).unlink(missing_ok=True)
    if retrieval:
        write_sealed(folder / "retrieval.json", {"rows": [dict(row) for row in retrieval]})
        write_png(folder / "retrieval.png", draw_retrieval(retrieval, removed_scaling=removed_scaling))


def write_by_length(folder: Path, cells: Sequence[LengthCell], *, removed_scaling: str | None = None) -> None:
    """Write evaluation-lengths.parquet and .png into a run's folder; without a cell, remove those of an earlier time.

    Args:
        folder: The run's folder.
        cells: As `evaluate.by_length.length_cells` returns them, of any models and scales.
        removed_scaling: Rope type that was removed from the base.
    """
    table = folder / LENGTHS
    if not cells:
        table.unlink(missing_ok=True)
        table.with_suffix(".png").unlink(missing_ok=True)
        return
    write_table(table, pa.Table.from_pylist([cell.row() for cell in cells], schema=LENGTHS_SCHEMA))
    write_png(table.with_suffix(".png"), draw_by_length(cells, removed_scaling=removed_scaling))
