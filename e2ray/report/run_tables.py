"""The tables of a report on runs: a row for each run, so that figures stand below each other."""

from collections.abc import Callable, Sequence
from typing import Any

from e2ray.config.places import public
from e2ray.evaluate.removed import base_name
from e2ray.report.page import Column, Row, Table
from e2ray.report.run_files import RunRecord, difference
from e2ray.report.run_folder import printable
from e2ray.report.run_terms import (
    DASH,
    asked_retrieval,
    cost,
    difference_text,
    differing,
    length_text,
    nll_text,
    score_text,
    setting_text,
    share_text,
    signed_text,
    time_text,
    tokens_text,
)
from e2ray.report.study_terms import settings_words


def runs_table(records: Sequence[RunRecord]) -> Table:
    """Return what each run is: its state, its base model, its draws."""
    columns = [
        Column("run"), Column("state"), Column("base model"), Column("base length L", "number"),
        Column("training window", "number"), Column("draws", "wide"), Column("seed", "number"), Column("commit"),
    ]  # fmt: skip
    rows = []
    for record in records:
        settings = record.run.settings
        model, commit = settings["model"], (record.environment or {}).get("commit")
        rows.append(
            Row(
                [
                    record.name,
                    record.run.state,
                    printable(public(model["path"])) if "path" in model else f"built, {model['num_layers']} layers",
                    tokens_text(record.base_context_length if record.cells else model["base_context_length"]),
                    tokens_text(settings["data"]["window"]),
                    settings_words({"positions": settings["positions"]}),
                    str(settings["seed"]),
                    printable(commit[:8] + commit[40:]) if commit else DASH,
                ]
            )
        )
    return Table(
        columns, rows, "Lengths in tokens. The training window is all that a run ever saw at once.", compact=True
    )


def nll_table(records: Sequence[RunRecord], missing: Sequence[RunRecord] = ()) -> Table:
    """Return NLL by window of runs that may be compared.

    Args:
        records: One group of `comparable`; differences are formed against the first.
        missing: Runs without an evaluation, which have rows of dashes.
    """
    first, several = records[0], len(records) > 1
    name = base_title(records)
    columns = [
        Column("window W", "number"), Column("run"), Column("tuned at W/L", "number"),
        *([Column(f"minus {first.name}", "number")] if several else []),
        Column(f"minus {name} at 1", "number"), Column("tuned at best", "number"),
        Column(f"{name} at 1", "number"), Column(f"{name} at W/L", "number"),
    ]  # fmt: skip
    rows = []
    for window in sorted({window for record in records for window in record.windows}):
        for record in records:
            cell, best = record.cell("tuned", window), record.best("tuned", window)
            base = record.cell("base", window, 1.0)
            compared = difference((record, cell), (first, first.cell("tuned", window)))
            against = "" if record is first else difference_text(compared)
            rows.append(
                Row(
                    [
                        tokens_text(window),
                        record.name,
                        nll_text(cell),
                        *([against] if several else []),
                        difference_text(difference((record, cell), (record, base))),
                        f"{nll_text(best, spread=False)} at {best.scale:g}" if best else DASH,
                        nll_text(base, spread=False),
                        nll_text(record.cell("base", window), spread=False),
                    ]
                )
            )
        rows += [Row([tokens_text(window), record.name, *[DASH] * (len(columns) - 2)], "faint") for record in missing]
    caption = (
        "NLL, nats per token, with 95 % intervals over documents; W in tokens. At 1, W/L and best: the scales. "
        "Differences are of the tuned model at W/L, formed document by document: an interval without 0 tells the two "
        "apart, even where those of both overlap."
    ) + base_note(records)
    return Table(columns, rows, caption, compact=True)


def base_title(records: Sequence[RunRecord]) -> str:
    """Return what a column of the base is called where several runs stand below each other."""
    names = {base_name(record.removed_scaling) for record in records if record.cells}
    return names.pop() if len(names) == 1 else "base"


def base_note(records: Sequence[RunRecord]) -> str:
    """Return behind a caption whose base is not the checkpoint itself; nothing where every one is."""
    return "".join(
        f" What is called base of {record.name} is the {base_name(record.removed_scaling)}."
        for record in records
        if record.removed_scaling
    )


def reach_table(records: Sequence[RunRecord]) -> Table:
    """Return the effective beside the claimed length of each run."""
    columns = [
        Column("run"), Column("claimed", "number"), Column("effective", "number"), Column("NLL may rise by", "number"),
        Column("retrieval at least", "number"),
    ]  # fmt: skip
    rows = []
    for record in records:
        found = record.effective
        if found is None:
            rows.append(Row([record.name, *[DASH] * 4], "faint"))
            continue
        rows.append(
            Row(
                [
                    record.name,
                    tokens_text(found["claimed"]),
                    length_text(found),
                    f"{found['tolerance']:g}",
                    f"{found['threshold']:.1%}".replace("%", " %") if asked_retrieval(found) else "not asked",
                ]
            )
        )
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
    lengths = sorted({window for record in records for window in record.windows})
    for length in lengths:
        for record in records:
            scale, read = _at(record.scales, length), _at(record.effective, length)
            rows.append(
                Row(
                    [
                        tokens_text(length),
                        record.name,
                        f"{scale['paper_scale']:g}" if scale else DASH,
                        f"{scale['scale']:g}" if scale else DASH,
                        _gain(scale) if scale else DASH,
                        f"{scale['served']:g}" if scale else DASH,
                        signed_text(read["rise"], read["rise_low"], read["rise_high"]) if read else DASH,
                        DASH if not read or read["retrieval"] is None else _percent(read["retrieval"]),
                        DASH if not read else "yes" if read["reads"] else "no",
                    ],
                    "" if scale else "faint",
                )
            )
    caption = (
        "Nats per token, with 95 % intervals over documents. Served at: the best scale where it is better than W/L "
        "beyond the spread of the documents, else W/L; export and generation use it. Reads: NLL holds here, and "
        "retrieval where it was asked; for the effective length no shorter one may fail, either."
    )
    return Table(columns, rows, caption, compact=True)


def _at(found: dict[str, Any] | None, length: int) -> dict[str, Any] | None:
    return next((row for row in (found or {"lengths": []})["lengths"] if row["context_length"] == length), None)


def _gain(row: dict[str, Any]) -> str:
    """Return what the best scale gains over W / L: nothing where they are the same one."""
    if row["scale"] == row["paper_scale"]:
        return "0"
    return signed_text(row["gain"], row["gain_low"], row["gain_high"])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def asked_lengths(records: Sequence[RunRecord]) -> list[int]:
    """Return the context lengths at which retrieval was asked for or measured."""
    lengths = {row["context_length"] for record in records for row in record.retrieval}
    for record in records:
        evaluate = record.run.settings["evaluate"] or {}
        asked = evaluate.get("retrieval")
        if asked:
            lengths |= set(asked["context_lengths"] or evaluate["windows"] or ())
    return sorted(lengths)


def retrieval_table(records: Sequence[RunRecord]) -> Table:
    """Return the share of answers found by task and context length, over all depths."""
    lengths = asked_lengths(records)
    columns = [Column("task"), Column("run"), Column("model"), *(Column(tokens_text(n), "number") for n in lengths)]
    rows = []
    for task in dict.fromkeys(row["task"] for record in records for row in record.retrieval):
        for record in records:
            for model in ("base", "tuned"):
                shares = [_share(record, task, model, length) for length in lengths]
                called = base_name(record.removed_scaling) if model == "base" else model
                cells = [printable(task.replace("_", " ")), record.name, called, *shares]
                rows.append(Row(cells, "faint" if all(share == DASH for share in shares) else ""))
    caption = (
        "Share of answers found over all depths and trials, by context length in tokens, each read at scale W/L. "
        "Prompts are made of a run's own held-out text."
    )
    return Table(columns, rows, caption)


def _share(record: RunRecord, task: str, model: str, length: int) -> str:
    key = (task, model, length)
    rows = [row for row in record.retrieval if (row["task"], row["model"], row["context_length"]) == key]
    return share_text(sum(row["found"] for row in rows), sum(row["trials"] for row in rows))


def suites_table(records: Sequence[RunRecord]) -> Table:
    """Return the scores of the suites, base beside tuned; a task without any is a row of dashes."""
    columns = [
        Column("task"), Column("metric"), Column("run"), Column(base_title(records), "number"),
        Column("tuned", "number"),
        Column("tuned - base", "number"), Column("samples", "number"), Column("truncated", "number"),
    ]  # fmt: skip
    rows = []
    scores = {
        (row["task"], metric_text(row), record.name, row["model"]): row for record in records for row in record.suites
    }
    scored = {task for task, *_ in scores}
    without = [(row["task"], DASH) for record in records for row in record.suites_missing if row["task"] not in scored]
    for task, metric in dict.fromkeys([*(key[:2] for key in scores), *without]):
        for record in records:
            base, tuned = (scores.get((task, metric, record.name, model)) for model in ("base", "tuned"))
            both = base and tuned and None not in (base["value"], tuned["value"])
            rows.append(
                Row(
                    [
                        printable(str(task)),
                        metric,
                        record.name,
                        score_text(base),
                        score_text(tuned),
                        signed_text(tuned["value"] - base["value"] if both and base and tuned else None),
                        tokens_text(_samples(tuned or base or {})),
                        tokens_text((tuned or base or {}).get("truncated")),
                    ],
                    "" if base or tuned else "faint",
                )
            )
    caption = "± is one standard error, as the suite gives it. Truncated: items that were cut to fit." + base_note(
        records
    )
    return Table(columns, rows, caption)


def metric_text(row: dict[str, Any]) -> str:
    """Return a score's metric, and behind it the filter of answers where there is one."""
    name = row.get("filter")
    return printable(str(row["metric"]) + (f", {name}" if name and name != "none" else ""))


def _samples(row: dict[str, Any]) -> int | None:
    return row.get("samples", row.get("documents"))


def cost_table(records: Sequence[RunRecord]) -> Table:
    """Return what each run has taken."""
    columns = [
        Column("run"), Column("steps", "number"), Column("tokens", "number"), Column("training", "number"),
        Column("tokens per second", "number"), Column("peak memory", "number"), Column("workers", "number"),
        Column("hardware"), Column("whole run", "number"),
    ]  # fmt: skip
    rows = []
    for record in records:
        found = cost(record)
        rows.append(
            Row(
                [
                    record.name,
                    tokens_text(found.steps),
                    tokens_text(found.tokens),
                    time_text(found.train_s),
                    tokens_text(found.tokens_per_second),
                    DASH if found.peak_mib is None else f"{found.peak_mib:,.0f} MiB",
                    str(record.run.settings["cluster"]["num_workers"]),
                    _hardware(record),
                    time_text(found.whole_s),
                ]
            )
        )
    caption = (
        "Training: from the first update to the last, without start-up and evaluation. Peak memory is that of the "
        "first worker: its GPU's, or on CPUs its process's. Whole run: the command that ended the run, all stages in "
        "it; those whose results stood already, such as a shared base, took no time."
    )
    return Table(columns, rows, caption)


def _hardware(record: RunRecord) -> str:
    found = (record.environment or {}).get("hardware")
    if not found:
        return DASH
    gpus = found.get("gpus") or []
    return f"{len(gpus)} x {printable(gpus[0])}" if gpus else f"{found['cpus']} CPUs"


def settings_table(records: Sequence[RunRecord], *, shown: Callable[[Any], Any] = lambda value: value) -> Table | None:
    """Return the settings that differ between runs, None where none do; `shown` says how a value is written."""
    found = differing(records)
    if not found:
        return None
    columns = [Column("setting"), *(Column(record.name) for record in records)]
    rows = [
        Row([printable(path), *(setting_text(shown(value)) for value in values)], "" if decides else "faint")
        for path, values, decides in found
    ]
    caption = (
        "Dotted paths are those of `--set`; a dash: the run has no such setting. Faint: where and how fast it ran, "
        "versions and hardware, which decide no result."
    )
    return Table(columns, rows, caption)
