"""From sources to a trained model: prepare, pretrain, train. What exists already is used as it is."""

import sys
from pathlib import Path

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.model import Model, PretrainedModel
from e2ray.config.positions import PositionSettings
from e2ray.config.train import TrainSettings
from e2ray.config.uris import is_uri
from e2ray.data.made import made_otherwise
from e2ray.data.pace import show
from e2ray.data.prepare import prepare as prepare_shards
from e2ray.data.shards import read_manifest
from e2ray.records.folders import RunFolder
from e2ray.stages import checks
from e2ray.stages.remote import remote
from e2ray.stages.run import ResolvedRun, run_tokenizer
from e2ray.train import launch
from e2ray.train.assemble import write_trained
from e2ray.train.origin import ended_early, refuse_other_training
from e2ray.train.record import end_status, now, settle, write_status
from e2ray.train.task import Task
from e2ray.train.trackers import located


def prepare(run: ResolvedRun, *, again: bool = False) -> str | Path:
    """Return the folder of the run's shards, prepared now or before.

    `data.shards` is used as it is if it holds shards or is a URI; `again` prepares it anew where its content no longer
    fits the settings. Without it the folder is named by content.

    Raises:
        SettingsError: If a source, the tokenizer or the folder is wrong, or shards are of another window or tokenizer.
    """
    data, folder = run.config.data, run.made_shards
    if data.shards is not None:
        is_remote = is_uri(data.shards)
        if is_remote and again:
            raise SettingsError(f"data.shards: {data.shards} is read, not written; prepare into a folder and copy it")
        if not again and (standing := checks.standing_shards(run)):
            for line in made_otherwise(data, standing.manifest):
                show(f"warning: {line}")
            return data.shards if is_remote else folder
    prepare_shards(data, folder, tokenizer_source=data.tokenizer, progress=show)
    return folder


def pretrain(run: ResolvedRun, settings: TrainSettings, shards: str | Path) -> Path:
    """Return the Hugging Face folder of the run's base model, pretrained now or before."""
    folder = run.base
    plain = run.config.model.model_copy(update={"lora": None})  # other runs share the base
    native = PositionSettings.model_validate({"preset": "native"})
    task = task_of(run, folder, shards, plain, settings, native)
    left = RunFolder(folder)
    if left.model.is_dir():
        refuse_other_training(task, by_rows=False)  # text that was added since needs no other base
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with files.lock(left.lock, what="pretraining this base"):
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
            write_status(folder, state="succeeded", ended_at=now(), result=f"Base model: {left.model}")
    show(f"base model: {left.model}")
    return left.model


def base_of(run: ResolvedRun, shards: str | Path) -> Model:
    """Return the settings of the untouched base model, pretraining it where the recipe says so."""
    model = run.config.model
    if run.config.pretrain is None:
        return model
    return PretrainedModel(
        path=str(pretrain(run, run.config.pretrain, shards)),
        base_context_length=run.base_context_length,
        attention=model.attention,
        checkpoint_share=model.checkpoint_share,
        liger=model.liger,
        lora=model.lora,
    )


def task_of(
    run: ResolvedRun,
    folder: Path,
    shards: str | Path,
    model: Model,
    settings: TrainSettings,
    positions: PositionSettings,
) -> Task:
    """Return the training of a model on the run's rows, into `folder`."""
    manifest = read_manifest(shards)
    return Task(
        name=run.config.name if folder == run.folder else f"{run.config.name}-pretrain",
        folder=folder,
        shards=shards,
        tokenizer_hash=manifest.tokenizer_hash,
        vocab_size=manifest.vocab_size,
        window=run.config.data.window,
        base_context_length=run.base_context_length,
        seed=run.config.seed,
        model=model,
        positions=positions,
        train=settings,
        tokenizer=run_tokenizer(run, shards),
        shuffle_shards=run.config.data.shuffle_shards,
        prefetch_bytes=run.config.data.prefetch_mib * 2**20,
        packed=manifest.pack != "concat",
        ledger=run.config.data.ledger and folder == run.folder,
        rows_digest=files.digest([entry.sha256 for entry in manifest.shards]),
        show_progress=not sys.stdout.isatty(),
        trackers=located(run.config.trackers, run.folder.parent) if folder == run.folder else (),
    )


def own_task(run: ResolvedRun, shards: str | Path, model: Model) -> Task:
    """Return the run's own training, from the base model of these settings."""
    return task_of(run, run.folder, shards, model, run.config.train, run.config.positions)


def train(run: ResolvedRun, shards: str | Path, model: Model) -> None:
    """Fine-tune with the run's position draws.

    Raises:
        SettingsError: If the run's folder holds a model of another training.
    """
    task = own_task(run, shards, model)
    if run.is_trained:
        refuse_other_training(task)
        if line := ended_early(task):
            show(line)
    else:
        _train(run, task)


def _train(run: ResolvedRun, task: Task) -> None:
    """Train into the task's folder and write its `model/`; continues from the folder's newest checkpoint."""
    launch.resources(run.config.cluster)
    launch.train(task, run.config.cluster)
    for line in remote("write model", write_trained, task, use_gpu=False):
        show(line)
