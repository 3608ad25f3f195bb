"""The suites stage: base and tuned model are asked the tasks of published suites."""

import shutil
from pathlib import Path

from e2ray import files
from e2ray.config.model import Model
from e2ray.config.suites import SuiteSettings
from e2ray.evaluate.asking import ask_suites
from e2ray.evaluate.suites import versions
from e2ray.evaluate.weights import read_scales
from e2ray.records.suites import Suites
from e2ray.stages.evaluate import models_of, reading_of
from e2ray.stages.remote import remote_each, wants_gpu
from e2ray.stages.run import ResolvedRun
from e2ray.train.environment import environment
from e2ray.train.record import now


def suites(run: ResolvedRun, settings: SuiteSettings, shards: str | Path, base: Model) -> Suites:
    """Ask base and tuned model the tasks, write the scores, and return them.

    The tuned model's scales are those of scales.json where there is one, else W / L as for the base.

    Raises:
        SettingsError: If there is no tuned model, scales.json is of other weights, no task is known, or a file of the
            user's is wrong.
    """
    run.refuse_untrained()
    started = now()
    path = run.files.scales
    scales = {"base": None, "tuned": read_scales(path, model=run.files.model) if path.exists() else None}
    samples = {name: run.files.samples_of(model=name) for name in scales}
    batch_tokens = run.evaluation.batch_tokens
    jobs = [
        (reading_of(run, shards, name, model), settings, run.longest, batch_tokens, scales[name], samples[name])
        for name, model in models_of(run, base).items()
    ]
    try:
        parts = remote_each("suites", ask_suites, jobs, use_gpu=wants_gpu(run.config.cluster), tells=True)
        with files.atomic_path(run.files.samples) as aside, aside.open("wb") as target:
            for each in samples.values():
                with each.open("rb") as source:
                    shutil.copyfileobj(source, target)
    finally:
        for each in samples.values():
            each.unlink(missing_ok=True)
    there = environment()
    record = Suites(
        settings=settings.model_dump(mode="json"),
        max_context_length=settings.max_context_length or run.longest,
        versions={**there.versions, **versions()},
        commit=there.commit,
        started_at=started,
        ended_at=now(),
        scores=tuple(score for part in parts for score in part.scores),
        missing=tuple(missing for part in parts for missing in part.missing),
    )
    record.write(run.files.suites)
    return record
