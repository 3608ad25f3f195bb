"""What lanes were asked and what they cost, and what has no figure."""

from e2ray.report.compare.nll import lane_table
from e2ray.report.compare.summary import Compared
from e2ray.report.frame.page import Part, Point, Points, Words
from e2ray.report.frame.section import Section
from e2ray.report.frame.text import task_text, whole


def _retrieval(found: Compared) -> list[Part]:
    parts: list[Part] = []
    for task in dict.fromkeys(task for row in found.rows for task in row["retrieval"]):
        lengths = sorted({int(length) for row in found.rows for length in row["retrieval"].get(task, {})})
        rows = []
        for row in found.rows:
            shares = row["retrieval"].get(task, {})
            cells = (shares.get(str(length)) for length in lengths)
            told = ["missing" if c is None else f"{c['share']:.0%} ({c['low']:.0%} to {c['high']:.0%})" for c in cells]
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
        memory = "missing" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        taken = [whole(row["tokens"]), f"{row['train_s']:.0f}", f"{row['step_s']:.3f}", memory]
        rows.append((row["name"], [str(len(row["seeds"])), *taken]))
    titles = ["seeds", "tokens", "seconds", "seconds per step", "peak memory, MiB"]
    caption = "What training took, each seed; memory is the whole process's, interpreter and libraries included."
    return [lane_table(titles, rows, caption)]


def _missing(found: Compared) -> list[Part]:
    lines = found.protocol["missing"]
    return [Words("What is missing:"), Points([Point("", line) for line in lines])] if lines else []


def _findings(found: Compared) -> list[Point]:
    lines = len(found.protocol["missing"])
    text = f"{lines} line{'s' if lines > 1 else ''} at the end of this page say what has no figure, and why."
    return [Point("Not all was measured:", text, warning=True)] if lines else []


RETRIEVAL = Section("Retrieval", "retrieval", _retrieval)
COST = Section("Cost", "cost", _cost)
MISSING = Section("No figures", "missing", _missing, _findings)
