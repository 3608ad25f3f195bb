"""Answers found in long texts: by task, context length and depth."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float64
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from e2ray.config.retrieval import RetrievalSettings
from e2ray.evaluate.removed import base_name
from e2ray.records.retrieval import RetrievalRow
from e2ray.report.frame.drawing import colour_bar, new_figure, titled
from e2ray.report.frame.heat import heat_map
from e2ray.report.frame.page import Column, Part, Row, Table, Words, picture
from e2ray.report.frame.text import DASH, share, task_text, whole
from e2ray.report.run_files import RunRecord, together
from e2ray.report.sections.section import Line, RunSection

SAME_PROMPTS = ("digits", "seed")  # settings of retrieval that decide what one cell asks
Cells = dict[float | None, tuple[float, int]]  # depth -> answers found, trials


def asked_lengths(records: Sequence[RunRecord]) -> list[int]:
    """Return the context lengths at which retrieval was asked for or measured."""
    lengths = {row.context_length for record in records for row in record.retrieval}
    for record in records:
        evaluate = record.run.settings["evaluate"] or {}
        asked = evaluate.get("retrieval")
        if asked:
            lengths |= set(asked["context_lengths"] or evaluate["windows"] or ())
    return sorted(lengths)


def retrieval_table(records: Sequence[RunRecord]) -> Table:
    """Return the share of answers found by task and context length, over all depths."""
    lengths = asked_lengths(records)
    columns = [Column("task"), Column("run"), Column("model"), *(Column(whole(n), "number") for n in lengths)]
    rows = []
    for task in dict.fromkeys(row.task for record in records for row in record.retrieval):
        for record in records:
            for model in ("base", "tuned"):
                shares = [share(*_counts(_cells(record, task, length, model))) for length in lengths]
                called = base_name(record.removed_scaling) if model == "base" else model
                cells = [task_text(task), record.name, called, *shares]
                rows.append(Row(cells, "faint" if set(shares) == {DASH} else ""))
    caption = (
        "Share of answers found over all depths and trials, by context length in tokens, each read at scale W/L. "
        "Prompts are made of a run's own held-out text."
    )
    return Table(columns, rows, caption)


def draw_retrieval(
    rows: Sequence[RetrievalRow], *, context_lengths: Sequence[int] = (), removed_scaling: str | None = None
) -> Figure:
    """Return heat maps of the share of answers found by context length and depth: a row for a task, a column a model.

    Args:
        rows: Of both models.
        context_lengths: Lengths that have a column even without rows.
        removed_scaling: Rope type that was removed from the base.
    """
    tasks = list(dict.fromkeys(row.task for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    lengths = sorted({row.context_length for row in rows} | set(context_lengths))
    depths = {task: sorted({row.depth for row in rows if row.task == task}, key=_depth_key) for task in tasks}
    heights = [0.42 * len(depths[task]) + 0.9 for task in tasks]
    figure = new_figure(sum(heights) + 0.5, width=1.9 + len(models) * max(2.6, 0.62 * len(lengths) + 0.9))
    axes = figure.subplots(len(tasks), len(models), squeeze=False, height_ratios=heights)
    norm = Normalize(0, 1)
    for line, task in zip(axes, tasks, strict=True):
        for axis, model in zip(line, models, strict=True):
            asked = [row for row in rows if (row.task, row.model) == (task, model)]
            shares = {(row.depth, row.context_length): row.found / row.trials for row in asked}
            values = np.array([[shares.get((depth, n), np.nan) for n in lengths] for depth in depths[task]])
            heat_map(
                axis, values, norm, partial(_cell_text, values), size=8,
                rows=["all" if depth is None else f"{depth:.0%}" for depth in depths[task]],
                columns=[f"{length:,}" for length in lengths],
            )  # fmt: skip
            axis.tick_params(labelsize=8, labelbottom=bool(task == tasks[-1]))
            called = base_name(removed_scaling) if model == "base" else model
            titled(axis, f"{called}: {task.replace('_', ' ')}", 10)
            axis.set_ylabel("depth")
            axis.invert_yaxis()  # the beginning of a text above
    for axis in axes[-1]:
        axis.set_xlabel("context length (tokens)")
    colour_bar(figure, axes.ravel().tolist(), norm, "share of answers found", pad=0.02)
    return figure


def _cell_text(values: Float64[np.ndarray, "depths lengths"], row: int, column: int) -> str:
    return f"{values[row, column]:.0%}"


def _depth_key(depth: float | None) -> float:
    return -1.0 if depth is None else depth


def _parts(records: Sequence[RunRecord]) -> list[Part]:
    lengths = asked_lengths(records)
    if not lengths:
        return []
    parts: list[Part] = []
    for record in records:
        if not record.retrieval:
            asked = (record.run.settings["evaluate"] or {}).get("retrieval")
            reason = "retrieval was asked and could not be measured" if asked else "no retrieval was asked"
            reason = reason if record.cells else "has no evaluation"
            parts.append(Words(f"{record.name}: {reason}; its cells are missing.", warning=True))
            continue
        figure = draw_retrieval(record.retrieval, context_lengths=lengths, removed_scaling=record.removed_scaling)
        caption = (
            f"{record.name}: share of answers found by context length and depth, the fraction of the text before "
            "what is asked for. Hatched: not measured, since the length holds no such prompt or was not asked for."
        )
        alt = f"Answers that {record.name} found, by task, context length and depth"
        parts.append(picture(figure, alt, caption))
    return [*parts, retrieval_table(records)] if any(record.retrieval for record in records) else parts


def _diff(one: RunRecord, other: RunRecord) -> list[Line]:
    """Return the shares found, their differences formed over the cells that both runs have."""
    comparable = together(one, other) and not _other_prompts(one, other)
    lines = []
    for task, length in _asked(one, other):
        left, right = (_cells(record, task, length) for record in (one, other))
        both = left.keys() & right.keys()
        apart = DASH
        if comparable and both:
            left, right = ({depth: cells[depth] for depth in both} for cells in (left, right))
            before, after = (found / trials for found, trials in map(_counts, (left, right)))
            apart = f"{100 * (after - before):+.0f} points"
        texts = [share(*_counts(cells)) for cells in (left, right)]
        lines.append((f"found, {task_text(task)} at {length:,} tokens", texts[0], texts[1], apart))
    return lines


def _undiffered(one: RunRecord, other: RunRecord) -> list[str]:
    if not (one.retrieval and other.retrieval):
        return []
    if apart := _other_prompts(one, other):
        return [f"No difference of retrieval is formed, other prompts were asked: {apart}."]
    alone: list[str] = []
    partly: list[str] = []
    for task, length in _asked(one, other):
        left, right = (_cells(record, task, length).keys() for record in (one, other))
        if left and right and left != right:
            (partly if left & right else alone).append(f"{task_text(task)} at {length:,}")
    return [
        f"{what} ({', '.join(names)})."
        for what, names in (
            ("No difference of retrieval is formed where the runs have no depth in common", alone),
            ("Retrieval counts only the depths that both runs have where one has more", partly),
        )
        if names
    ]


def _asked(one: RunRecord, other: RunRecord) -> list[tuple[str, int]]:
    """Return (task, context length) of all that either run was asked, tasks in the order of the first that has them."""
    rows = [row for record in (one, other) for row in record.retrieval if row.model == "tuned"]
    tasks = list(dict.fromkeys(row.task for row in rows))
    return sorted({(row.task, row.context_length) for row in rows}, key=lambda key: (tasks.index(key[0]), key[1]))


def _cells(record: RunRecord, task: str, length: int, model: str = "tuned") -> Cells:
    return {
        row.depth: (row.found, row.trials)
        for row in record.retrieval
        if (row.model, row.task, row.context_length) == (model, task, length) and row.trials
    }


def _counts(cells: Cells) -> tuple[float, int]:
    return sum(found for found, _ in cells.values()), sum(trials for _, trials in cells.values())


def _other_prompts(one: RunRecord, other: RunRecord) -> str:
    """Return the settings of retrieval by which the runs answered different prompts in the same cells, or nothing."""
    values = []
    for record in (one, other):
        asked = (record.run.settings["evaluate"] or {}).get("retrieval") or {}
        values.append({key: asked.get(key, RetrievalSettings.model_fields[key].default) for key in SAME_PROMPTS})
    left, right = values
    return ", ".join(
        f"evaluate.retrieval.{key} {left[key]} and {right[key]}" for key in SAME_PROMPTS if left[key] != right[key]
    )


RETRIEVAL = RunSection("Retrieval", "retrieval", _parts, diff=_diff, undiffered=_undiffered)
