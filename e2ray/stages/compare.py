"""A comparison: one base model, many ways to read further, each trained, measured and asked the same way.

A lane and a seed are one job, which runs in a Ray task and leaves one file; a comparison that was stopped goes on with
the jobs that have left none or failed. Trained lanes share rows, tokens, learning rate and loop, and differ in nothing
but their draws; two differ in one thing more, and the table says so: pi_long has long rows of the same text, and best
the learning rate that its study has found. What a lane could not do is missing, with its reason, and the others go on.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.compare import UNTOUCHED, CompareSettings, lane_positions
from e2ray.config.load import resolved_text
from e2ray.config.run import RunConfig
from e2ray.core.scales import drawn_scale, lane_scale
from e2ray.stages import checks
from e2ray.stages.cluster import cluster, remote_each, wants_gpu
from e2ray.stages.pipeline import base_of, prepare, task_of
from e2ray.stages.run import Run, refuse_other_settings, reporting, resolve, show, tell_ignored
from e2ray.train.record import now, peak_memory_mib, write_status

AGAIN = "remove the file, and that job is done again"
LEFT = f"what a lane has left; {AGAIN}"
LEFT_KEYS: dict[str, Any] = {
    **{"lane": str, "seed": int, "tokens": int, "train_s": float | int, "steps": int, "peak_mib": float | int | None},
    **{"sums": list, "retrieval": list, "missing": list},
}
NO_COST = {"tokens": 0, "train_s": 0.0, "steps": 0, "peak_mib": None}
MAY_DIFFER = (
    *("cluster", "export", "search"),
    *("compare.lanes", "compare.untrained", "compare.own", "compare.seeds", "compare.long_window_seeds"),
)


@dataclass(frozen=True)
class Job:
    """One lane under one seed; it can be pickled.

    Attributes:
        lane: Its name.
        seed: Of draws and rows; 0 for a lane without training.
        shared: What the training shares with all others of its window (`search.trial.Shared`), and the shards whose
            held-out documents are scored.
        config: The recipe that it trains with; None without training.
        max_scale: G.
        asked: The retrieval grid, or None.
        out: The file that it leaves.
        own: Whether the recipe says what the lane is, and not its name.
    """

    lane: str
    seed: int
    shared: tuple[Any, Any]
    config: RunConfig | None
    max_scale: float
    asked: Any
    out: Path
    own: bool = False

    @property
    def told(self) -> dict[str, Any] | None:
        """What the lane trains with, plain data, where its name does not say it."""
        if self.config is None or not (self.own or self.lane == "best"):
            return None
        train = self.config.train
        told = {"positions": self.config.positions, "objective": train.objective}
        plain: dict[str, Any] = {name: section.model_dump(mode="json") for name, section in told.items()}
        return plain if self.own else plain | {"lr": train.lr}  # an own lane's rate is the recipe's


def compare(config: RunConfig) -> None:
    """Run every lane of a recipe's `compare` section and write tables and picture.

    Raises:
        SettingsError: If a setting, a path or data is wrong, or another comparison has that name.
    """
    from e2ray.evaluate.removed import removed_scaling
    from e2ray.report.compare import write_comparison

    settings = config.compare
    if settings is None:
        raise SettingsError("compare: is null, wanted the lanes; give the recipe a compare section")
    if config.evaluate is None:
        raise SettingsError("evaluate: is null, a comparison measures by it; give it a section")
    run = resolve(config)
    with files.lock(run.folder / ".lock", what="running this comparison"):
        refuse_other_settings(run, begun=any((run.folder / "lanes").glob("*.json")), besides=MAY_DIFFER)
        tell_ignored(run)
        files.write_text(run.folder / "config.yaml", resolved_text(run.config))
        with reporting(run):
            checks.refuse_before_start(run)
            checks.check_model(run)
            with cluster(run.config.cluster):
                checks.refuse_attention(run, use_gpu=wants_gpu(run.config.cluster))
                jobs = list(_jobs(run, settings))
                left = [job for job in jobs if not _is_done(job)]
                _tell_unsealed([job for job in jobs if job not in left])
                show(f"{run.config.name}: {len(jobs)} jobs, {len(jobs) - len(left)} of them done before")
                use_gpu = wants_gpu(run.config.cluster)
                remote_each("compare", _run_job, [(job, use_gpu) for job in left], use_gpu=use_gpu, fresh=True)
            found = [_left(job) for job in jobs]
            assert run.config.evaluate is not None and run.config.evaluate.windows
            table = write_comparison(
                run.folder,
                found,
                run.base_context_length,
                run.config.evaluate.windows,
                stride=run.config.evaluate.stride,
                removed_scaling=removed_scaling(run.config.model),
            )
            failed = sum("failed" in one for one in found)
            result = f"compared {len(jobs)} jobs" + (f", {failed} of them failed" if failed else "")
            write_status(run.folder, state="succeeded", ended_at=now(), result=result)
        show(table)


def _left(job: Job) -> dict[str, Any]:
    """Return what a job has left.

    Raises:
        SettingsError: If it is not what the job has written.
    """
    found, _ = files.read_sealed(job.out, wanted=LEFT, keys=LEFT_KEYS)
    if (found["lane"], found["seed"]) != (job.lane, job.seed):
        name = f"{found['lane']}, seed {found['seed']}"
        raise SettingsError(f"{job.out}: is of the job {name}, wanted {job.lane}, seed {job.seed}; {AGAIN}")
    if found.get("told") != job.told:
        raise SettingsError(
            f"{job.out}: was made when compare.{'own' if job.own else 'best'} said something else of {job.lane}; "
            f"{AGAIN}{', or give the lane another name' if job.own else ''}"
        )
    return found


def _is_done(job: Job) -> bool:
    """Return whether a job need not run again; one that failed may find more memory the next time."""
    if not job.out.exists() or "failed" in files.read_object(job.out, wanted=LEFT, keys={}):
        return False
    _left(job)
    return True


def _tell_unsealed(done: Sequence[Job]) -> None:
    """Say in one line how many results are of an earlier version, which wrote no digest."""
    plain = sum(not files.read_sealed(job.out, wanted=LEFT, keys=LEFT_KEYS)[1] for job in done)
    if plain:
        show(
            f"{plain} results in {done[0].out.parent} carry no digest, as of an earlier version: damage cannot be told"
        )


def _jobs(run: Run, settings: CompareSettings) -> Iterator[Job]:
    """Yield all jobs, the long ones first, so that no worker is left with one at the end."""
    from e2ray.data.shards import read_manifest

    largest = run.config.positions.max_scale
    shards = prepare(run)
    lengths = read_manifest(shards).get("validation_lengths")
    checks.refuse_unscorable(run.config, run.base_context_length, lengths)
    base = base_of(run, shards)
    short = _shared(run, shards, base)
    folder = run.folder / "lanes"
    jobs = []
    for lane in sorted(settings.lanes, key=lambda lane: lane != "pi_long"):
        wide = _long_run(run, base) if lane == "pi_long" else None
        shared = _shared(wide, prepare(wide), base, documents=shards) if wide else short
        config = wide.config if wide else run.config
        if lane == "best":
            config = checks.best_of(config, settings)
        else:
            config = config.model_copy(update={"positions": lane_positions(lane, largest)})
        seeds = settings.seeds[: settings.long_window_seeds] if wide else settings.seeds
        for seed in seeds:
            one = config.model_copy(update={"seed": seed})
            jobs.append(Job(lane, seed, shared, one, largest, settings.retrieval, folder / f"{lane}-{seed}.json"))
    for name, own in settings.own.items():
        train = run.config.train.model_copy(update={"objective": own.objective} if own.objective else {})
        config = run.config.model_copy(update={"positions": own.positions, "train": train})
        for seed in settings.seeds[: own.seeds]:
            one = config.model_copy(update={"seed": seed})
            out = folder / f"own-{name}-{seed}.json"
            jobs.append(Job(name, seed, short, one, largest, settings.retrieval, out, own=True))
    for name in (UNTOUCHED, *settings.untrained):
        jobs.append(Job(name, 0, short, None, largest, settings.retrieval, folder / f"{name}-0.json"))
    yield from jobs


def _shared(run: Run, shards: str | Path, base: Any, *, documents: str | Path | None = None) -> tuple[Any, str | Path]:
    """Return what the jobs of one window share; `documents` are the shards whose held-out documents are scored."""
    from e2ray.search.trial import Shared

    task = task_of(run, run.folder, shards, base, run.config.train, run.config.positions)
    assert run.config.evaluate is not None
    return Shared(run.config.name, run.folder, task, run.config.evaluate, False, None), documents or shards


def _long_run(run: Run, base: Any) -> Run:
    """Return the run that trains on rows of G * L real tokens, as many tokens of the same text at each step."""
    window, sequences = checks.long_rows(run)
    data, train = run.config.data, run.config.train
    config = run.config.model_copy(
        update={
            "data": data.model_copy(update={"window": window}),
            "train": train.model_copy(update={"batch_sequences": sequences, "micro_batch_sequences": 1}),
        }
    )
    return replace(run, config=config)


def _run_job(job: Job, use_gpu: bool) -> None:
    """Train and measure one lane under one seed and write what was found, or why not; runs in a worker of its own."""
    import torch

    from e2ray.evaluate.perplexity import is_out_of_memory

    device = torch.device("cuda" if use_gpu else "cpu")
    began = time.perf_counter()
    result: dict[str, Any] = {"lane": job.lane, "seed": job.seed, **NO_COST, "sums": [], "retrieval": [], "missing": []}
    result["told"] = job.told
    try:
        if job.config is None:
            model, hook = _base_model(job, device)
        else:
            model, hook, cost = _trained(job, device)
            result |= cost
        result |= _measured(job, model, hook, device)
    except SettingsError as error:
        result["failed"] = str(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        result["failed"] = "it does not fit into memory"
    job.out.parent.mkdir(parents=True, exist_ok=True)
    files.write_sealed(job.out, result | {"seconds": time.perf_counter() - began})
    said = result.get("failed") or f"{result['tokens']:,} tokens in {result['train_s']:.0f} s"
    show(f"{job.lane}, seed {job.seed}: {said}")


def _base_model(job: Job, device: Any) -> tuple[Any, Any]:
    """Return the base and a hook that reads it as the lane's untrained method does, as it is without one."""
    from e2ray.config.methods import UNTRAINED
    from e2ray.core.methods.registry import method_of
    from e2ray.core.model import build_model
    from e2ray.core.rope import RotaryHook, refuse_scaled
    from e2ray.train.engine import precision_of

    task = job.shared[0].task
    plain = task.model.model_copy(update={"lora": None, "gradient_checkpointing": False})
    dtype = precision_of(task.train, device)
    model = build_model(plain, dtype=dtype, vocab_size=task.vocab_size, seed=task.seed, device=device).eval()
    untrained = UNTRAINED.get(job.lane)
    if untrained:
        refuse_scaled(model, job.lane)
    method = method_of(untrained) if untrained else None
    return model, RotaryHook(model, method, base_context_length=task.base_context_length)


def _trained(job: Job, device: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Return (model, hook, what the training took)."""
    from e2ray.search.study import Plan
    from e2ray.search.trial import Workbench

    assert job.config is not None
    shared = replace(job.shared[0], study=f"{job.shared[0].study}-{job.lane}")  # what trackers call it
    bench = Workbench(shared, device=device)
    bench.begin(Plan(job.seed, job.config, (), None, None, {}))
    began = time.perf_counter()
    metrics = bench.advance(measured=False)
    bench.trackers.close(failed="failed" in metrics)
    took = time.perf_counter() - began
    if "failed" in metrics:
        raise SettingsError(metrics["failed"])
    assert bench.engine is not None
    steps = job.config.train.steps
    cost = {"tokens": metrics["tokens"], "train_s": took, "steps": steps, "peak_mib": peak_memory_mib(device)}
    return bench.engine.ds.module, bench.engine.hook, cost


def _measured(job: Job, model: Any, hook: Any, device: Any) -> dict[str, Any]:
    """Return `sums` (each window at scale 1 and as served), `retrieval`, and `missing`, lines on what has no figure."""
    from e2ray.data.shards import ShardSet
    from e2ray.data.tokenizer import load_tokenizer
    from e2ray.evaluate.documents import reachable_windows, select_documents
    from e2ray.evaluate.prompts import PromptFolder
    from e2ray.evaluate.retrieval import accuracy

    shared, shards = job.shared
    settings, length = shared.evaluate, shared.task.base_context_length
    opened = ShardSet.open(shards)
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
    tokenizer = load_tokenizer(shared.task.tokenizer_folder) if job.asked else None
    kept = PromptFolder(job.out.parent / "prompts", opened.manifest["digest"])
    sums, rows = [], []
    for window in sorted({*windows, *lengths}):
        served = _served(job, window, length)
        read_at = _scale_read(job, served, window)
        if window in windows:
            scales = [read_at] if job.config is None else sorted({1.0, served})
            for found in _window_sums(job, model, hook, documents, window, scales, device, missing):
                scale = served if job.config is None else found.scale
                sums.append(
                    {
                        "window": window,
                        "scale": scale,
                        "served": scale == served,
                        "nll": found.nll.tolist(),
                        "tokens": found.tokens.tolist(),
                    }
                )
        if window in lengths:
            said: list[str] = []
            with _noted(missing, window):
                rows += accuracy(
                    model,
                    hook,
                    held_out,
                    tokenizer,
                    settings=job.asked.model_copy(update={"context_lengths": (window,)}),
                    base_context_length=length,
                    batch_tokens=settings.batch_tokens,
                    device=device,
                    scale=read_at,
                    kept=kept,
                    progress=said.append,
                )
                missing += [line for line in said if line.startswith("left out")]
    return {"sums": sums, "retrieval": rows, "missing": missing}


def _window_sums(
    job: Job,
    model: Any,
    hook: Any,
    documents: Sequence[Any],
    window: int,
    scales: Sequence[float],
    device: Any,
    missing: list[str],
) -> list[Any]:
    """Return the sums of one window at some scales; one that has none leaves a line in `missing`."""
    from e2ray.evaluate.perplexity import document_sums

    settings = job.shared[0].evaluate
    found: list[Any] = []
    for scale in scales:
        said: list[str] = []
        with _noted(missing, window):
            one = document_sums(
                model,
                hook,
                documents,
                windows=[window],
                scales=[scale],
                stride=settings.stride,
                batch_tokens=settings.batch_tokens,
                device=device,
                name=job.lane,
                progress=said.append,
            )
            found += one
            missing += said if not one else []
    return found


@contextmanager
def _noted(missing: list[str], window: int) -> Iterator[None]:
    """Turn what cannot be measured at a window into a line."""
    try:
        yield
    except SettingsError as error:
        missing.append(f"{window:,} tokens: {error}")


def _served(job: Job, window: int, base_context_length: int) -> float:
    """Return the scale that a lane serves a window at."""
    if job.own and job.config is not None:
        return drawn_scale(job.config.positions, window, base_context_length)
    return lane_scale(job.lane, window, base_context_length, job.max_scale)


def _scale_read(job: Job, served: float, window: int) -> float:
    """Return the scale that a window is read at: the served one, or what dynamic NTK makes of it."""
    from e2ray.core.methods.ntk import DynamicNtk

    if job.lane != "dynamic_ntk":
        return served
    return DynamicNtk.scale_of(job.max_scale, window, job.shared[0].task.base_context_length)
