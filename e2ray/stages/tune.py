"""A study from its recipe to its exports: shards, base model, trials, tables, recipes and the report."""

import shlex
import shutil
from collections import Counter
from pathlib import Path

import torch
from matplotlib.figure import Figure

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.load import read_resolved, resolved_text
from e2ray.config.positions import PositionSettings
from e2ray.config.run import RunConfig, difference
from e2ray.config.search import SearchSettings
from e2ray.config.space import assign
from e2ray.config.train import ClusterSettings
from e2ray.core.coverage import measure
from e2ray.core.scales import paper_scale
from e2ray.data.pace import Pace, show
from e2ray.data.shards import ShardSet, read_manifest
from e2ray.evaluate.documents import first_unseen
from e2ray.records.folders import StudyFolder
from e2ray.report.sections.coverage import draw_coverage
from e2ray.report.study.page import write_study
from e2ray.search import tune as trials
from e2ray.search.exports import write_recipes, write_tables
from e2ray.search.journal import end_path, verified
from e2ray.search.progress import Progress, outcome, table
from e2ray.search.record import StudyResults
from e2ray.search.results import results
from e2ray.search.shared import share
from e2ray.search.study import Study
from e2ray.search.trial import examine_base
from e2ray.stages import checks
from e2ray.stages.cluster import cluster
from e2ray.stages.remote import remote, wants_gpu
from e2ray.stages.run import ResolvedRun, refuse_other_kind, reporting, resolve, tell_ignored
from e2ray.stages.train import base_of, prepare, task_of
from e2ray.train.environment import environment
from e2ray.train.record import now, write_status

FREE_ON_RESUME = (
    *("compare", "export", "trackers"),
    *("cluster", "storage", "search.trials", "search.concurrency", "search.progress_s", "train.progress_s"),
    *(f"search.trial.cluster.{name}" for name in ClusterSettings.model_fields),
)
BUDGET = (  # settings of search.trial that the recipe of a chosen trial takes from the study's recipe instead
    "train.steps",
    "train.warmup_steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.progress_s",
)


def tune(config: RunConfig, *, resume: bool) -> None:
    """Run the study of a recipe to its end, or `resume` it; one that is not there yet is begun in either case.

    Raises:
        SettingsError: If a setting, a path or data is wrong, the name belongs to another study or run, or the cluster
            is too small for one trial.
        RuntimeError: If workers die whatever the trial, or no trial was completed.
    """
    if config.search is None:
        raise SettingsError(
            "search: the recipe has no such section; add `search: {trials: 48}`, which takes the default space"
        )
    run = resolve(config)
    with files.lock(run.files.lock, what="running this study"):
        refuse_other_study(run, resume=resume)
        tell_ignored(run)
        files.write_text(run.files.config, resolved_text(run.config))
        with reporting(run):
            environment().write(run.files.environment)
            line = _run(run, config.search)
            write_status(run.folder, state="succeeded", ended_at=now(), result=line)
        show(line)


def refuse_other_study(run: ResolvedRun, *, resume: bool) -> None:
    """Raise SettingsError if the run's folder holds anything but this study, whole, or it is not to be continued."""
    folder = StudyFolder(run.folder)
    path, journal = folder.config, folder.journal
    refuse_other_kind(run, "study")
    if not journal.exists() and not end_path(journal).exists():
        if any(folder.export.glob("*")):
            raise SettingsError(
                f"{journal}: is missing beside the exports of a study; put it back from a copy, or choose another name"
            )
        return
    if not resume:
        raise SettingsError(f"{run.folder}: holds a study of that name; --resume continues it, or choose another name")
    if not path.exists():
        raise SettingsError(
            f"{path}: is missing beside the journal of a study, so nobody can say what was searched; put it back or "
            "choose another name"
        )
    before = read_resolved(path)
    mismatch = difference(before.model_dump(mode="json"), run.config.model_dump(mode="json"), free=FREE_ON_RESUME)
    if mismatch:
        raise SettingsError(
            f"{path}: the study {run.config.name!r} was begun with other settings: {mismatch}; "
            "choose another name, or the old value"
        )
    verified(journal)  # before an hour of tokenising, not after


def _run(run: ResolvedRun, search: SearchSettings) -> str:
    """Run the missing trials and write the exports; return one line with the result."""
    checks.refuse_before_start(run)
    checks.check_model(run)
    with cluster(run.config.cluster):
        checks.refuse_undoable(run, use_gpu=wants_gpu(run.config.cluster))
        workers = run.config.trial().cluster  # of one trial; the recipe's own train the base model
        room = trials.room(workers, search.concurrency)  # before an hour of tokenising, not after
        shards = prepare(run)
        lengths = read_manifest(shards).validation_lengths
        checks.refuse_unscorable(run.config, run.base_context_length, lengths)
        model = base_of(run, shards)
        task = task_of(run, run.folder, shards, model, run.config.trial().train, run.config.positions)
        shared = share(run.config, task, run.folder)
        study = Study(run.folder, run.config, run.base_context_length)
        if len(study.records()) > search.trials:
            raise SettingsError(f"search.trials: the study has {len(study.records())} already, got {search.trials}")
        if study.base is None:
            use_gpu = wants_gpu(run.config.cluster)
            device = torch.device("cuda" if use_gpu else "cpu")
            study.set_base(*remote("evaluate base", examine_base, shared, device, use_gpu=use_gpu))
        unseen = _unseen(run, shards)
        if unseen is None:
            show("the trials are scored on every held-out document that is long enough: best.yaml will be, too")
        begun = _num_ended(study)
        pace = Pace(show, study.name, total=search.trials - begun, unit="trials")
        progress = Progress(
            study.records,
            study.facts(),
            show=pace.tell,
            every_s=search.progress_s,
            export=lambda: export_tables(run, study),
            gauges=trials.gauges(study.name),
        )

        def show_trial(number: int) -> None:
            progress.told(number)
            pace.done = _num_ended(study) - begun

        show(f"{study.name}: {search.trials} trials, {room.trials} at once")
        try:
            with pace:
                trials.run(study, shared, workers, told=show_trial, room_of=room)
        finally:
            if any(record.finished for record in study.records()):
                export_tables(run, study)
        show(table(study.records(), study.facts(), elapsed_s=progress.elapsed_s))
        _refuse_unfinished(study)
        return export(run, study, unseen)


def _num_ended(study: Study) -> int:
    return sum(record.finished for record in study.records())


def _unseen(run: ResolvedRun, shards: str | Path) -> int | None:
    """Return how many of the recipe's own evaluation documents come before the first that no trial was scored on."""
    trial = run.config.trial().evaluate
    assert trial is not None, "a search compares trials by it"
    lengths = [len(tokens) for _, tokens in ShardSet.open(shards).validation_documents()]
    return first_unseen(lengths, run.base_context_length, scored=trial, own=run.evaluation)


def _refuse_unfinished(study: Study) -> None:
    """Raise RuntimeError if trials are missing, or none was completed."""
    records = study.records()
    missing = study.search.trials - sum(record.finished for record in records)
    if missing:
        raise RuntimeError(f"{missing} of {study.search.trials} trials did not end; --resume continues the study")
    if not any(record.state == "complete" for record in records):
        reasons = Counter(record.reason for record in records if record.reason)
        raise RuntimeError(f"no trial was completed; most often: {reasons.most_common(1)[0][0] if reasons else '?'}")


def found_of(study: Study, *, with_surrogate: bool) -> StudyResults:
    """Return everything that can be said about a study so far."""
    importances, spread = study.importances(), study.importance_spread()
    return results(study.records(), study.facts(), importances, spread, with_surrogate=with_surrogate)


def export_tables(run: ResolvedRun, study: Study) -> None:
    """Write what can be said about a running study so far: tables, Pareto front, ranges without a surrogate."""
    write_tables(StudyFolder(run.folder).export, found_of(study, with_surrogate=False))


def export(run: ResolvedRun, study: Study, unseen: int | None) -> str:
    """Write all exports of a finished study and return one line with the result.

    `unseen` is how many evaluation documents a chosen recipe leaves out; None if the study saw them all.
    """
    folder = StudyFolder(run.folder).export
    journal = folder / StudyFolder.journal.name
    summary = found_of(study, with_surrogate=True)
    write_tables(folder, summary)
    assert run.config.search is not None
    trial = {path: value for path, value in run.config.search.trial.items() if path.startswith("train.")}
    recipe = run.config.model_dump(mode="json", exclude={"search"})
    recipe = assign(recipe, {path: value for path, value in trial.items() if path not in BUDGET}, RunConfig)
    write_recipes(folder, summary, recipe, skip_documents=unseen)
    with files.atomic_path(journal) as aside:
        shutil.copyfile(study.path, aside)
    command = f"optuna-dashboard {shlex.quote(str(journal))}"
    page = write_study(folder, summary, coverage=_coverage(study, summary), journal_command=command)
    show(f"browse the study: {command}")
    return f"{outcome(summary)} Report: {page}"


def _coverage(study: Study, summary: StudyResults) -> dict[str, Figure]:
    """Return pictures by title of the distances that the draws of the chosen trials and of the paper's preset show."""
    start, pictures, seen = study.start, {}, set[int]()
    for role, number in {**summary.chosen, "the paper's preset": 0}.items():
        record = summary.record(number)
        if number in seen or "positions" not in record.settings:
            continue
        seen.add(number)
        measured = measure(
            PositionSettings.model_validate(record.settings["positions"]),
            window=start.data.window,
            base_context_length=study.base_context_length,
            scales=[
                paper_scale(w, study.base_context_length) for w in sorted({study.base_context_length, *study.windows})
            ],
            steps=record.steps,
            batch_sequences=start.train.batch_sequences,
            seed=record.seed,
        )
        title = f"{role} (trial {number})"
        pictures[title] = draw_coverage(measured, title=title)
    return pictures
