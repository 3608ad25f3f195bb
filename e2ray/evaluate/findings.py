"""The results of an evaluation from the sums of all workers: cells, verdict, best scales, NLL by length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2ray.config.methods import Method
from e2ray.config.resolved import ResolvedEvaluate
from e2ray.core.methods.registry import method_of
from e2ray.evaluate.by_length import LengthCell, LengthPass, length_cells
from e2ray.evaluate.effective import effective_length, scale_table, sentences
from e2ray.evaluate.perplexity import Cell, Sums, cell
from e2ray.evaluate.removed import scaling_of
from e2ray.evaluate.verdict import verdict
from e2ray.evaluate.weights import weights_digest
from e2ray.records.effective import Effective
from e2ray.records.evaluation import RemovedScaling, Verdict
from e2ray.records.retrieval import RetrievalRow
from e2ray.records.scales import Scales


@dataclass(frozen=True)
class Findings:
    """The results on the documents of a run, before and after retrieval was asked.

    Attributes:
        sums: Of the cells of both models, and of the base as further methods read it without training.
        cells: Figures of these sums.
        by_length: NLL by context length, at every scale.
        verdict: That of `evaluate.verdict`, with the protocol.
        scales: Which scale reads each length best.
        missing_windows: Windows asked for that no document fills.
        asks: Whether retrieval is asked at all.
    """

    sums: list[Sums]
    cells: list[Cell]
    by_length: list[LengthCell]
    verdict: Verdict
    scales: Scales
    missing_windows: list[int]
    asks: bool
    base_context_length: int
    removed: RemovedScaling | None = field(repr=False)

    @property
    def removed_scaling(self) -> str | None:
        """Rope type that was removed from the base."""
        return scaling_of(self.removed)

    def told(self, retrieval: Sequence[RetrievalRow]) -> tuple[Verdict, Effective]:
        """Return (verdict, effective length) from the retrieval rows known so far."""
        tuned = [row for row in retrieval if row.model == "tuned"]
        effective = effective_length(self.sums, self.base_context_length, retrieval=tuned if self.asks else None)
        lines = (*self.verdict.sentences, *sentences(self.scales, effective))
        return self.verdict.changed(sentences=lines), effective


def findings(
    sums: list[Sums],
    passes: Sequence[LengthPass],
    settings: ResolvedEvaluate,
    *,
    model: Path,
    text: Mapping[str, str],
    method: Method,
    base_context_length: int,
    removed: RemovedScaling | None,
) -> Findings:
    """Return the results of an evaluation.

    Args:
        sums: Of every cell, over all documents, including those of further methods without training.
        passes: By length, over all documents.
        settings: What was measured.
        model: The folder of the tuned model, whose weights are named.
        text: Names of the scored text, fields of `Protocol`.
        method: Frequency method of the training.
        base_context_length: L in tokens.
        removed: Effect of removing the base's own scaling; None where the base is the checkpoint.
    """
    cells = [cell(each) for each in sums]
    weights = weights_digest(model)
    named = {**text, "weights_digest": weights}
    label = method_of(method).label
    judged = verdict(cells, base_context_length, removed=removed, method=label, text=named)
    lengths = sorted({each.window for each in sums})
    by_length = [
        each
        for one in passes
        if (inside := [length for length in lengths if length <= one.window])
        for each in length_cells(one.nll, inside, last=settings.stride, scale=one.scale, model=one.model)
    ]
    return Findings(
        sums=sums,
        cells=cells,
        by_length=by_length,
        verdict=judged,
        scales=scale_table(sums, base_context_length).changed(weights_digest=weights),
        missing_windows=sorted(set(settings.windows) - set(lengths)),
        asks=settings.retrieval is not None,
        base_context_length=base_context_length,
        removed=removed,
    )
