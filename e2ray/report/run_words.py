"""The verdict on runs in plain words: what may be compared, which is lowest, and what each found."""

from collections.abc import Sequence

from e2ray.report.page import Point, Words
from e2ray.report.run_files import RunRecord, comparable, difference
from e2ray.report.run_folder import printable
from e2ray.report.run_terms import DASH, difference_text


def findings(records: Sequence[RunRecord]) -> list[Point]:
    """Return what the runs have found: first what may not be compared, then comparisons, then each run's verdict."""
    groups = comparable(records)
    points = incomparable(groups)
    for group in groups:
        if len(group) > 1:
            points += _compared(group)
    for record in records:
        points += _of_run(record)
    return points


def incomparable(groups: Sequence[Sequence[RunRecord]]) -> list[Point]:
    """Return why NLLs of runs are not to be compared; nothing where they all may be."""
    if len(groups) < 2:
        return []
    known = [group for group in groups if group[0].scored]
    reasons = []
    if len(known) > 1:
        scored = [group[0].scored for group in known]
        names = " / ".join(_names(group) for group in known)
        tokenizers, documents, strides = (len({each[part] for each in scored if each}) for part in range(3))
        if tokenizers > 1:
            reasons.append(
                f"their tokens are of different tokenizers, so that a nat per token is not the same ({names})"
            )
        elif documents > 1:
            reasons.append(f"they scored different held-out documents ({names})")
        elif strides > 1:
            reasons.append(f"they scored tokens behind different amounts of context, by evaluate.stride ({names})")
    unknown = [record for group in groups for record in group if record.scored is None]
    if unknown:
        reasons.append(
            f"the evaluation of {_names(unknown)} does not name the documents that it scored; `e2ray evaluate` with "
            "the run's config.yaml measures it anew and names them"
        )
    text = (
        f"{'; '.join(reasons)}. Each kind stands in a picture and a table of its own, and no difference is "
        "formed between them."
    )
    return [Point("Not all NLLs can be compared:", text, warning=True)]


def _names(records: Sequence[RunRecord]) -> str:
    return ", ".join(record.name for record in records)


def _compared(group: Sequence[RunRecord]) -> list[Point]:
    """Return which run is lowest at the longest window that all have at scale W / L, and at the base window."""
    windows = [window for window in group[0].windows if all(record.cell("tuned", window) for record in group)]
    if not windows:
        return [Point("No comparison:", f"{_names(group)} have no window in common at scale W/L.", warning=True)]
    lengths = {record.base_context_length for record in group}
    points = [_lowest(group, max(windows), "the longest window that all have")]
    if len(lengths) == 1 and min(lengths) in windows and max(windows) > min(lengths):
        points.append(_lowest(group, min(lengths), "the base window"))
    return points


def _lowest(group: Sequence[RunRecord], window: int, what: str) -> Point:
    cells = {record.name: record.cell("tuned", window) for record in group}
    ordered = sorted(group, key=lambda record: cells[record.name].nll)  # type: ignore[union-attr]
    first, rest = ordered[0], ordered[1:]
    lowest = cells[first.name]
    assert lowest is not None, "the window is one that all have"
    words = []
    for record in rest:
        found = difference((record, cells[record.name]), (first, lowest))
        assert found is not None
        if found.low is None:
            told = "spread unknown"
        else:
            told = "beyond the spread of the documents" if found.told_apart else "not told apart"
        words.append(f"{record.name} is {difference_text(found)}, {told}")
    return Point(
        f"{first.name} is lowest at {window:,} tokens,",
        f"{what}: {lowest.nll:.3f} nats per token at scale {lowest.scale:g} (W/L). Against it {'; '.join(words)}.",
    )


def _of_run(record: RunRecord) -> list[Point]:
    if not record.cells:
        text = f"{record.run.what_is_missing}. Its cells are missing below ({DASH})."
        return [Point(f"{record.name}:", text, warning=True)]
    points = [Point(f"{record.name}:", " ".join(record.verdict["sentences"]))]
    if record.run.status["state"] != "succeeded":
        text = f"is {record.run.state}; its figures are those of an evaluation made before."
        points.append(Point(record.name, text, warning=True))
    cut = dict.fromkeys(str(row["task"]) for row in record.suites if row.get("truncated"))
    if cut:
        text = f"texts of {', '.join(map(printable, cut))} were cut to fit; the scores are of what was left."
        points.append(Point(f"{record.name}:", text, warning=True))
    return points


def measured_words(records: Sequence[RunRecord]) -> list[Words]:
    """Return how the figures were measured, a paragraph for each way."""
    parts = []
    for group in comparable(records):
        protocol = group[0].verdict["protocol"]
        told = [f"{protocol['method']}, stride {protocol['stride']}"]
        told.append(f"{protocol['documents']:,} documents, {protocol['tokens']:,} scored tokens")
        if group[0].scored:
            told.append(f"text {protocol['documents_digest'][:12]}, tokenizer {protocol['tokenizer_hash'][:12]}")
        parts.append(Words(f"{_names(group)}: {'; '.join(told)}; {protocol['bos']}."))
    parts.append(
        Words(
            "NLL is in nats per token, lower is better. Intervals hold 95 % of 2,000 draws of the documents with "
            "replacement; ± is one standard error over documents, where an evaluation holds no interval. Differences "
            "between runs are formed document by document. A dash stands for what was not measured."
        )
    )
    return parts
