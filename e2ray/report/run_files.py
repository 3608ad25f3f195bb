"""What a run's folder holds, read once for reports: settings, metrics and every file of its evaluation.

What a run has not measured is empty or None; a file that is there and cannot be read is an error, never a gap.
Two runs' NLLs may be compared where both scored the same tokens of the same documents the same way, which an evaluation
names by hashes; one that was made before it did is comparable with none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.core.scales import paper_scale
from e2ray.evaluate.by_length import LengthCell
from e2ray.evaluate.effective import difference_interval
from e2ray.evaluate.perplexity import Cell, Sums
from e2ray.evaluate.removed import scaling_of
from e2ray.evaluate.weights import refuse_other_weights
from e2ray.records.table import read_table
from e2ray.report.run_folder import EVALUATION, RECIPE, RunFolder
from e2ray.train.record import METRICS, read_metrics

SUMS, LENGTHS, SUITES = "evaluation-documents.parquet", "evaluation-lengths.parquet", "suites.json"
RETRIEVAL_KEYS = frozenset({"model", "task", "context_length", "depth", "scale", "found", "trials"})
SCORE_KEYS = frozenset({"model", "task", "metric", "value"})
MISSING_KEYS = frozenset({"model", "task", "reason"})
METRIC_KEYS = frozenset({"step", "tokens", "tokens_per_second"})
SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("window", pa.int64(), nullable=False),
        pa.field("scale", pa.float64(), nullable=False),
        pa.field("nll", pa.float64(), nullable=False),
        pa.field("perplexity", pa.float64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
        pa.field("stride", pa.int64(), nullable=False),
        pa.field("stderr", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
    ]
)
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
LENGTHS_SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("context_length", pa.int64(), nullable=False),
        pa.field("scale", pa.float64(), nullable=False),
        pa.field("nll", pa.float64(), nullable=False),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("bucket_nll", pa.float64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
        pa.field("last", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, eq=False)
class RunRecord:
    """All that reports tell of a run.

    Attributes:
        run: Its folder, name, settings and state.
        cells: The surface; empty where the run was not evaluated.
        verdict: What evaluation.json says about it; empty likewise.
        sums: Each document's NLL in the same cells; empty where the run holds none.
        by_length: NLL by context length and scale out of one pass each; empty where the run holds none.
        scales: Content of scales.json, or None.
        effective: Content of effective.json, or None.
        retrieval: Rows of retrieval.json.
        suites: Rows `scores` of suites.json, {model, task, metric, value} and, where known, filter, stderr, samples or
            documents, truncated.
        suites_missing: Rows {model, task, reason} of what the suites could not score.
        metrics: Lines of metrics.jsonl.
        environment: Content of environment.json, or None.
    """

    run: RunFolder
    cells: Sequence[Cell]
    verdict: dict[str, Any]
    sums: Sequence[Sums]
    by_length: Sequence[LengthCell]
    scales: dict[str, Any] | None
    effective: dict[str, Any] | None
    retrieval: Sequence[dict[str, Any]]
    suites: Sequence[dict[str, Any]]
    suites_missing: Sequence[dict[str, Any]]
    metrics: Sequence[dict[str, Any]]
    environment: dict[str, Any] | None

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.run.name

    @property
    def base_context_length(self) -> int:
        """L in tokens; the run must have an evaluation."""
        return int(self.verdict["base_context_length"])

    @property
    def removed_scaling(self) -> str | None:
        """Rope type that was removed from the base; None where its base is the checkpoint itself."""
        return scaling_of(self.verdict.get("removed_scaling"))

    @property
    def windows(self) -> list[int]:
        """Windows asked for or measured, in tokens."""
        asked = (self.run.settings["evaluate"] or {}).get("windows") or ()
        return sorted({cell.window for cell in self.cells} | set(asked))

    @property
    def scored(self) -> tuple[str, str, int] | None:
        """What names the scored text and how it was scored: tokenizer, documents, stride; None where unknown."""
        protocol = self.verdict.get("protocol", {})
        if "documents_digest" not in protocol:
            return None
        return protocol["tokenizer_hash"], protocol["documents_digest"], protocol["stride"]

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
        found = [cell for cell in self.cells if (cell.model, cell.window) == (model, window)]
        return min(found, key=lambda cell: (cell.nll, cell.scale), default=None)

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
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def read_run(run: RunFolder) -> RunRecord:
    """Return what a run's folder holds.

    Raises:
        SettingsError: If a file is damaged, or is of another evaluation than the others.
    """
    folder = run.folder
    environment = _read(folder / "environment.json", "versions and hardware of a run, remove it to go without")
    metrics = _metrics(run)
    suites = _rows(folder / SUITES, "scores", SCORE_KEYS)
    missing = _rows(folder / SUITES, "missing", MISSING_KEYS, wanted=False)
    if not run.evaluated:
        return RunRecord(run, [], {}, [], [], None, None, [], suites, missing, metrics, environment)
    try:
        cells, verdict = read_evaluation(folder / EVALUATION)
        _refuse_damaged(folder / EVALUATION, cells, verdict)
        sums = read_sums(folder / SUMS, cells) if (folder / SUMS).exists() else []
        by_length = read_by_length(lengths) if (lengths := folder / LENGTHS).exists() else []
        scales = _read(folder / "scales.json", "the scales of an evaluation", keys={"lengths"})
        effective = _read(folder / "effective.json", "the effective length", keys={"claimed", "effective", "lengths"})
        retrieval = _rows(folder / "retrieval.json", "rows", RETRIEVAL_KEYS)
        named = {
            folder / EVALUATION: (verdict["protocol"] or {}).get("weights_digest"),
            folder / "scales.json": (scales or {}).get("weights_digest"),
        }
        refuse_other_weights(named, folder / "model")
    except SettingsError as error:
        again = f"; `e2ray evaluate --config {folder / RECIPE}` measures the run anew"
        told = str(error).removesuffix("; rerun `e2ray evaluate`").removesuffix("; run `e2ray evaluate` again")
        raise SettingsError(f"{told}{again}") from None
    return RunRecord(
        run, cells, verdict, sums, by_length, scales, effective, retrieval, suites, missing, metrics, environment
    )  # fmt: skip


def comparable(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Return the evaluated runs in groups whose NLLs may be compared, in the order given."""
    groups: dict[Any, list[RunRecord]] = {}
    for place, record in enumerate(records):
        if record.cells:
            groups.setdefault(record.scored or place, []).append(record)
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


def _read(path: Path, wanted: str, *, keys: set[str] | None = None) -> dict[str, Any] | None:
    """Return a JSON file's mapping, None where there is no file."""
    if not path.exists():
        return None
    value = files.read_vouched(path, wanted=wanted)
    if not isinstance(value, dict) or not (keys or set()) <= value.keys():
        raise SettingsError(
            f"{path}: is damaged; wanted {wanted}" + (f" with {', '.join(sorted(keys))}" if keys else "")
        )
    return value


def _rows(path: Path, key: str, columns: frozenset[str], *, wanted: bool = True) -> list[dict[str, Any]]:
    """Return the rows of a table kept as JSON, none where there is no file, or no such table and none is `wanted`."""
    found = _read(path, f"{key} of a run", keys={key} if wanted else None)
    rows = found.get(key, []) if found else []
    if not isinstance(rows, list):
        raise SettingsError(f"{path}: {key} is damaged, wanted a list")
    for place, row in enumerate(rows):
        lacking = columns - row.keys() if isinstance(row, dict) else columns
        if lacking:
            raise SettingsError(f"{path}: {key}.{place} lacks {', '.join(sorted(lacking))}")
    return rows


def _metrics(run: RunFolder) -> list[dict[str, Any]]:
    path = run.folder / METRICS
    lines, wanted = [line.plain() for line in read_metrics(run.folder)], ", ".join(sorted(METRIC_KEYS))
    for place, line in enumerate(lines, start=1):
        if not all(isinstance(line.get(key), int | float) for key in METRIC_KEYS):
            raise SettingsError(f"{path}: line {place} is damaged, wanted numbers under {wanted}; remove the file")
    last = lines[-1]["step"] if lines else 0
    if path.exists() and run.status["state"] == "succeeded" and last < run.status["step"]:
        raise SettingsError(
            f"{path}: ends at step {last}, the run at step {run.status['step']}: lines are missing; put the file back "
            "from a copy, or remove it"
        )
    return lines


def _refuse_damaged(path: Path, cells: Sequence[Cell], verdict: Any) -> None:
    """Raise SettingsError if an evaluation lacks what every evaluation has."""
    whole = isinstance(verdict, dict) and {"base_context_length", "protocol", "sentences"} <= verdict.keys()
    if not cells or not whole:
        raise SettingsError(f"{path}: is damaged, it holds no {'verdict' if cells else 'rows'}")
    for cell in cells:
        if not all(isinstance(value, int | float) for value in (cell.window, cell.scale, cell.nll)):
            raise SettingsError(f"{path}: is damaged, a cell has window {cell.window}, NLL {cell.nll}")


def read_evaluation(path: str | Path) -> tuple[list[Cell], dict[str, Any]]:
    """Return the cells and the verdict of an evaluation.json.

    Raises:
        FileNotFoundError: If there is no such file.
        SettingsError: If it is something else.
    """
    value = files.read_vouched(path, wanted="the evaluation.json of a run")
    try:
        return [Cell(**row) for row in value["rows"]], value["verdict"]
    except (TypeError, KeyError) as error:
        raise SettingsError(f"{path}: is no evaluation ({error}); rerun `e2ray evaluate`") from None


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


def read_by_length(path: Path) -> list[LengthCell]:
    """Return the cells of an evaluation-lengths.parquet.

    Raises:
        SettingsError: If it cannot be read or is something else.
    """
    return [LengthCell(**row) for row in read_table(path, LENGTHS_SCHEMA).to_pylist()]
