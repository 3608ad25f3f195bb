"""What an evaluation says about lengths, as files: sums per document, best scales, effective length, retrieval.

The heat map shows the share of answers found by context length and depth, one panel for each task and model. What was
not asked is hatched, never shown as 0.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from e2ray.config.base import SettingsError
from e2ray.evaluate.perplexity import Cell, Sums
from e2ray.evaluate.removed import base_name
from e2ray.files import atomic_path, write_sealed
from e2ray.report.drawing import missing_cell, new_figure
from e2ray.report.evaluation import INK, SURFACE_COLOURS
from e2ray.report.tables import read_table, write_table

SUMS_SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("window", pa.int64(), nullable=False),
        pa.field("scale", pa.float64(), nullable=False),
        pa.field("document", pa.int64(), nullable=False),
        pa.field("nll", pa.float64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
    ]
)


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
    write_table(folder / "evaluation-documents.parquet", pa.table(columns, schema=SUMS_SCHEMA))
    write_sealed(folder / "scales.json", dict(scales))
    write_sealed(folder / "effective.json", dict(effective))
    for stale in ("retrieval.json", "retrieval.png") if not retrieval else ():
        (folder / stale).unlink(missing_ok=True)
    if retrieval:
        write_sealed(folder / "retrieval.json", {"rows": [dict(row) for row in retrieval]})
        with atomic_path(folder / "retrieval.png") as aside:
            draw_retrieval(retrieval, removed_scaling=removed_scaling).savefig(aside, format="png")


def read_sums(path: Path, cells: Sequence[Cell]) -> list[Sums]:
    """Return each document's sums in the cells of an evaluation, from its evaluation-documents.parquet.

    Args:
        path: The file.
        cells: Of the same evaluation; they know the stride.

    Raises:
        SettingsError: If it cannot be read, or holds other cells or documents than those.
    """
    columns = read_table(path, SUMS_SCHEMA).to_pydict()
    places: dict[tuple[str, int, float], list[int]] = {}
    for place, key in enumerate(zip(columns["model"], columns["window"], columns["scale"], strict=True)):
        places.setdefault(key, []).append(place)
    found = []
    for each in cells:
        here = places.pop((each.model, each.window, each.scale), [])
        documents, nll, tokens = ([columns[name][place] for place in here] for name in ("document", "nll", "tokens"))
        if (len(here), sum(tokens)) != (each.documents, each.tokens):
            raise SettingsError(f"{path}: is of another evaluation than evaluation.json beside it")
        found.append(
            Sums(
                model=each.model,
                window=each.window,
                scale=each.scale,
                stride=each.stride,
                documents=np.array(documents),
                nll=np.array(nll),
                tokens=np.array(tokens),
            )
        )
    return found


def draw_retrieval(
    rows: Sequence[Mapping[str, Any]], *, context_lengths: Sequence[int] = (), removed_scaling: str | None = None
) -> Figure:
    """Return heat maps of the share of answers found by context length and depth: a row for a task, a column a model.

    Args:
        rows: {model, task, context_length, depth, found, trials}; `depth` is None where a task has none.
        context_lengths: Lengths that have a column whether or not a row is of them.
        removed_scaling: Rope type that was removed from the base.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    lengths = sorted({row["context_length"] for row in rows} | set(context_lengths))
    depths = {task: sorted({row["depth"] for row in rows if row["task"] == task}, key=_depth_key) for task in tasks}
    heights = [0.42 * len(depths[task]) + 0.9 for task in tasks]
    figure = new_figure(sum(heights) + 0.5, width=1.9 + len(models) * max(2.6, 0.62 * len(lengths) + 0.9))
    axes = figure.subplots(len(tasks), len(models), squeeze=False, height_ratios=heights, sharex=True)
    norm = Normalize(0, 1)
    for line, task in zip(axes, tasks, strict=True):
        for axis, model in zip(line, models, strict=True):
            found = {
                (row["context_length"], row["depth"]): row
                for row in rows
                if (row["task"], row["model"]) == (task, model)
            }
            _draw_heat(axis, found, lengths, depths[task], norm)
            called = base_name(removed_scaling) if model == "base" else model
            axis.set_title(f"{called}: {task.replace('_', ' ')}", loc="left", fontsize=10, fontweight="bold", color=INK)
    for axis in axes[-1]:
        axis.set_xlabel("context length (tokens)")
    bar = figure.colorbar(ScalarMappable(norm, SURFACE_COLOURS), ax=axes.ravel().tolist(), shrink=0.8, pad=0.02)
    bar.set_label("share of answers found")
    bar.outline.set_visible(False)
    return figure


def _depth_key(depth: float | None) -> float:
    return -1.0 if depth is None else depth


def _draw_heat(
    axis: Any, found: Mapping[Any, Mapping[str, Any]], lengths: Sequence[int], depths: Sequence[float | None], norm: Any
) -> None:
    for line, depth in enumerate(depths):
        for column, length in enumerate(lengths):
            row = found.get((length, depth))
            if row is None:
                missing_cell(axis, column, line)
                continue
            share = row["found"] / row["trials"]
            axis.imshow(
                [[share]],
                extent=(column - 0.5, column + 0.5, line + 0.5, line - 0.5),
                norm=norm,
                cmap=SURFACE_COLOURS,
                aspect="auto",
            )
            colour = "white" if share > 0.55 else INK
            axis.text(column, line, f"{share:.0%}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xlim(-0.5, len(lengths) - 0.5)
    axis.set_ylim(len(depths) - 0.5, -0.5)
    axis.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=8)
    axis.set_yticks(range(len(depths)), ["all" if depth is None else f"{depth:.0%}" for depth in depths], fontsize=8)
    axis.set_ylabel("depth")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
