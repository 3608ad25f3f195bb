"""The export stage: the folder that other programs serve, with the evidence of the run's evaluation."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from e2ray.config.model import Model, PretrainedModel
from e2ray.core.model_folder import training_of
from e2ray.data.pace import show
from e2ray.evaluate.weights import read_scales, refuse_other_weights
from e2ray.records.evaluation import Evaluation
from e2ray.records.folders import ExportFolder
from e2ray.records.model import ModelTraining
from e2ray.records.scales import Scales
from e2ray.serve.card import RunFacts
from e2ray.serve.export import export as write_export
from e2ray.serve.verify import Check
from e2ray.stages.remote import remote
from e2ray.stages.run import ResolvedRun
from e2ray.train.beside import base_name


def export(run: ResolvedRun, base: Model) -> Path:
    """Write the folder that other programs serve, each serving profile proven against the hook."""
    run.refuse_untrained()
    remote("export", exporting(run, base), use_gpu=False)
    return run.files.export


def exporting(run: ResolvedRun, base: Model) -> Callable[[], list[Check]]:
    """Return a function that writes the export and can be pickled.

    Raises:
        SettingsError: If an evaluation's files are damaged, or were measured with other weights than the run's.
    """
    evaluation = _evaluation(run)
    config = run.config
    made = training_of(run.files.model) or ModelTraining(settings={})
    steps = config.train.steps if made.step is None else made.step
    tokens = steps * config.train.batch_sequences * config.data.window if made.tokens is None else made.tokens
    facts = RunFacts(
        name=config.name,
        base_model=base_name(config.model),
        settings=config.model_dump(mode="json", exclude={"storage", "trackers"}),
        method=config.positions.method,
        facts={"steps": steps, "tokens": tokens} | ({"ended by": "train.stop"} if made.stopped else {}),
    )
    return partial(
        write_export,
        run.files.model,
        run.files.export,
        base_context_length=run.base_context_length,
        context_lengths=run.exported.context_lengths,
        base_scaling=base.base_scaling if isinstance(base, PretrainedModel) else None,
        evaluation=evaluation,
        run=facts,
        picture=run.files.picture if evaluation is not None else None,
        scales=measured_scales(run),
        progress=show,
    )


def _evaluation(run: ResolvedRun) -> Evaluation | None:
    """Return what was measured, None where nothing was.

    Raises:
        SettingsError: If it is damaged, or was measured with other weights than the run's.
    """
    path = run.files.evaluation
    evaluation = Evaluation.find(path)
    if evaluation is not None:
        refuse_other_weights({path: evaluation.verdict.protocol.weights_digest}, run.files.model)
    return evaluation


def measured_scales(run: ResolvedRun) -> Scales | None:
    """Return the scales of the run where the recipe serves by them and an evaluation has written them."""
    path = run.files.scales
    if run.config.export is None or run.config.export.scale != "measured" or not path.exists():
        return None
    return read_scales(path, model=run.files.model)


def tell_old_export(run: ResolvedRun) -> None:
    """Show in one line that an export beside a new evaluation still serves by the older one's scales."""
    if run.config.export is not None and run.config.export.scale != "measured":
        return
    old, new = ExportFolder(run.files.export).scales, run.files.scales
    if old.parent.is_dir() and new.exists() and (not old.exists() or old.read_bytes() != new.read_bytes()):
        show(f"{old.parent}: serves by an earlier evaluation; `e2ray export` writes it anew")
