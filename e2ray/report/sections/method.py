"""How figures were measured: what may be compared with what, what is called base, and the protocol."""

from collections.abc import Sequence

from e2ray.evaluate.removed import base_name
from e2ray.report.frame.page import Point, Words
from e2ray.report.run_files import RunRecord, comparable
from e2ray.report.sections.section import RunSection


def names_of(records: Sequence[RunRecord]) -> str:
    """Return the names of runs, as a list in a sentence."""
    return ", ".join(record.name for record in records)


def base_title(records: Sequence[RunRecord]) -> str:
    """Return the title of the base's column in a table of several runs."""
    names = {base_name(record.removed_scaling) for record in records if record.cells}
    return names.pop() if len(names) == 1 else "base"


def base_note(records: Sequence[RunRecord]) -> str:
    """Return the end of a caption, on runs whose base is not the checkpoint itself; empty if there are none."""
    return "".join(
        f" What is called base of {record.name} is the {base_name(record.removed_scaling)}."
        for record in records
        if record.removed_scaling
    )


def incomparable(groups: Sequence[Sequence[RunRecord]]) -> list[Point]:
    """Return why NLLs of runs are not to be compared; nothing where they all may be."""
    if len(groups) < 2:
        return []
    known = [group for group in groups if group[0].scored]
    reasons = []
    if len(known) > 1:
        scored = [group[0].scored for group in known]
        names = " / ".join(map(names_of, known))
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
            f"the evaluation of {names_of(unknown)} does not name the documents that it scored; `e2ray evaluate` with "
            "the run's config.yaml measures it anew and names them"
        )
    text = (
        f"{'; '.join(reasons)}. Each kind stands in a picture and a table of its own, and no difference is "
        "formed between them."
    )
    return [Point("Not all NLLs can be compared:", text, warning=True)]


def _parts(records: Sequence[RunRecord]) -> list[Words]:
    """Return how the figures were measured, a paragraph for each way."""
    parts = []
    for group in comparable(records):
        verdict = group[0].verdict
        assert verdict is not None, "comparable runs were evaluated"
        protocol = verdict.protocol
        facts = [f"{protocol.method}, stride {protocol.stride}"]
        facts.append(f"{protocol.documents:,} documents, {protocol.tokens:,} scored tokens")
        if scored := group[0].scored:
            facts.append(f"text {scored[1][:12]}, tokenizer {scored[0][:12]}")
        parts.append(Words(f"{names_of(group)}: {'; '.join(facts)}; {protocol.bos}."))
    parts.append(
        Words(
            "NLL is in nats per token, lower is better. Intervals hold 95 % of 2,000 draws of the documents with "
            "replacement; ± is one standard error over documents, where an evaluation holds no interval. Differences "
            "between runs are formed document by document. A dash stands for what was not measured."
        )
    )
    return parts


METHOD = RunSection("How it was measured", "method", _parts)
