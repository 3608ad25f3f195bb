"""The evaluate stage: the surface of base and tuned model, retrieval, the best scale per length and how far it reads.

Every worker loads one model and scores its share of the documents; the driver adds up their sums, so the figures are
those of one worker that scores all.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from e2ray.config.base import SettingsError
from e2ray.config.model import Model, PretrainedModel
from e2ray.core.attention import word_of
from e2ray.data.pace import Pace, show
from e2ray.evaluate.by_length import LengthPass, merged_passes
from e2ray.evaluate.findings import Findings, findings
from e2ray.evaluate.perplexity import Sums, merged
from e2ray.evaluate.plausible import refuse_implausible
from e2ray.evaluate.removing import removed_scaling
from e2ray.evaluate.shares import Reading, Share, ask, read_base, read_removed, score_share
from e2ray.evaluate.verdict import table
from e2ray.records.base_length import BaseLength
from e2ray.records.evaluation import Evaluation, RemovedScaling
from e2ray.records.folders import StorageFolder
from e2ray.records.retrieval import RetrievalRow
from e2ray.report.evaluation import write_by_length, write_evaluation, write_lengths
from e2ray.stages.remote import remote, remote_each, wants_gpu
from e2ray.stages.run import ResolvedRun, run_tokenizer
from e2ray.train.origin import refuse_other_base
from e2ray.train.record import read_metrics, training_facts


def evaluate(run: ResolvedRun, shards: str | Path, base: Model) -> Evaluation:
    """Measure base and tuned model, write and print the results, and return them.

    The surface is written before retrieval is asked.

    Raises:
        SettingsError: If there is no tuned model, or no document is long enough. An error of retrieval is only shown,
            and all but retrieval is written.
        ImplausibleError: If the tuned model cannot be the one that was trained; what was measured is written.
    """
    settings = run.evaluation
    run.refuse_untrained()
    models = models_of(run, base)
    sums, passes, text = _surface(run, shards, models)
    result = findings(
        sums,
        passes,
        settings,
        model=run.files.model,
        text=text,
        method=run.config.positions.method,
        base_context_length=run.base_context_length,
        removed=removed_of(run, shards, base),
    )
    with Pace(show, "evaluate: tables and pictures", total=1, unit="parts"):
        _write(run, result, [])  # what is measured stays, whatever becomes of retrieval
        write_by_length(run.folder, result.by_length, removed_scaling=result.removed_scaling)
    rows: Sequence[RetrievalRow] = []
    if settings.retrieval:
        try:
            rows = _retrieval(run, shards, models)
        except SettingsError as error:
            show(f"retrieval left out: {error}")
        else:
            _write(run, result, rows)
    show(table(result.cells, result.told(rows)[0]))
    compared = refuse_implausible(
        result.cells,
        read_metrics(run.folder),
        window=run.config.data.window,
        loss_gap=settings.loss_gap,
        least_loss_share=settings.least_loss_share,
    )
    if not compared:
        show("the NLL was not held against the training losses: no window and scale has both")
    return Evaluation.read(run.files.evaluation)


def _write(run: ResolvedRun, result: Findings, retrieval: Sequence[RetrievalRow]) -> None:
    """Write the findings into the run's folder, with the rows of retrieval where there are any."""
    verdict, effective = result.told(retrieval)
    write_evaluation(run.folder, result.cells, verdict, missing_windows=result.missing_windows)
    write_lengths(
        run.folder,
        result.sums,
        scales=result.scales,
        effective=effective,
        retrieval=retrieval,
        removed_scaling=result.removed_scaling,
    )


def models_of(run: ResolvedRun, base: Model) -> dict[str, Model]:
    """Return the settings of both models, with the attention of the training if they run on the same kind of device.

    One that the recipe names is used as it is, with a line where the training ran with another.

    Raises:
        SettingsError: If the base is not the one that the model was trained from.
    """
    remote("base", refuse_other_base, run.files.model, base, use_gpu=False)
    facts, named = training_facts(run.folder), run.config.model.attention
    same = facts is not None and facts.device.startswith("cuda") == wants_gpu(run.config.cluster)
    trained = word_of(facts.attention) if facts else None
    attention = {"attention": trained} if same and named == "auto" else {}
    if trained and named not in ("auto", trained):
        show(f"model.attention: {named} here, {trained} in the training")
    tuned = PretrainedModel(
        path=str(run.files.model),
        base_context_length=run.base_context_length,
        base_scaling="keep" if isinstance(base, PretrainedModel) and base.base_scaling == "keep" else None,
        attention=base.attention,
    )
    return {name: each.model_copy(update=attention) for name, each in (("base", base), ("tuned", tuned))}


def reading_of(run: ResolvedRun, shards: str | Path, name: str, model: Model) -> Reading:
    """Return a model and the text of a run, as they are sent to the workers of the connected cluster."""
    return Reading(
        name,
        model,
        run.config.positions.method,
        run.base_context_length,
        run.config.seed,
        shards,
        run_tokenizer(run, shards),
        wants_gpu(run.config.cluster),
    )


def base_length_of(run: ResolvedRun, shards: str | Path, base: Model) -> BaseLength:
    """Return how far the base reads held-out documents at scale 1, measured now or before; the run keeps it."""
    path = run.files.base_length
    length = BaseLength.find(path)
    if length is None:
        reading = reading_of(run, shards, "base", base)
        length = remote("base length", read_base, reading, run.base_batch_tokens, use_gpu=reading.use_gpu, tells=True)
        length.write(path)
    return length


def removed_of(run: ResolvedRun, shards: str | Path, base: Model) -> RemovedScaling | None:
    """Return how far the base moved on training rows when its scaling was removed; None where none was.

    It is measured now or before, and kept in the run's folder.
    """
    if not isinstance(base, PretrainedModel) or removed_scaling(base) is None:
        return None
    path = run.files.removed
    removed = RemovedScaling.find(path)
    if removed is None:
        reading = reading_of(run, shards, "base", base)
        removed = remote("removed scaling", read_removed, reading, base, use_gpu=reading.use_gpu)
        removed.write(path)
    return removed


def _surface(
    run: ResolvedRun, shards: str | Path, models: Mapping[str, Model]
) -> tuple[list[Sums], list[LengthPass], dict[str, str]]:
    """Return the sums of every cell, the passes by length and what names the scored text.

    Each model's documents are scored by as many workers as train it.
    """
    settings = run.evaluation
    num_shares = min(run.config.cluster.num_workers, settings.documents)
    readings = [reading_of(run, shards, name, model) for name, model in models.items()]
    jobs = [(reading, settings, share, num_shares) for reading in readings for share in range(num_shares)]
    scored = remote_each("evaluate", score_share, jobs, use_gpu=wants_gpu(run.config.cluster), tells=True)
    by_model: dict[str, list[Share]] = {name: [] for name in models}
    for (reading, *_), share in zip(jobs, scored, strict=True):
        if share is not None:  # fewer documents than workers leave some without any
            by_model[reading.name].append(share)
    sums = [each for parts in by_model.values() for each in merged([part[0] for part in parts])]
    passes = [each for parts in by_model.values() for each in merged_passes([part[1] for part in parts])]
    return sums, passes, next(share[2] for share in scored if share is not None)


def _retrieval(run: ResolvedRun, shards: str | Path, models: Mapping[str, Model]) -> list[RetrievalRow]:
    """Return the rows of the retrieval grid of all models."""
    settings = run.evaluation
    if settings.retrieval is None:
        return []
    jobs = [
        (reading_of(run, shards, name, model), settings, settings.retrieval, StorageFolder(run.storage).prompts)
        for name, model in models.items()
    ]
    parts = remote_each("retrieval", ask, jobs, use_gpu=wants_gpu(run.config.cluster), tells=True)
    return [row.changed(model=name) for name, rows in zip(models, parts, strict=True) for row in rows]
