"""A recipe's stages in order: prepare, pretrain, train, evaluate, suites, export.

The driver holds the run's files and the order; what needs a model or many cores runs in Ray workers. A stage whose
result stands is not run again, so the same command continues a run wherever it was stopped.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from e2ray import files
from e2ray.config.base import SettingsError, brief
from e2ray.config.load import read_resolved, resolved_text
from e2ray.config.model import PretrainedModel
from e2ray.config.places import is_uri
from e2ray.config.positions import PositionSettings
from e2ray.config.run import MENDABLE, RunConfig
from e2ray.config.train import TrainSettings
from e2ray.evaluate.removed import sentence
from e2ray.records.model import ModelTraining
from e2ray.stages import checks
from e2ray.stages.closing import last_lines, track_evaluation, write_page
from e2ray.stages.cluster import cluster, remote, wants_gpu
from e2ray.stages.evaluate import SAMPLES, SUITES, base_length_of, check_suites, evaluate, removed_of, suites
from e2ray.stages.run import (
    Run,
    ray_address,
    refuse_other_settings,
    reporting,
    resolve,
    result_line,
    run_tokenizer,
    show,
    tell_ignored,
    tell_unmeasured,
)
from e2ray.train.record import end_status, now, read_status, settle, write_environment, write_status

STAGES = ("prepare", "pretrain", "train", "evaluate", "suites", "export")  # the order of a whole run


def prepare(run: Run, *, again: bool = False) -> str | Path:
    """Return the folder of the run's shards, prepared now or before.

    Args:
        run: Its `data.shards` is taken as it is where it holds shards, or is a URI; without it the folder is named by
            content.
        again: Prepare `data.shards` anew if its content no longer fits the settings.

    Raises:
        SettingsError: If a source, the tokenizer or the folder is wrong, or shards are of another window or tokenizer.
    """
    from e2ray.data.prepare import prepare as prepare_shards
    from e2ray.data.prepare import shards_digest
    from e2ray.data.shards import MANIFEST, ShardSet

    data = run.config.data
    source = data.tokenizer
    assert source is not None, "resolve fills it in"
    if data.shards is None:
        folder = run.storage / "shards" / shards_digest(data, tokenizer_source=source)[:16]
    else:
        remote_place = is_uri(data.shards)
        folder = Path(data.shards).expanduser()
        if remote_place and again:
            raise SettingsError(f"data.shards: {data.shards} is read, not written; prepare into a folder and copy it")
        if remote_place or ((folder / MANIFEST).exists() and not again):
            place = data.shards if remote_place else folder
            manifest = ShardSet.open(place, window=data.window, tokenizer_hash=checks.checked_tokenizer(run)).manifest
            for line in checks.made_otherwise(data, manifest):
                show(f"warning: {line}")
            return place
    prepare_shards(data, folder, tokenizer_source=source, progress=show)
    return folder


def pretrain(run: Run, shards: str | Path) -> Path:
    """Return the Hugging Face folder of the run's base model, pretrained now or before."""
    from e2ray.train.origin import refuse_other_training

    folder, settings = run.base, run.config.pretrain
    assert settings is not None
    plain = run.config.model.model_copy(update={"lora": None})  # other runs share the base
    native = PositionSettings.model_validate({"preset": "native"})
    task = task_of(run, folder, shards, plain, settings, native)
    if (folder / "model").is_dir():
        refuse_other_training(task, by_rows=False)  # text that was added since needs no other base
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with files.lock(folder / ".lock", what="pretraining this base"):
            killed = settle(folder)
            if killed:
                show(f"{killed}; it goes on from what it left")
            try:
                write_status(folder, state="running", error=None, ended_at=None)
                _train(run, task)
            except BaseException as error:
                stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
                end_status(folder, "preempted" if stopped else "failed", str(error) or type(error).__name__)
                raise
            write_status(folder, state="succeeded", ended_at=now(), result=f"Base model: {folder / 'model'}")
    show(f"base model: {folder / 'model'}")
    return folder / "model"


def trained_model(run: Run, base: Path | None) -> Any:
    """Return the settings of the model that `train` starts from: the pretrained base of a built model."""
    if base is None:
        return run.config.model
    return PretrainedModel(
        path=str(base),
        base_context_length=run.base_context_length,
        attention=run.config.model.attention,
        gradient_checkpointing=run.config.model.gradient_checkpointing,
        lora=run.config.model.lora,
    )


def task_of(
    run: Run, folder: Path, shards: str | Path, model: Any, settings: TrainSettings, positions: PositionSettings
) -> Any:
    """Return the training of a model on the run's rows, into `folder`."""
    from e2ray.data.shards import read_manifest
    from e2ray.train.task import Task
    from e2ray.train.trackers import located

    manifest = read_manifest(shards)
    return Task(
        name=run.config.name if folder == run.folder else f"{run.config.name}-pretrain",
        folder=folder,
        shards=shards,
        tokenizer_hash=manifest["tokenizer_hash"],
        vocab_size=manifest["vocab_size"],
        window=run.config.data.window,
        base_context_length=run.base_context_length,
        seed=run.config.seed,
        model=model,
        positions=positions,
        train=settings,
        tokenizer=run_tokenizer(run, shards),
        shuffle_shards=run.config.data.shuffle_shards,
        prefetch_bytes=run.config.data.prefetch_mib * 2**20,
        packed=manifest.get("pack", "concat") != "concat",
        ledger=run.config.data.ledger and folder == run.folder,
        rows_digest=files.digest([entry["sha256"] for entry in manifest["shards"]]),
        show_progress=not sys.stdout.isatty(),
        trackers=located(run.config.trackers, run.folder.parent) if folder == run.folder else (),
    )


def _train(run: Run, task: Any) -> None:
    """Train into the task's folder and write its `model/`; continues from the folder's newest checkpoint."""
    from e2ray.train.launch import resources, train

    resources(run.config.cluster)
    train(task, run.config.cluster)
    for line in remote("write model", _write_model, task, use_gpu=False):
        show(line)


def _write_model(task: Any) -> list[str]:
    from e2ray.train import steps
    from e2ray.train.assemble import write_model

    found = steps.latest(task.folder / "checkpoints")
    assert found is not None, "a training that ends has saved its last step"
    return write_model(
        task.model,
        found,
        task.folder / "model",
        dtype=_saved_dtype(found),
        vocab_size=task.vocab_size,
        seed=task.seed,
        tokenizer=task.tokenizer_folder,
    )


def _saved_dtype(found: Path) -> Any:
    import torch

    kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    name = files.read_object(found / "state.json", wanted="a checkpoint's state", keys={"dtype": str})["dtype"]
    if name not in kinds:
        raise SettingsError(f"{found / 'state.json'}: is damaged, dtype is {name!r}; wanted {' or '.join(kinds)}")
    return kinds[name]


def train(run: Run, shards: str | Path, model: Any) -> None:
    """Fine-tune with the run's position draws.

    Raises:
        SettingsError: If a model of another training stands in the run's folder.
    """
    from e2ray.train.origin import ended_early, refuse_other_training

    task = task_of(run, run.folder, shards, model, run.config.train, run.config.positions)
    if (run.folder / "model").is_dir():
        refuse_other_training(task)
        if line := ended_early(task):
            show(line)
    else:
        _train(run, task)


def export(run: Run, base: Any) -> Path:
    """Write the folder that other programs serve, each serving profile proven against the hook."""
    settings = run.config.export
    assert settings is not None and settings.context_lengths
    if not (run.folder / "model").is_dir():
        raise SettingsError(f"{run.folder / 'model'}: no tuned model yet; run train first")
    remote("export", _export, run, base, use_gpu=False)
    return run.folder / "export"


def _export(run: Run, base: Any) -> None:
    from e2ray.core.model_folder import training_of
    from e2ray.serve.export import RunFacts
    from e2ray.serve.export import export as write_export
    from e2ray.train.beside import base_name

    evaluation = _evaluation(run)
    settings, model = run.config.export, run.config.model
    assert settings is not None and settings.context_lengths
    made = training_of(run.folder / "model") or ModelTraining(settings={})
    steps = run.config.train.steps if made.step is None else made.step
    tokens = steps * run.config.train.batch_sequences * run.config.data.window if made.tokens is None else made.tokens
    facts = RunFacts(
        name=run.config.name,
        base_model=base_name(model),
        settings=run.config.model_dump(mode="json", exclude={"storage", "trackers"}),
        method=run.config.positions.method,
        facts={"steps": steps, "tokens": tokens} | ({"ended by": "train.stop"} if made.stopped else {}),
    )
    write_export(
        run.folder / "model",
        run.folder / "export",
        base_context_length=run.base_context_length,
        context_lengths=settings.context_lengths,
        base_scaling=getattr(base, "base_scaling", None),
        evaluation=evaluation,
        run=facts,
        picture=run.folder / "evaluation.png" if evaluation is not None else None,
        scales=_measured_scales(run),
        progress=show,
    )


def _evaluation(run: Run) -> dict[str, Any] | None:
    """Return the content of evaluation.json, None without one.

    Raises:
        SettingsError: If it is damaged, or was measured with other weights than the run's.
    """
    from e2ray.evaluate.verdict import as_now
    from e2ray.evaluate.weights import refuse_other_weights

    path = run.folder / "evaluation.json"
    if not path.exists():
        return None
    found = files.read_vouched(path, wanted="an evaluation")
    if not isinstance(found, dict) or not isinstance(found.get("verdict"), dict) or "rows" not in found:
        raise SettingsError(f"{path}: is damaged; wanted rows and verdict; run `e2ray evaluate` again")
    protocol = found["verdict"].get("protocol") or {}
    refuse_other_weights({path: protocol.get("weights_digest")}, run.folder / "model")
    return found | {"verdict": as_now(found["verdict"])}


def _measured_scales(run: Run) -> dict[str, Any] | None:
    """Return the content of scales.json where the recipe serves by it and an evaluation has written it."""
    from e2ray.evaluate.weights import read_scales

    path = run.folder / "scales.json"
    if run.config.export is None or run.config.export.scale != "measured" or not path.exists():
        return None
    return read_scales(path, model=run.folder / "model")


def _tell_old_export(run: Run) -> None:
    """Say in one line that an export beside a new evaluation still serves by the older one's scales."""
    if run.config.export is not None and run.config.export.scale != "measured":
        return
    old, new = run.folder / "export" / "scales.json", run.folder / "scales.json"
    if old.parent.is_dir() and new.exists() and (not old.exists() or old.read_bytes() != new.read_bytes()):
        show(f"{old.parent}: serves by an earlier evaluation; `e2ray export` writes it anew")


def base_of(run: Run, shards: str | Path) -> Any:
    """Return the settings of the untouched base model, pretraining it where the recipe says so."""
    return trained_model(run, pretrain(run, shards) if run.config.pretrain else None)


def run_stages(run: Run, stages: Sequence[str]) -> None:
    """Run the named stages in order on a cluster; their results lie in the run's folder and under storage."""
    from e2ray.data.shards import read_manifest
    from e2ray.train.launch import resources
    from e2ray.train.origin import refuse_other_training

    training = bool({"pretrain", "train"} & set(stages))
    if "suites" in stages:
        check_suites(run)  # before the hours of a training
    if training:
        checks.refuse_before_start(run)
    if "train" in stages and not (run.folder / "model").is_dir():
        checks.refuse_lost_checkpoints(run)
        checks.check_model(run)
    with cluster(run.config.cluster):
        if training and not run.config.cluster.autoscaling:
            resources(run.config.cluster)  # before an hour of tokenising, not after
        if training:
            checks.refuse_attention(run, use_gpu=wants_gpu(run.config.cluster))
        shards = prepare(run)
        if list(stages) == ["prepare"]:
            return
        if training and "evaluate" in stages:
            lengths = read_manifest(shards).get("validation_lengths")
            checks.refuse_unscorable(run.config, run.base_context_length, lengths)
        base = base_of(run, shards)
        if "train" in stages:
            if removed := removed_of(run, shards, base):
                show(sentence(removed))
            is_new = isinstance(run.config.model, PretrainedModel) and not (run.folder / "model").is_dir()
            if is_new and run.config.evaluate:
                tell_base_length(base_length_of(run, shards, base))  # of one pretrained here L is known
            train(run, shards, base)
        elif (run.folder / "model").is_dir():
            task = task_of(run, run.folder, shards, base, run.config.train, run.config.positions)
            refuse_other_training(task, by_rows=False)  # text that has changed since is measured, too
        if "evaluate" in stages and run.config.evaluate:
            evaluate(run, shards, base)
            track_evaluation(run)
        if "suites" in stages and run.config.evaluate and run.config.evaluate.suites:
            suites(run, shards, base)
        if "export" in stages and run.config.export:
            export(run, base)


def execute(config: RunConfig) -> None:
    """Run a recipe to its end, or continue it; a finished run prints its result.

    Raises:
        SettingsError: If a setting, a path or data is wrong, or the run was begun with other settings.
    """
    from e2ray.search.journal import JOURNAL

    run = resolve(config.alone())
    with files.lock(run.folder / ".lock", what="running this run"):
        refuse_other_settings(run, besides=MENDABLE)
        if (run.folder / JOURNAL).exists():
            raise SettingsError(f"{run.folder}: holds a study of that name; choose another name for the training run")
        status = read_status(run.folder)
        if status and status["state"] == "succeeded" and (run.folder / "config.yaml").exists():
            show(f"{run.folder} is finished: {brief(status.get('result', 'its status tells no result'))}")
            tell_unmeasured(run)
            return
        tell_ignored(run)
        files.write_text(run.folder / "config.yaml", resolved_text(run.config))
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
    if run.config.evaluate is None:
        raise SettingsError("evaluate: is null, which leaves the stage out; give it a section or remove the line")
    _later_stage(run, "evaluate")
    _tell_old_export(run)
    if run.config.evaluate.suites:
        show("evaluate.suites: not asked again here; `e2ray suites` does")


def suites_only(config: RunConfig) -> None:
    """Ask a trained run the tasks of the recipe's `evaluate.suites`, without measuring it again."""
    run = resolve(config.alone())
    if run.config.evaluate is None or run.config.evaluate.suites is None:
        raise SettingsError("evaluate.suites: is null, so there is nothing to ask; give it a section with tasks")
    _later_stage(run, "suites")
    show(f"scores: {run.folder / SUITES}, samples: {run.folder / SAMPLES}")


def export_only(config: RunConfig) -> None:
    """Export a trained run again, with the recipe's `export` section."""
    run = resolve(config.alone())
    if run.config.export is None:
        raise SettingsError("export: is null, which leaves the stage out; give it a section or remove the line")
    _later_stage(run, "export")
    show(f"exported to {run.folder / 'export'}")


def _later_stage(run: Run, stage: str) -> None:
    if not (run.folder / "model").is_dir():
        raise SettingsError(f"{run.folder / 'model'}: no tuned model yet; run `e2ray train` with this recipe first")
    if not (run.folder / "config.yaml").is_file():
        raise SettingsError(
            f"{run.folder / 'config.yaml'}: is lost; put it back from a copy, or run `e2ray train` with the recipe "
            "that the model was trained with, which writes it anew"
        )
    refuse_other_settings(run, besides=MENDABLE)
    tell_ignored(run, *MENDABLE)
    with files.lock(run.folder / ".lock", what="running this run"):
        killed = settle(run.folder)
        if killed:
            show(killed)
        run_stages(run, [stage])
        path = run.folder / "config.yaml"  # its settings are those of the results beside it
        before = read_resolved(path)
        updated = before.model_copy(update=_measured_with(before, run.config, stage))
        files.write_text(path, resolved_text(updated))
        if read_status(run.folder) is not None:  # of nothing, one would begin that says `running`
            write_status(run.folder, result=result_line(run))
        if stage != "export" and (page := write_page(run)):
            show(f"page: {page}")


def _measured_with(before: RunConfig, now: RunConfig, stage: str) -> dict[str, Any]:
    """Return the section of config.yaml that a stage was run with; `evaluate` asks no suites, `suites` nothing else."""
    if stage not in ("evaluate", "suites"):
        return {stage: getattr(now, stage)}
    assert now.evaluate is not None
    measured, asked = (now, before) if stage == "evaluate" else (before, now)
    suites = asked.evaluate.suites if asked.evaluate else None
    return {"evaluate": (measured.evaluate or now.evaluate).model_copy(update={"suites": suites})}


def check(config: RunConfig, *, measure: bool = False) -> None:
    """Check what can be checked without a cluster: model, sources, shards that are made already, tokenizer, storage.

    A setting that is without effect is told, as at the start of the run.

    Args:
        config: The recipe.
        measure: Whether to load the base on this machine and find out how far it reads.

    Raises:
        SettingsError: For the first thing that a run would stumble over.
    """
    from e2ray.search.journal import JOURNAL, verified

    run = resolve(config)
    checks.refuse_unfit(run)
    checks.check_model(run)
    source = checks.source_of(run)
    refuse_other_settings(run, besides=(*MENDABLE, "search", "compare"))
    checks.refuse_lost_checkpoints(run)
    check_suites(run)
    shards = checks.standing_shards(run)
    lengths = shards.validation_lengths if shards else None
    checks.refuse_unscorable(run.config, run.base_context_length, lengths)
    tell_ignored(run)
    for line in checks.made_otherwise(run.config.data, shards) if shards else ():
        show(f"warning: {line}")
    for line in [] if ray_address() else checks.unfit_here(run):
        show(f"warning: on this machine: {line}")
    if measure:
        tell_base_length(_measured_here(run))
    train_settings = config.train
    tokens = train_settings.steps * train_settings.batch_sequences * config.data.window
    show(
        f"{config.name}: sound. L {run.base_context_length}, window {config.data.window}, scales up to "
        f"{config.positions.max_scale:g}, contexts up to {run.longest:,} tokens; "
        f"{train_settings.steps:,} steps of {train_settings.batch_sequences} rows, {tokens:,} tokens; "
        f"{source}; run folder {run.folder}"
    )
    if config.search:
        verified(run.folder / JOURNAL)
        trial = config.trial().train
        rungs = config.search.rungs(trial.steps, trial.log_every)
        show(
            f"search: sound. {config.search.trials} trials of {trial.steps:,} steps over {len(config.space())} "
            f"settings, {config.search.fixed_trials} of them published methods and repeats; "
            + (f"stopped early at {', '.join(map(str, rungs))} steps" if rungs else "none is stopped early")
        )


def tell_base_length(found: Mapping[str, Any]) -> None:
    """Say how far the base reads, a warning where its config claims more."""
    from e2ray.evaluate.base_length import told

    show(told(found))


def _measured_here(run: Run) -> dict[str, Any]:
    """Return how far the base reads, measured in this process on shards that are made already.

    Raises:
        SettingsError: If there are none yet, or the base is still to be pretrained.
    """
    import torch

    from e2ray.data.prepare import shards_digest
    from e2ray.stages.evaluate import measure_length

    data = run.config.data
    if not isinstance(run.config.model, PretrainedModel):
        raise SettingsError("--measure: the base is pretrained by the run at L, so that there is nothing to find out")
    assert data.tokenizer is not None, "resolve fills it in"
    made = run.storage / "shards" / shards_digest(data, tokenizer_source=data.tokenizer)[:16]
    shards = data.shards or made
    if checks.standing_shards(run) is None:
        raise SettingsError(f"--measure: reads held-out text, and {shards} is not made yet; run `e2ray prepare` first")
    return measure_length(run, shards, run.config.model, torch.cuda.is_available())


def plan_coverage(config: RunConfig, out: str | None) -> None:
    """Show which relative distances a recipe's draws will show the model, and write the picture."""
    from e2ray.core.model import base_facts
    from e2ray.stages.plan import coverage

    coverage(
        config.positions,
        name=config.name,
        window=config.data.window,
        base_context_length=base_facts(config.model).base_context_length,
        steps=config.train.steps,
        batch_sequences=config.train.batch_sequences,
        seed=config.seed,
        windows=config.evaluate.windows if config.evaluate else None,
        out=Path(out or f"{config.name}-coverage.png"),
        show=show,
    )
