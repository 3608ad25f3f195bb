"""What a written model was trained from: its settings and its base, kept with it and compared with what is asked for.

A folder `model/` under a run's name may be another run's, or the run's own under settings that have changed since; and
the base it is compared with may have been replaced.
"""

from pathlib import Path

from e2ray.config.base import Plain, SettingsError
from e2ray.config.model import Model, PretrainedModel
from e2ray.config.run import difference
from e2ray.core.base import config_digest, trained_config
from e2ray.core.model_folder import training_of, weights_identity
from e2ray.records.folders import RunFolder
from e2ray.records.model import ModelTraining
from e2ray.train.task import Task, completed


def base_identity(model: Model) -> tuple[str | None, str | None]:
    """Return digests of the weights and the config that a training starts from; None each where the seed makes them."""
    if not isinstance(model, PretrainedModel):
        return None, None
    weights = weights_identity(model.path, model.revision, is_folder=model.is_folder)
    return weights, config_digest(trained_config(model))


def origin(identity: Plain) -> ModelTraining:
    """Return what a model's record says of its training, by its identity: its settings, and digests of the base."""
    model = identity["model"]
    assert isinstance(model, dict), "as a task says it"
    base = {name: model[name] for name in ("base_weights", "base_config")}
    settings = {**identity, "model": {name: value for name, value in model.items() if name not in base}}
    return ModelTraining.model_validate({"settings": settings, **base})


def refuse_other_training(task: Task, *, by_rows: bool = True) -> None:
    """Raise SettingsError if the model in a training's folder is of another training.

    Models without a record of their training pass; other rows count only if `by_rows`.
    """
    known, expected = training_of(RunFolder(task.folder).model), origin(task.identity(None, None))
    free = () if by_rows else ("data.rows",)
    mismatch = difference(completed(known.settings), expected.settings, free) if known else None
    if mismatch:
        raise SettingsError(
            f"{task.folder / 'model'}: is of another training: {mismatch}; take the recipe that it was trained "
            "with, choose another name, or remove the folder to train anew"
        )


def ended_early(task: Task) -> str | None:
    """Return a line if the model in a training's folder is of fewer steps, ended by `train.stop`, else None."""
    known = training_of(RunFolder(task.folder).model)
    if known is None or not known.stopped:
        return None
    return (
        f"{task.folder / 'model'}: its training ended at step {known.step} of {task.train.steps} by train.stop; "
        "remove the folder to go on from there under another limit"
    )


def refuse_other_base(folder: Path, base: Model) -> None:
    """Raise SettingsError if a base is not the one that the model of a folder was trained from.

    Weights of a hub id that are not on this machine yet are not checked.
    """
    known = training_of(folder)
    if known is None:
        return
    weights, config = base_identity(base)
    for what, current, recorded in (
        ("weights", weights, known.base_weights),
        ("settings in config.json", config, known.base_config),
    ):
        if current is not None and recorded != current:
            raise SettingsError(
                f"model.path {getattr(base, 'path', '')}: has other {what} than the base that {folder} was trained "
                "from, so they cannot be compared; put the base back as it was"
            )
