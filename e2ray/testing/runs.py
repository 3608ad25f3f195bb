"""Folders of runs whose figures follow from closed forms, written by the package's own writers."""

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from e2ray.config.load import dump, validate
from e2ray.config.run import RunConfig
from e2ray.evaluate.by_length import LengthCell, LengthPass, length_cells
from e2ray.evaluate.effective import effective_length, scale_table, sentences
from e2ray.evaluate.perplexity import Sums, cell
from e2ray.evaluate.verdict import verdict
from e2ray.records.folders import RunFolder
from e2ray.records.record import Plain
from e2ray.records.retrieval import RetrievalRow
from e2ray.records.run import Environment, Hardware
from e2ray.report.evaluation import write_by_length, write_evaluation, write_lengths
from e2ray.stages.run import resolve
from e2ray.testing.recipes import L, recipe
from e2ray.train.record import write_status

WINDOWS, SCALES = (32, 64, 128), (1.0, 2.0, 4.0)
TOKENS = np.array([100, 120, 80, 150])
SPREAD = np.array([0.3, -0.2, 0.1, -0.1])  # nats that documents differ by, the same for every model
ENDS = np.full(4, 8)
TEXT: Plain = {"tokenizer_hash": "a" * 64, "documents_digest": "b" * 64}


def settings(storage: str | Path, name: str = "small", **changes: object) -> RunConfig:
    """Return a checked recipe; `changes` replace whole sections."""
    train = {"steps": 8, "batch_sequences": 8, "micro_batch_sequences": 4, "lr": 1e-3}
    return resolve(validate(recipe(storage, name=name, train=train) | changes, source="test")).config


def nll(model: str, window: int, scale: float, better: float = 0.0) -> float:
    """Return the NLL of a cell before the documents' spread: best at W / L for the tuned model, at 1 for the base."""
    served = window / L if model == "tuned" else 1.0
    worse = 0.0 if model == "tuned" else 0.4 * np.log2(window / L)
    return float(3.0 - better * (model == "tuned") + 0.2 * abs(np.log2(scale / served)) + worse)


def surface(better: float = 0.0, windows: Sequence[int] = WINDOWS) -> list[Sums]:
    """Return the sums of every cell over four documents."""
    return [
        Sums(model, window, scale, 8, np.arange(4), each * TOKENS, TOKENS, each * ENDS, ENDS)
        for model in ("base", "tuned")
        for window in windows
        for scale in SCALES
        for each in [nll(model, window, scale, better) + SPREAD]
    ]


def passes(better: float = 0.0) -> list[LengthPass]:
    """Return one pass per model and scale over four documents, each stretch at its window's NLL."""
    return [
        LengthPass(
            model,
            scale,
            np.arange(4),
            np.repeat([nll(model, w, scale, better) for w in WINDOWS], np.diff([1, *WINDOWS]))[None] + SPREAD[:, None],
        )
        for model in ("base", "tuned")
        for scale in SCALES
    ]


def by_length(better: float = 0.0) -> list[LengthCell]:
    """Return the cells of those passes."""
    return [
        cell
        for each in passes(better)
        for cell in length_cells(each.nll, WINDOWS, last=8, scale=each.scale, model=each.model)
    ]


def asked(found: int = 3) -> list[Plain]:
    """Return rows of retrieval: of four questions the tuned model answers `found`, the base none."""
    return [
        {"model": model, "task": task, "context_length": length, "depth": depth, "scale": length / L,
         "found": found if model == "tuned" else 0, "trials": 4}
        for model in ("base", "tuned")
        for task, depths in (("passkey", (0.1, 0.9)), ("common_words", (None,)))
        for length in (64, 128)
        for depth in depths
    ]  # fmt: skip


def begun(storage: Path, name: str = "small", state: str = "running", step: int = 4, **changes: object) -> Path:
    """Write what a run leaves before its evaluation and return its folder."""
    folder = storage / name
    folder.mkdir(parents=True)
    RunFolder(folder).config.write_text(dump(settings(storage, name, **changes)))
    write_status(folder, state=state, step=step, started_at="2026-01-01T10:00:00+00:00", ended_at=None)
    lines = [
        f'{{"step": {n}, "tokens": {256 * n}, "tokens_per_second": {rate}, "peak_memory_mib": {500 + n}}}\n'
        for n, rate in ((4, 128.0), (8, 256.0))
        if n <= step
    ]
    RunFolder(folder).metrics.write_text("".join(lines))
    return folder


@cache
def measured(better: float, windows: tuple[int, ...], text: str, retrieval: str) -> dict[str, bytes]:
    """Return the files of an evaluation by name, written once for each kind; `text` and `retrieval` are JSON."""
    sums = surface(better, windows)
    rows = [RetrievalRow.model_validate(row) for row in json.loads(retrieval)]
    cells = [cell(each) for each in sums]
    record = verdict(cells, L, text=json.loads(text))
    scales = scale_table(sums, L)
    tuned = [row for row in rows if row.model == "tuned"]
    effective = effective_length(sums, L, retrieval=tuned or None)
    record = record.changed(sentences=(*record.sentences, *sentences(scales, effective)))
    with tempfile.TemporaryDirectory() as folder:
        write_evaluation(folder, cells, record)
        write_lengths(Path(folder), sums, scales=scales, effective=effective, retrieval=rows)
        return _contents(folder) | measured_by_length(better)


@cache
def measured_by_length(better: float) -> dict[str, bytes]:
    """Return the files of NLL by length by name, which are the same for every kind."""
    with tempfile.TemporaryDirectory() as folder:
        write_by_length(Path(folder), by_length(better))
        return _contents(folder)


def _contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def evaluated(
    storage: Path,
    name: str = "small",
    *,
    better: float = 0.0,
    text: Plain = TEXT,
    retrieval: Sequence[Plain] = (),
    **changes: object,
) -> Path:
    """Write a whole run and return its folder; its tuned model is `better` nats below the plain one."""
    folder = begun(storage, name, "running", 8, **changes)
    (folder / "model").mkdir()
    for file, content in measured(better, WINDOWS, json.dumps(text), json.dumps(retrieval)).items():
        (folder / file).write_bytes(content)
    hardware = Hardware(machine="x86_64", cpus=2, memory_gib=8.0, gpus=())
    Environment(versions={"torch": "2"}, commit="c" * 40, hardware=hardware).write(RunFolder(folder).environment)
    write_status(folder, state="succeeded", ended_at="2026-01-01T10:02:30+00:00")
    return folder
