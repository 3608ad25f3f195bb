"""A comparison: one base model, many ways to extend its context, each trained, measured and asked the same way.

A lane under one seed is a job, which runs in a Ray task and writes one file; a comparison that was stopped goes on with
the jobs that have written none or failed. Trained lanes share rows, tokens, learning rate and loop, and differ only in
their draws; two differ in one thing more, and the table says so: pi_long has long rows of the same text, and best
the learning rate that its study has found. What a lane could not do is missing, with its reason, and the others go on.
"""

from dataclasses import replace

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.compare import UNTOUCHED, CompareSettings, lane_positions
from e2ray.config.load import resolved_text
from e2ray.config.resolved import ResolvedConfig
from e2ray.config.run import RunConfig
from e2ray.data.pace import show
from e2ray.data.shards import read_manifest
from e2ray.evaluate.removing import removed_scaling
from e2ray.records.folders import ComparisonFolder
from e2ray.report.compare.page import write_comparison
from e2ray.stages import checks
from e2ray.stages.cluster import cluster
from e2ray.stages.remote import remote_each, wants_gpu
from e2ray.stages.run import ResolvedRun, refuse_other_kind, refuse_other_settings, reporting, resolve, tell_ignored
from e2ray.stages.train import base_of, own_task, prepare
from e2ray.train.environment import environment
from e2ray.train.lane import Job, is_done, left, run_job, unsealed
from e2ray.train.record import now, write_status
from e2ray.train.task import Task

MAY_DIFFER = (
    *("cluster", "export", "search"),
    *("compare.lanes", "compare.untrained", "compare.own", "compare.seeds", "compare.long_window_seeds"),
)


def compare(config: RunConfig) -> None:
    """Run every lane of a recipe's `compare` section and write tables, picture and page.

    Raises:
        SettingsError: If a setting, a path or data is wrong, or another comparison has that name.
    """
    settings = config.compare
    if settings is None:
        raise SettingsError("compare: is null, wanted the lanes; give the recipe a compare section")
    if config.evaluate is None:
        raise SettingsError("evaluate: is null, a comparison measures by it; give it a section")
    run = resolve(config)
    with files.lock(run.files.lock, what="running this comparison"):
        refuse_other_kind(run, "comparison")
        refuse_other_settings(run, begun=any(ComparisonFolder(run.folder).lanes.glob("*.json")), besides=MAY_DIFFER)
        tell_ignored(run)
        files.write_text(run.files.config, resolved_text(run.config))
        with reporting(run):
            environment().write(run.files.environment)
            checks.refuse_before_start(run)
            checks.check_model(run)
            with cluster(run.config.cluster):
                checks.refuse_undoable(run, use_gpu=wants_gpu(run.config.cluster))
                jobs = _jobs(run, settings)
                _run_missing(run, jobs)
            lanes = [left(job) for job in jobs]
            table = write_comparison(
                run.folder,
                lanes,
                run.base_context_length,
                run.evaluation.windows,
                stride=run.evaluation.stride,
                removed_scaling=removed_scaling(run.config.model),
            )
            failed = sum(each.failed is not None for each in lanes)
            result = f"compared {len(jobs)} jobs" + (f", {failed} of them failed" if failed else "")
            write_status(run.folder, state="succeeded", ended_at=now(), result=result)
        show(f"{table}page: {ComparisonFolder(run.folder).page}")


def _run_missing(run: ResolvedRun, jobs: list[Job]) -> None:
    """Run the jobs that have written nothing, or failed, on the connected cluster."""
    done = [job for job in jobs if is_done(job)]
    _tell_unsealed(done)
    show(f"{run.config.name}: {len(jobs)} jobs, {len(done)} of them done before")
    use_gpu = wants_gpu(run.config.cluster)
    missing = [job for job in jobs if job not in done]
    for trained in (True, False):  # those trained keep their peak memory, so that they are alone in their processes
        calls = [(job, use_gpu) for job in missing if (job.config is not None) is trained]
        if calls:
            remote_each("compare", run_job, calls, use_gpu=use_gpu, fresh=trained)


def _tell_unsealed(done: list[Job]) -> None:
    """Show in one line how many results are of an earlier version, which wrote no digest."""
    if plain := unsealed(done):
        show(
            f"{plain} results in {done[0].out.parent} carry no digest, as of an earlier version: damage cannot be told"
        )


def _jobs(run: ResolvedRun, settings: CompareSettings) -> list[Job]:
    """Return all jobs, the long ones first, so that no worker is left with one at the end."""
    shards = prepare(run)
    lengths = read_manifest(shards).validation_lengths
    checks.refuse_unscorable(run.config, run.base_context_length, lengths)
    base = base_of(run, shards)
    task, largest, folder = own_task(run, shards, base), run.config.positions.max_scale, ComparisonFolder(run.folder)

    def job(lane: str, seed: int, task: Task, config: ResolvedConfig | None, *, own: bool = False) -> Job:
        seeded = config.model_copy(update={"seed": seed}) if config else None
        out = (folder.own_lane if own else folder.lane)(lane=lane, seed=seed)
        return Job(lane, seed, task, run.evaluation, shards, seeded, largest, settings.retrieval, out, own)

    jobs: list[Job] = []
    for lane in sorted(settings.lanes, key=lambda lane: lane != "pi_long"):
        wide = _long_run(run) if lane == "pi_long" else None
        config = wide.config if wide else run.config
        if lane == "best":
            config = checks.best_of(config, settings)
        else:
            config = config.model_copy(update={"positions": lane_positions(lane, largest)})
        seeds = settings.seeds[: settings.long_window_seeds] if wide else settings.seeds
        trained = own_task(wide, prepare(wide), base) if wide else task
        jobs += [job(lane, seed, trained, config) for seed in seeds]
    for name, own in settings.own.items():
        train = run.config.train.model_copy(update={"objective": own.objective} if own.objective else {})
        config = run.config.model_copy(update={"positions": own.positions, "train": train})
        jobs += [job(name, seed, task, config, own=True) for seed in settings.seeds[: own.seeds]]
    return jobs + [job(name, 0, task, None) for name in (UNTOUCHED, *settings.untrained)]


def _long_run(run: ResolvedRun) -> ResolvedRun:
    """Return the run that trains on rows of G * L real tokens, with as many tokens of the same text at each step."""
    window, sequences = checks.long_rows(run)
    data, train = run.config.data, run.config.train
    config = run.config.model_copy(
        update={
            "data": data.model_copy(update={"window": window}),
            "train": train.model_copy(update={"batch_sequences": sequences, "micro_batch_sequences": 1}),
        }
    )
    return replace(run, config=config)
