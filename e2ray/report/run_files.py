"""What a run's folder holds, read once for reports: settings, metrics and every file of its evaluation.

What a run has not measured is empty or None; a file that is there and cannot be read is an error, never a gap.
Two runs' NLLs may be compared where both scored the same tokens of the same documents the same way, which an evaluation
names by hashes; an older one without hashes is comparable with none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from e2ray.config.base import SettingsError
from e2ray.core.scales import paper_scale
from e2ray.evaluate.effective import difference_interval
from e2ray.evaluate.perplexity import Sums
from e2ray.evaluate.removed import scaling_of
from e2ray.evaluate.weights import refuse_other_weights
from e2ray.records.effective import Effective
from e2ray.records.evaluation import AGAIN, Cell, Evaluation, Verdict
from e2ray.records.folders import RunFolder as Files
from e2ray.records.lengths import DocumentRow, LengthCell
from e2ray.records.retrieval import Retrieval, RetrievalRow
from e2ray.records.run import Environment, MetricsLine
from e2ray.records.scales import Scales
from e2ray.records.suites import MissingScore, Score, Suites
from e2ray.records.table import read_table, schema_of
from e2ray.report.run_folder import RunFolder
from e2ray.train.record import read_metrics


@dataclass(frozen=True, eq=False)
class RunRecord:
    """All that reports use of a run.

    Attributes:
        run: Its folder, name, settings and state.
        cells: The surface; empty where the run was not evaluated.
        verdict: What it says; None where the run was not evaluated.
        sums: Each document's NLL in the same cells; empty where the run holds none.
        by_length: NLL by context length and scale out of one pass each; empty where the run holds none.
        scales: Which scale reads each context length best, where that was measured.
        effective: Up to which length it reads, likewise.
        retrieval: What was found in long texts.
        suites: Scores of suites.
        suites_missing: What the suites could not score.
        metrics: Logged steps.
        environment: What it ran on, where that is known.
    """

    run: RunFolder
    cells: Sequence[Cell]
    verdict: Verdict | None
    sums: Sequence[Sums]
    by_length: Sequence[LengthCell]
    scales: Scales | None
    effective: Effective | None
    retrieval: Sequence[RetrievalRow]
    suites: Sequence[Score]
    suites_missing: Sequence[MissingScore]
    metrics: Sequence[MetricsLine]
    environment: Environment | None

    @property
    def name(self) -> str:
        """The run's name in reports."""
        return self.run.name

    @property
    def base_context_length(self) -> int:
        """L in tokens; the run must have an evaluation."""
        assert self.verdict is not None, "the run was evaluated"
        return self.verdict.base_context_length

    @property
    def removed_scaling(self) -> str | None:
        """Rope type that was removed from the base; None where its base is the checkpoint itself."""
        return scaling_of(self.verdict.removed_scaling) if self.verdict else None

    @property
    def windows(self) -> list[int]:
        """Windows asked for or measured, in tokens."""
        asked = (self.run.settings["evaluate"] or {}).get("windows") or ()
        return sorted({cell.window for cell in self.cells} | set(asked))

    @property
    def scored(self) -> tuple[str, str, int | None] | None:
        """What names the scored text and how it was scored: tokenizer, documents, stride; None where unknown."""
        protocol = self.verdict.protocol if self.verdict else None
        if protocol is None or protocol.tokenizer_hash is None or protocol.documents_digest is None:
            return None
        return protocol.tokenizer_hash, protocol.documents_digest, protocol.stride

    @cached_property
    def _by_key(self) -> dict[tuple[str, int, float], Cell]:
        return {(cell.model, cell.window, round(cell.scale, 6)): cell for cell in self.cells}

    def cell(self, model: str, window: int, scale: float | None = None) -> Cell | None:
        """Return a cell, at W / L where no scale is named; None if it was not measured."""
        if not self.cells:
            return None
        scale = paper_scale(window, self.base_context_length) if scale is None else scale
        return self._by_key.get((model, window, round(scale, 6)))

    def best(self, model: str, window: int) -> Cell | None:
        """Return the cell of a window with the lowest NLL, None without any."""
        cells = [cell for cell in self.cells if (cell.model, cell.window) == (model, window)]
        return min(cells, key=lambda cell: (cell.nll, cell.scale), default=None)

    def sums_of(self, cell: Cell) -> Sums | None:
        """Return the documents' sums of a cell, None where the run holds none."""
        return next((s for s in self.sums if s.key == (cell.model, cell.window, cell.scale)), None)


@dataclass(frozen=True)
class Difference:
    """One cell's NLL minus another's, nats per token, with its 95 % interval over documents where that is known."""

    nats: float
    low: float | None
    high: float | None

    @property
    def told_apart(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def read_run(run: RunFolder) -> RunRecord:
    """Return what a run's folder holds.

    Raises:
        SettingsError: If a file is damaged, or is of another evaluation than the others.
    """
    here = Files(run.folder)
    environment, metrics, suites = Environment.find(here.environment), _metrics(run), Suites.find(here.suites)
    scores, missing = (suites.scores, suites.missing) if suites else ((), ())
    if not run.evaluated:
        return RunRecord(run, [], None, [], [], None, None, [], scores, missing, metrics, environment)
    try:
        evaluation = Evaluation.read(here.evaluation)
        sums = read_sums(here.documents, evaluation.rows) if here.documents.exists() else []
        by_length = read_by_length(here.lengths) if here.lengths.exists() else []
        scales, effective = Scales.find(here.scales), Effective.find(here.effective)
        retrieval = Retrieval.find(here.retrieval)
        named = {here.evaluation: evaluation.verdict.protocol.weights_digest}
        named[here.scales] = scales.weights_digest if scales else None
        refuse_other_weights(named, here.model)
    except SettingsError as error:
        again = f"; `e2ray evaluate --config {here.config}` measures the run anew"
        raise SettingsError(f"{str(error).removesuffix(f'; {AGAIN}')}{again}") from None
    asked = retrieval.rows if retrieval else ()
    rows, verdict = evaluation.rows, evaluation.verdict
    return RunRecord(
        run, rows, verdict, sums, by_length, scales, effective, asked, scores, missing, metrics, environment
    )


def comparable(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Return the evaluated runs in groups whose NLLs may be compared, in the order given."""
    groups: dict[object, list[RunRecord]] = {}
    for number, record in enumerate(records):
        if record.cells:
            groups.setdefault(record.scored or number, []).append(record)
    return list(groups.values())


def together(one: RunRecord, other: RunRecord) -> bool:
    """Return whether what two runs measured may be compared."""
    return any(len(group) == 2 for group in comparable([one, other]))


def difference(one: tuple[RunRecord, Cell | None], other: tuple[RunRecord, Cell | None]) -> Difference | None:
    """Return one run's cell minus another's, document by document; None where one is missing.

    Both runs must be of one group of `comparable`.
    """
    (left, cell), (right, reference) = one, other
    if cell is None or reference is None:
        return None
    sums, base = left.sums_of(cell), right.sums_of(reference)
    low, high = None, None
    if sums is not None and base is not None and np.array_equal(sums.tokens, base.tokens):
        low, high = difference_interval(sums, base)
    return Difference(cell.nll - reference.nll, low, high)


def _metrics(run: RunFolder) -> list[MetricsLine]:
    path = Files(run.folder).metrics
    lines = read_metrics(run.folder)
    last = lines[-1].step if lines else 0
    if path.exists() and run.status.state == "succeeded" and last < run.status.step:
        raise SettingsError(
            f"{path}: ends at step {last}, the run at step {run.status.step}: lines are missing; put the file back "
            "from a copy, or remove it"
        )
    return lines


def read_sums(path: Path, cells: Sequence[Cell]) -> list[Sums]:
    """Return each document's sums in the cells of an evaluation, from its evaluation-documents.parquet.

    Args:
        path: The file.
        cells: Of the same evaluation; they know the stride.

    Raises:
        SettingsError: If it cannot be read, or holds other cells or documents than those.
    """
    columns = read_table(path, schema_of(DocumentRow)).to_pydict()
    rows: dict[tuple[str, int, float], list[int]] = {}
    for row, key in enumerate(zip(columns["model"], columns["window"], columns["scale"], strict=True)):
        rows.setdefault(key, []).append(row)
    sums = []
    for each in cells:
        here = rows.pop((each.model, each.window, each.scale), [])
        documents, nll, tokens = ([columns[name][row] for row in here] for name in ("document", "nll", "tokens"))
        if (len(here), sum(tokens)) != (each.documents, each.tokens):
            raise SettingsError(f"{path}: is of another evaluation than evaluation.json beside it")
        sums.append(
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
    return sums


def read_by_length(path: Path) -> list[LengthCell]:
    """Return the cells of an evaluation-lengths.parquet.

    Raises:
        SettingsError: If it cannot be read or is something else.
    """
    return [LengthCell(**row) for row in read_table(path, schema_of(LengthCell)).to_pylist()]
