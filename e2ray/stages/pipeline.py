"""A recipe's stages in order: prepare, pretrain, train, evaluate, suites, export.

The driver keeps the run's files and the order; what needs a model or many cores runs in Ray workers. A stage whose
result exists is not run again, so the same command continues a run wherever it was stopped.
"""

from collections.abc import Sequence

from e2ray import files
from e2ray.config.base import SettingsError, brief
from e2ray.config.evaluate import EvaluateSettings, ExportSettings
from e2ray.config.load import read_resolved, resolved_text
from e2ray.config.model import PretrainedModel
from e2ray.config.run import MENDABLE, RunConfig
from e2ray.data.pace import show
from e2ray.data.shards import read_manifest
from e2ray.evaluate.base_length import told
from e2ray.evaluate.removed import sentence
from e2ray.stages import checks
from e2ray.stages.closing import last_lines, track_evaluation, write_page
from e2ray.stages.cluster import cluster
from e2ray.stages.evaluate import base_length_of, evaluate, removed_of
from e2ray.stages.export import export, tell_old_export
from e2ray.stages.remote import wants_gpu
from e2ray.stages.run import (
    ResolvedRun,
    refuse_other_kind,
    refuse_other_settings,
    reporting,
    resolve,
    result_line,
    tell_ignored,
    tell_unmeasured,
)
from e2ray.stages.suites import suites
from e2ray.stages.train import base_of, own_task, prepare, train
from e2ray.train import launch
from e2ray.train.environment import write_environment
from e2ray.train.origin import refuse_other_training
from e2ray.train.record import now, read_status, settle, write_status

STAGES = ("prepare", "pretrain", "train", "evaluate", "suites", "export")  # the order of a whole run


def run_stages(run: ResolvedRun, stages: Sequence[str]) -> None:
    """Run the named stages in order on a cluster; their results go to the run's folder and the storage."""
    training = bool({"pretrain", "train"} & set(stages))
    trains = "train" in stages and not run.is_trained
    if "suites" in stages:
        checks.check_suites(run)  # before the hours of a training
    if training:
        checks.refuse_before_start(run)
    if trains:
        checks.refuse_lost_checkpoints(run)
        checks.check_model(run)
    with cluster(run.config.cluster):
        if training and not run.config.cluster.autoscaling:
            launch.resources(run.config.cluster)  # before an hour of tokenising, not after
        if training:
            checks.refuse_undoable(run, use_gpu=wants_gpu(run.config.cluster))
        shards = prepare(run)
        if list(stages) == ["prepare"]:
            return
        if training and "evaluate" in stages:
            lengths = read_manifest(shards).validation_lengths
            checks.refuse_unscorable(run.config, run.base_context_length, lengths)
        base = base_of(run, shards)
        if "train" in stages:
            if removed := removed_of(run, shards, base):
                show(sentence(removed))
            is_new = isinstance(run.config.model, PretrainedModel) and not run.is_trained
            if is_new and run.config.evaluate:
                show(told(base_length_of(run, shards, base)))  # for one pretrained here L is known
            train(run, shards, base)
        elif run.is_trained:
            refuse_other_training(
                own_task(run, shards, base), by_rows=False
            )  # text that has changed since is measured, too
        if "evaluate" in stages and run.config.evaluate:
            evaluate(run, shards, base)
            track_evaluation(run, begun_only=trains)
        if "suites" in stages and run.config.evaluate and run.config.evaluate.suites:
            suites(run, run.config.evaluate.suites, shards, base)
        if "export" in stages and run.config.export:
            export(run, base)


def execute(config: RunConfig) -> None:
    """Run a recipe to its end, or continue it; a finished run prints its result.

    Raises:
        SettingsError: If a setting, a path or data is wrong, or the run was begun with other settings.
    """
    run = resolve(config.alone())
    with files.lock(run.files.lock, what="running this run"):
        refuse_other_settings(run, besides=MENDABLE)
        refuse_other_kind(run, "training run")
        status = read_status(run.folder)
        if status and status.state == "succeeded" and run.files.config.exists():
            show(f"{run.folder} is finished: {brief(status.result or 'its status tells no result')}")
            tell_unmeasured(run)
            if not run.files.page.exists() and (page := write_page(run)):  # what stopped it has come in between
                show(f"page: {page}")
            return
        tell_ignored(run)
        files.write_text(run.files.config, resolved_text(run.config))
        with reporting(run):
            write_environment(run.folder)
            run_stages(run, STAGES)
            write_status(run.folder, state="succeeded", ended_at=now(), result=result_line(run))
        for line in last_lines(run, write_page(run)):
            show(line)


def prepare_only(config: RunConfig) -> None:
    """Prepare a recipe's shards and print where they are."""
    run = resolve(config.alone())
    tell_ignored(run, "data")
    checks.refuse_sources(run.config.data)
    with cluster(run.config.cluster):
        show(f"shards: {prepare(run, again=True)}")


def evaluate_only(config: RunConfig) -> None:
    """Measure a trained run again, with the recipe's `evaluate` section."""
    run = resolve(config.alone())
    asks_suites = run.evaluation.suites is not None
    _later_stage(run, "evaluate")
    tell_old_export(run)
    if asks_suites:
        show("evaluate.suites: not asked again here; `e2ray suites` does")


def suites_only(config: RunConfig) -> None:
    """Ask a trained run the tasks of the recipe's `evaluate.suites`, without measuring it again."""
    run = resolve(config.alone())
    if run.config.evaluate is None or run.config.evaluate.suites is None:
        raise SettingsError("evaluate.suites: is null, so there is nothing to ask; give it a section with tasks")
    _later_stage(run, "suites")
    show(f"scores: {run.files.suites}, samples: {run.files.samples}")


def export_only(config: RunConfig) -> None:
    """Export a trained run again, with the recipe's `export` section."""
    run = resolve(config.alone())
    _ = run.exported  # refused where the recipe leaves it out
    _later_stage(run, "export")
    show(f"exported to {run.files.export}")


def _later_stage(run: ResolvedRun, stage: str) -> None:
    run.refuse_untrained("`e2ray train` with this recipe")
    if not run.files.config.is_file():
        raise SettingsError(
            f"{run.files.config}: is lost; put it back from a copy, or run `e2ray train` with the recipe "
            "that the model was trained with, which writes it anew"
        )
    refuse_other_settings(run, besides=MENDABLE)
    tell_ignored(run, *MENDABLE)
    with files.lock(run.files.lock, what="running this run"):
        killed = settle(run.folder)
        if killed:
            show(killed)
        run_stages(run, [stage])
        path = run.files.config  # its settings are those of the results beside it
        before = read_resolved(path)
        updated = before.model_copy(update=_measured_with(before, run.config, stage))
        files.write_text(path, resolved_text(updated))
        if read_status(run.folder) is not None:  # else a new one would say `running`
            write_status(run.folder, result=result_line(run))
        if stage != "export" and (page := write_page(run)):
            show(f"page: {page}")


def _measured_with(
    before: RunConfig, now: RunConfig, stage: str
) -> dict[str, EvaluateSettings | ExportSettings | None]:
    """Return the section of config.yaml that a stage was run with; `evaluate` asks no suites, `suites` nothing else."""
    if stage == "export":
        return {"export": now.export}
    measured, asked = (now, before) if stage == "evaluate" else (before, now)
    section = measured.evaluate or now.evaluate
    suites = asked.evaluate.suites if asked.evaluate else None
    return {"evaluate": section and section.model_copy(update={"suites": suites})}


COMMANDS = {
    "prepare": prepare_only,
    "train": execute,
    "evaluate": evaluate_only,
    "suites": suites_only,
    "export": export_only,
}
