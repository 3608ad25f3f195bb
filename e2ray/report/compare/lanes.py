"""What the page on a comparison says of its lanes: NLL, differences, who is best, retrieval, cost, what is missing."""

from collections.abc import Mapping, Sequence

from e2ray.config.compare import UNTOUCHED
from e2ray.report.compare.picture import draw
from e2ray.report.compare.summary import NAMES, PAPER, YARN, Compared, LaneRow
from e2ray.report.frame.page import Column, Part, Point, Points, Row, Table, Words, picture
from e2ray.report.frame.section import Section
from e2ray.report.frame.text import task_text, whole

MISSING = "missing"
Spread = Mapping[str, float | None]


def lane_table(titles: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], caption: str) -> Table:
    """Return a table with a row for each lane: its name, then numbers."""
    columns = [Column("lane"), *(Column(title, "number") for title in titles)]
    return Table(columns, [Row([name, *cells]) for name, cells in rows], caption, compact=True)


def spread_text(value: Spread, *, sign: bool = False) -> str:
    """Return `3.412 ± 0.011`, a mean and half of its interval over seeds."""
    mean, half = value["mean"], value["half"]
    if mean is None:
        return MISSING
    return (f"{mean:+.3f}" if sign else f"{mean:.3f}") + ("" if half is None else f" ± {half:.3f}")


def apart_text(mean: float | None, low: float | None, high: float | None) -> str:
    """Return `+0.150 [+0.140, +0.160]`, a difference and its interval over documents."""
    if mean is None:
        return MISSING
    return f"{mean:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")


def _nll(found: Compared) -> list[Part]:
    protocol = found.protocol
    caption = (
        f"NLL, nats per token, by window, each lane at the scale that it is served with: windows slide by "
        f"{protocol['stride']} tokens over the same {protocol['tokens']:,} tokens of {protocol['documents']} held-out "
        f"documents; {protocol['bos']}. ± is half of the 95 % interval over seeds (Student's t), where a lane has "
        "several."
    )
    if found.has("best"):
        caption += (
            f" {NAMES['best']} trains at the learning rate and for the objective that its study has found, all others "
            "at the recipe's or their own."
        )
    rows = [
        (
            row["name"],
            [
                *(spread_text(row["nll"][str(window)]) for window in found.windows),
                spread_text(row["long"]),
                spread_text(row["short"], sign=True),
            ],
        )
        for row in found.rows
    ]
    return [
        picture(
            draw(found.rows, found.base_context_length, found.windows),
            "NLL by window of every lane, and NLL at L against the mean beyond it",
            "Left: every lane at the scale that it is served with; the dotted line is L. Right: what a lane costs at L "
            "against what it reads beyond, lower left is better.",
        ),
        lane_table([*map(whole, found.windows), "beyond L", "short rise"], rows, caption),
    ]


def _over_paper(found: Compared) -> list[Part]:
    if not found.has(PAPER) or len(found.rows) < 2:
        return []
    rows = [
        (row["name"], [apart_text(*(row["nll"][str(w)][key] for key in ("over_paper", "low", "high")))
                       for w in found.windows])
        for row in found.rows
        if row["lane"] != PAPER
    ]  # fmt: skip
    return [lane_table([*map(whole, found.windows)], rows, NEGATIVE)]


def _over_yarn(found: Compared) -> list[Part]:
    if not found.has(YARN) or not found.trained:
        return []
    rows = [
        (row["name"], [apart_text(**row["nll"][str(w)]["over_yarn"]) for w in found.windows]) for row in found.trained
    ]
    return [lane_table([*map(whole, found.windows)], rows, NEGATIVE)]


def _winners(found: Compared) -> list[Part]:
    names = _names(found.rows)
    rows = []
    for best in found.best:
        if best["lane"] is None:
            rows.append(Row([whole(best["window"]), *[MISSING] * 5]))
            continue
        told = {None: "one document", True: "yes", False: "no"}[best["apart"]]
        behind = ["none", "", ""] if best["next"] is None else [names[best["next"]], apart_text(**best["behind"]), told]
        rows.append(Row([whole(best["window"]), names[best["lane"]], f"{best['nll']:.3f}", *behind]))
    columns = [
        Column("window", "number"), Column("best lane"), Column("NLL", "number"), Column("next lane"),
        Column("behind by", "number"), Column("told apart"),
    ]  # fmt: skip
    caption = (
        "The best lane of each window, how far the next one is behind it, and whether the two are told apart (95 % "
        "over documents)."
    )
    return [Table(columns, rows, caption)] if rows else []


def _unscaled(found: Compared) -> list[Part]:
    rows = []
    for row in found.rows:
        values = [row["nll"][str(window)]["unscaled"] for window in found.windows]
        if row["train_s"] is not None or row["lane"] == UNTOUCHED:
            rows.append((row["name"], [MISSING if value is None else f"{value:.3f}" for value in values]))
    caption = f"Does a lane read past {found.base_context_length:,} tokens unscaled?"
    return [lane_table([*map(whole, found.windows)], rows, caption)]


def _retrieval(found: Compared) -> list[Part]:
    parts: list[Part] = []
    for task in dict.fromkeys(task for row in found.rows for task in row["retrieval"]):
        lengths = sorted({int(length) for row in found.rows for length in row["retrieval"].get(task, {})})
        rows = []
        for row in found.rows:
            shares = row["retrieval"].get(task, {})
            cells = (shares.get(str(length)) for length in lengths)
            told = [MISSING if c is None else f"{c['share']:.0%} ({c['low']:.0%} to {c['high']:.0%})" for c in cells]
            rows.append((row["name"], told))
        caption = (
            f"{task_text(task).capitalize()}: share found, by context length, and its 95 % interval (Wilson) as if all "
            "prompts were independent; the same texts stand behind all depths and seeds."
        )
        parts.append(lane_table([*map(whole, lengths)], rows, caption))
    return parts


def _cost(found: Compared) -> list[Part]:
    if not found.trained:
        return []
    rows = []
    for row in found.trained:
        memory = MISSING if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        taken = [whole(row["tokens"]), f"{row['train_s']:.0f}", f"{row['step_s']:.3f}", memory]
        rows.append((row["name"], [str(len(row["seeds"])), *taken]))
    titles = ["seeds", "tokens", "seconds", "seconds per step", "peak memory, MiB"]
    caption = "What training took, each seed; memory is the whole process's, interpreter and libraries included."
    return [lane_table(titles, rows, caption)]


def _missing(found: Compared) -> list[Part]:
    lines = found.protocol["missing"]
    return [Words("What is missing:"), Points([Point("", line) for line in lines])] if lines else []


def _not_measured(found: Compared) -> list[Point]:
    lines = len(found.protocol["missing"])
    text = f"{lines} line{'s' if lines > 1 else ''} at the end of this page say what has no figure, and why."
    return [Point("Not all was measured:", text, warning=True)] if lines else []


def _findings(found: Compared) -> list[Point]:
    """Return the best lane of each window, and how the best trained lane stands against YaRN and the paper's preset."""
    names, points = _names(found.rows), []
    for best in found.best:
        head = f"At {whole(best['window'])} tokens"
        if best["lane"] is None:
            points.append(Point(head, "nothing was measured.", warning=True))
            continue
        text = f"lowest is {best['nll']:.3f}: {names[best['lane']]}."
        if best["next"] is not None:
            verdict = {None: "spread unknown", True: "told apart", False: "not told apart"}[best["apart"]]
            text += f" Next, {verdict}, {apart_text(**best['behind'])}: {names[best['next']]}."
        points.append(Point(head, text))
    if best_row := min((r for r in found.trained if r["long"]["mean"] is not None), key=_beyond, default=None):
        text = (
            f"the lowest mean of a trained lane is {spread_text(best_row['long'])}, at L "
            f"{spread_text(best_row['short'], sign=True)}: {best_row['name']}."
        )
        points.append(Point("Beyond L", text))
    return points


def _beyond(row: LaneRow) -> float:
    return float(row["long"]["mean"])


def _names(rows: Sequence[LaneRow]) -> dict[str, str]:
    return {row["lane"]: row["name"] for row in rows}


NEGATIVE = "Nats per token, and the 95 % interval over documents; negative is better."
SECTIONS: tuple[Section[Compared], ...] = (
    Section("NLL by window", "nll", _nll, _findings),
    Section(f"NLL minus that of {NAMES[PAPER]}", "over-paper", _over_paper),
    Section(f"NLL of trained lanes minus that of {NAMES[YARN]}", "over-yarn", _over_yarn),
    Section("The best lane of each window", "best", _winners),
    Section("Retrieval", "retrieval", _retrieval),
    Section("Cost", "cost", _cost),
    Section("NLL at scale 1", "unscaled", _unscaled),
    Section("No figures", "missing", _missing, _not_measured),
)
