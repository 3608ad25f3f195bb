"""One lane of a comparison under one seed: trained on a bench or left as it is, measured, its figures in one file.

What it could not do is missing, with its reason. Nothing here knows Ray.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from e2ray.config.base import Plain, SettingsError
from e2ray.config.methods import UNTRAINED
from e2ray.config.resolved import ResolvedConfig, ResolvedEvaluate
from e2ray.config.retrieval import RetrievalSettings
from e2ray.core.methods.registry import method_of
from e2ray.core.rope import RotaryHook, refuse_scaled
from e2ray.core.scales import drawn_scale, lane_scale, untrained_scale
from e2ray.data.shards import ShardSet
from e2ray.data.tokenizer import load_tokenizer
from e2ray.evaluate.documents import reachable_windows, select_documents
from e2ray.evaluate.loaded import LoadedModel
from e2ray.evaluate.perplexity import Sums, document_sums, is_out_of_memory
from e2ray.evaluate.prompts import PromptFolder
from e2ray.evaluate.retrieval import accuracy
from e2ray.records.comparison import Lane, LaneSums
from e2ray.records.retrieval import RetrievalRow
from e2ray.train.bench import Bench, tried
from e2ray.train.environment import peak_memory_mib
from e2ray.train.parameters import precision_of
from e2ray.train.task import Task


@dataclass(frozen=True)
class Job:
    """One lane under one seed; it can be pickled.

    Attributes:
        lane: Its name.
        seed: Of draws and rows; 0 for a lane without training.
        task: What the training shares with all others of its window.
        evaluate: How the model is measured.
        documents: The shards whose held-out documents are scored.
        config: The recipe that it trains with; None without training.
        max_scale: G.
        asked: The retrieval grid, or None.
        out: The file that it writes.
        own: Whether the recipe, not its name, says what the lane is.
    """

    lane: str
    seed: int
    task: Task
    evaluate: ResolvedEvaluate
    documents: str | Path
    config: ResolvedConfig | None
    max_scale: float
    asked: RetrievalSettings | None
    out: Path
    own: bool = False

    @property
    def told(self) -> Plain | None:
        """What the lane trains with, plain data, where its name does not say it."""
        if self.config is None or not (self.own or self.lane == "best"):
            return None
        train = self.config.train
        sections = {"positions": self.config.positions, "objective": train.objective}
        plain: Plain = {name: section.model_dump(mode="json") for name, section in sections.items()}
        return plain if self.own else plain | {"lr": train.lr}  # an own lane's rate is the recipe's

    def served(self, window: int) -> float:
        """Return the scale that the lane serves a window at."""
        length = self.task.base_context_length
        if self.own and self.config is not None:
            return drawn_scale(self.config.positions, window, length)
        return lane_scale(self.lane, window, length, self.max_scale)

    def read_at(self, window: int) -> float:
        """Return the scale that a window is read at: the served one, or what dynamic NTK makes of it."""
        if self.own:
            return self.served(window)
        return untrained_scale(self.lane, window, self.task.base_context_length, self.max_scale)


def left(job: Job) -> Lane:
    """Return what a job has left.

    Raises:
        SettingsError: If it is not what the job has written.
    """
    lane = Lane.read(job.out)
    if (lane.lane, lane.seed) != (job.lane, job.seed):
        name = f"{lane.lane}, seed {lane.seed}"
        raise SettingsError(f"{job.out}: is of the job {name}, wanted {job.lane}, seed {job.seed}; {Lane.anew}")
    if lane.told != job.told:
        raise SettingsError(
            f"{job.out}: was made when compare.{'own' if job.own else 'best'} said something else of {job.lane}; "
            f"{Lane.anew}{', or give the lane another name' if job.own else ''}"
        )
    return lane


def is_done(job: Job) -> bool:
    """Return whether a job need not run again; one that failed may find more memory the next time."""
    return job.out.exists() and Lane.read(job.out).failed is None and left(job) is not None


def unsealed(done: Sequence[Job]) -> int:
    """Return how many of the files that jobs have left are of an earlier version, which wrote no digest."""
    return sum(not Lane.read_told(job.out)[1] for job in done)


def run_job(job: Job, use_gpu: bool) -> None:
    """Train and measure one lane under one seed and write what was found, or why not."""
    device = torch.device("cuda" if use_gpu else "cpu")
    began = time.perf_counter()
    nothing = {"tokens": 0, "train_s": 0.0, "steps": 0, "peak_mib": None, "sums": (), "retrieval": (), "missing": ()}
    result = Lane.model_validate({"lane": job.lane, "seed": job.seed, **nothing, "told": job.told})
    try:
        if job.config is None:
            model, hook = _base_model(job, device)
        else:
            model, hook, cost = _trained(job, job.config, device)
            result = result.changed(**cost)
        result = result.changed(**_measured(job, model, hook, device))
    except SettingsError as error:
        result = result.changed(failed=str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        result = result.changed(failed="it does not fit into memory")
    job.out.parent.mkdir(parents=True, exist_ok=True)
    result.changed(seconds=time.perf_counter() - began).write(job.out)
    outcome = result.failed or f"{result.tokens:,} tokens in {result.train_s:.0f} s"
    print(f"{job.lane}, seed {job.seed}: {outcome}", flush=True)


def _base_model(job: Job, device: torch.device) -> tuple[nn.Module, RotaryHook]:
    """Return the base and a hook of the lane's untrained method; without one the base is read as it is."""
    loaded = LoadedModel(
        job.task.model,
        device=device,
        dtype=precision_of(job.task.train, device),
        vocab_size=job.task.vocab_size,
        method=None,
        base_context_length=job.task.base_context_length,
        tokenizer_folder=job.task.tokenizer_folder,
        seed=job.task.seed,
    )
    if untrained := UNTRAINED.get(job.lane):
        refuse_scaled(loaded.model, job.lane)
        loaded.read_by(method_of(untrained))
    return loaded.model, loaded.hook


def _trained(job: Job, config: ResolvedConfig, device: torch.device) -> tuple[nn.Module, RotaryHook, dict[str, object]]:
    """Return (model, hook, what the training took)."""
    name, folder = f"{job.task.name}-{job.lane}-{job.seed}", job.task.folder / "trials" / job.out.stem
    bench = Bench(job.task, device=device)
    bench.put(tried(job.task, config, name=name, folder=folder))
    began = time.perf_counter()
    metrics = bench.train()
    bench.trackers.close()
    took = time.perf_counter() - began
    if "failed" in metrics:
        raise SettingsError(str(metrics["failed"]))
    assert bench.engine is not None, "what was trained stays on the bench"
    steps = config.train.steps
    cost = {"tokens": metrics["tokens"], "train_s": took, "steps": steps, "peak_mib": peak_memory_mib(device)}
    return bench.engine.ds.module, bench.engine.hook, cost


def _measured(job: Job, model: nn.Module, hook: RotaryHook, device: torch.device) -> dict[str, object]:
    """Return `sums` (each window at scale 1 and as served), `retrieval`, and `missing`, lines on what has no figure."""
    settings = job.evaluate
    opened = ShardSet.open(job.documents)
    held_out = opened.held_out()
    missing: list[str] = []
    windows = reachable_windows(
        held_out,
        settings.windows,
        cut=settings.document_tokens,
        skip=settings.skip_documents,
        progress=missing.append,
    )
    documents = select_documents(
        held_out,
        minimum_tokens=max(windows),
        limit=settings.documents,
        cut=settings.document_tokens,
        skip=settings.skip_documents,
    )
    lengths: Sequence[int] = (job.asked.context_lengths or windows) if job.asked else ()
    tokenizer = load_tokenizer(job.task.tokenizer_folder) if job.asked else None
    kept = PromptFolder(job.out.parent / "prompts", opened.manifest.digest)
    sums: list[LaneSums] = []
    rows: list[RetrievalRow] = []
    for window in sorted({*windows, *lengths}):
        if window in windows:
            sums += _window_sums(job, model, hook, documents, window, device, missing)
        if window in lengths and job.asked:
            notes: list[str] = []
            with _noted(missing, window):
                rows += accuracy(
                    model,
                    hook,
                    held_out,
                    tokenizer,
                    settings=job.asked.model_copy(update={"context_lengths": (window,)}),
                    base_context_length=job.task.base_context_length,
                    batch_tokens=settings.batch_tokens,
                    device=device,
                    scale=job.read_at(window),
                    kept=kept,
                    progress=notes.append,
                )
                missing += [line for line in notes if line.startswith("left out")]
    return {"sums": sums, "retrieval": rows, "missing": missing}


def _window_sums(
    job: Job,
    model: nn.Module,
    hook: RotaryHook,
    documents: Sequence[np.ndarray],
    window: int,
    device: torch.device,
    missing: list[str],
) -> list[LaneSums]:
    """Return the rows of one window at the scales it is read with; one that has none leaves a line in `missing`."""
    served = job.served(window)
    scales = [job.read_at(window)] if job.config is None else sorted({1.0, served})
    rows: list[Sums] = []
    for scale in scales:
        notes: list[str] = []
        with _noted(missing, window):
            sums = document_sums(
                model,
                hook,
                documents,
                windows=[window],
                scales=[scale],
                stride=job.evaluate.stride,
                batch_tokens=job.evaluate.batch_tokens,
                device=device,
                name=job.lane,
                progress=notes.append,
            )
            rows += sums
            missing += [line for line in notes if "left out" in line] if not sums else []
    return [_row(each, served if job.config is None else each.scale, served) for each in rows]


def _row(sums: Sums, scale: float, served: float) -> LaneSums:
    return LaneSums(
        window=sums.window,
        scale=scale,
        served=scale == served,
        nll=tuple(sums.nll.tolist()),
        tokens=tuple(sums.tokens.tolist()),
    )


@contextmanager
def _noted(missing: list[str], window: int) -> Iterator[None]:
    """Turn what cannot be measured at a window into a line."""
    try:
        yield
    except SettingsError as error:
        missing.append(f"{window:,} tokens: {error}")
