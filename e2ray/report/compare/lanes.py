"""What the page on a comparison says of its lanes: NLL, differences, who is best, retrieval, cost, what is missing."""

from collections.abc import Sequence

from e2ray.config.compare import UNTOUCHED
from e2ray.config.search import PAPER
from e2ray.records.comparison import Difference, LaneRow, LaneWindow, Spread
from e2ray.report.compare.picture import draw
from e2ray.report.compare.summary import NAMES, YARN, Compared
from e2ray.report.frame.page import Column, Part, Point, Points, Row, Table, Words, picture
from e2ray.report.frame.section import Section
from e2ray.report.frame.text import task_text, whole

MISSING = "missing"


def lane_table(titles: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], caption: str) -> Table:
    """Return a table with a row for each lane: its name, then numbers."""
    columns = [Column("lane"), *(Column(title, "number") for title in titles)]
    return Table(columns, [Row([name, *cells]) for name, cells in rows], caption, compact=True)


def spread_text(value: Spread, *, sign: bool = False) -> str:
    """Return `3.412 ± 0.011`, a mean and half of its interval over seeds."""
    mean, half = value.mean, value.half
    if mean is None:
        return MISSING
    return (f"{mean:+.3f}" if sign else f"{mean:.3f}") + ("" if half is None else f" ± {half:.3f}")


def apart_text(apart: Difference | None) -> str:
    """Return `+0.150 [+0.140, +0.160]`, a difference and its interval over documents."""
    if apart is None or apart.mean is None:
        return MISSING
    return f"{apart.mean:+.3f}" + ("" if apart.low is None else f" [{apart.low:+.3f}, {apart.high:+.3f}]")


def _nll(compared: Compared) -> list[Part]:
    protocol = compared.protocol
    caption = (
        f"NLL, nats per token, by window, each lane at the scale that it is served with: windows slide by "
        f"{protocol.stride} tokens over the same {protocol.tokens:,} tokens of {protocol.documents} held-out "
        f"documents; {protocol.bos}. ± is half of the 95 % interval over seeds (Student's t), where a lane has "
        "several."
    )
    if compared.has("best"):
        caption += (
            f" {NAMES['best']} trains at the learning rate and for the objective that its study has found, all others "
            "at the recipe's or their own."
        )
    rows = [
        (
            row.name,
            [
                *(spread_text(row.nll[str(window)]) for window in compared.windows),
                spread_text(row.long),
                spread_text(row.short, sign=True),
            ],
        )
        for row in compared.rows
    ]
    return [
        picture(
            draw(compared.rows, compared.base_context_length, compared.windows),
            "NLL by window of every lane, and NLL at L against the mean beyond it",
            "Left: every lane at the scale that it is served with; the dotted line is L. Right: what a lane costs at L "
            "against what it reads beyond, lower left is better.",
        ),
        lane_table([*map(whole, compared.windows), "beyond L", "short rise"], rows, caption),
    ]


def _over_paper(compared: Compared) -> list[Part]:
    if not compared.has(PAPER) or len(compared.rows) < 2:
        return []
    rows = [
        (row.name, [apart_text(_over_paper_at(row.nll[str(window)])) for window in compared.windows])
        for row in compared.rows
        if row.lane != PAPER
    ]
    return [lane_table([*map(whole, compared.windows)], rows, NEGATIVE)]


def _over_paper_at(cell: LaneWindow) -> Difference:
    return Difference(mean=cell.over_paper, low=cell.low, high=cell.high)


def _over_yarn(compared: Compared) -> list[Part]:
    if not compared.has(YARN) or not compared.trained:
        return []
    rows = [(row.name, [apart_text(row.nll[str(w)].over_yarn) for w in compared.windows]) for row in compared.trained]
    return [lane_table([*map(whole, compared.windows)], rows, NEGATIVE)]


def _winners(compared: Compared) -> list[Part]:
    names = _names(compared.rows)
    rows = []
    for best in compared.best:
        if best.lane is None:
            rows.append(Row([whole(best.window), *[MISSING] * 5]))
            continue
        verdict = {None: "one document", True: "yes", False: "no"}[best.apart]
        behind = ["none", "", ""] if best.next is None else [names[best.next], apart_text(best.behind), verdict]
        rows.append(Row([whole(best.window), names[best.lane], f"{best.nll:.3f}", *behind]))
    columns = [
        Column("window", "number"), Column("best lane"), Column("NLL", "number"), Column("next lane"),
        Column("behind by", "number"), Column("told apart"),
    ]  # fmt: skip
    caption = (
        "The best lane of each window, how far the next one is behind it, and whether the two are told apart (95 % "
        "over documents)."
    )
    return [Table(columns, rows, caption)] if rows else []


def _unscaled(compared: Compared) -> list[Part]:
    rows = []
    for row in compared.rows:
        values = [row.nll[str(window)].unscaled for window in compared.windows]
        if row.train_s is not None or row.lane == UNTOUCHED:
            rows.append((row.name, [MISSING if value is None else f"{value:.3f}" for value in values]))
    caption = f"Does a lane read past {compared.base_context_length:,} tokens unscaled?"
    return [lane_table([*map(whole, compared.windows)], rows, caption)]


def _retrieval(compared: Compared) -> list[Part]:
    parts: list[Part] = []
    for task in dict.fromkeys(task for row in compared.rows for task in row.retrieval):
        lengths = sorted({int(length) for row in compared.rows for length in row.retrieval.get(task, {})})
        rows = []
        for row in compared.rows:
            shares = row.retrieval.get(task, {})
            cells = (shares.get(str(length)) for length in lengths)
            texts = [MISSING if c is None else f"{c.share:.0%} ({c.low:.0%} to {c.high:.0%})" for c in cells]
            rows.append((row.name, texts))
        caption = (
            f"{task_text(task).capitalize()}: share found, by context length, and its 95 % interval (Wilson) as if all "
            "prompts were independent; the same texts stand behind all depths and seeds."
        )
        parts.append(lane_table([*map(whole, lengths)], rows, caption))
    return parts


def _cost(compared: Compared) -> list[Part]:
    if not compared.trained:
        return []
    rows = []
    for row in compared.trained:
        memory = MISSING if row.peak_mib is None else f"{row.peak_mib:.0f}"
        taken = [whole(row.tokens), f"{row.train_s:.0f}", f"{row.step_s:.3f}", memory]
        rows.append((row.name, [str(len(row.seeds)), *taken]))
    titles = ["seeds", "tokens", "seconds", "seconds per step", "peak memory, MiB"]
    caption = "What training took, each seed; memory is the whole process's, interpreter and libraries included."
    return [lane_table(titles, rows, caption)]


def _missing(compared: Compared) -> list[Part]:
    lines = compared.protocol.missing
    return [Words("What is missing:"), Points([Point("", line) for line in lines])] if lines else []


def _not_measured(compared: Compared) -> list[Point]:
    lines = len(compared.protocol.missing)
    text = f"{lines} line{'s' if lines > 1 else ''} at the end of this page say what has no figure, and why."
    return [Point("Not all was measured:", text, warning=True)] if lines else []


def _findings(compared: Compared) -> list[Point]:
    """Return the best lane of each window, and the trained lane with the lowest mean beyond L."""
    names, points = _names(compared.rows), []
    for best in compared.best:
        head = f"At {whole(best.window)} tokens"
        if best.lane is None:
            points.append(Point(head, "nothing was measured.", warning=True))
            continue
        text = f"lowest is {best.nll:.3f}: {names[best.lane]}."
        if best.next is not None:
            verdict = {None: "spread unknown", True: "told apart", False: "not told apart"}[best.apart]
            text += f" Next, {verdict}, {apart_text(best.behind)}: {names[best.next]}."
        points.append(Point(head, text))
    beyond = [(row.long.mean, row) for row in compared.trained if row.long.mean is not None]
    if beyond:
        _, best_row = min(beyond, key=lambda pair: pair[0])
        text = (
            f"the lowest mean of a trained lane is {spread_text(best_row.long)}, at L "
            f"{spread_text(best_row.short, sign=True)}: {best_row.name}."
        )
        points.append(Point("Beyond L", text))
    return points


def _names(rows: Sequence[LaneRow]) -> dict[str, str]:
    return {row.lane: row.name for row in rows}


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
