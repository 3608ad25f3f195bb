"""What the settings of evaluation, exports, comparisons and studies turn into, as `observed.py` for the others."""

import hashlib
import itertools
import json
import shutil
import types
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict

import pytest
import torch
from observed import VOCABULARY, Clock, shards_of
from transformers import AutoConfig

from e2ray.core import model as models
from e2ray.core.methods.registry import method_of
from e2ray.evaluate import asking
from e2ray.records.run import MetricsLine
from e2ray.search import progress, tune
from e2ray.search.shared import share
from e2ray.search.study import Study
from e2ray.serve.profiles import make_profile
from e2ray.stages import checks, pipeline
from e2ray.stages import compare as comparing
from e2ray.stages import evaluate as evaluation
from e2ray.stages import export as exporting
from e2ray.stages import train as training
from e2ray.train import launch

# ---- after the training -----------------------------------------------------------------------------------------


def base_in_place(run):
    """Put the untrained base where a run has its tuned model, and return its settings."""
    from e2ray.config.model import PretrainedModel

    target = run.folder / "model"
    if not target.is_dir():
        built = models.build_model(run.config.model, dtype=torch.float32, vocab_size=VOCABULARY, seed=run.config.seed)
        built.save_pretrained(target)
        shutil.copytree(
            shards_of(run) / "tokenizer", target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("e2ray")
        )
    return PretrainedModel(path=str(target), base_context_length=run.base_context_length)


@contextmanager
def forwards():
    """Note the shape of the tokens of every forward."""
    shapes = []

    def note(module, arguments):
        if isinstance(module, torch.nn.Embedding):
            shapes.append(list(arguments[0].shape))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    yield shapes
    handle.remove()


def surface(run, path):
    """The sums of every cell and the forwards that found them."""
    base = base_in_place(run)
    with forwards() as shapes:
        sums, passes, named = evaluation._surface(run, shards_of(run), {"base": base})
    cells = [[each.window, each.scale, each.stride, each.nll.tolist(), each.tokens.tolist()] for each in sums]
    return [cells, [each.nll.tolist() for each in passes], named, shapes]


def retrieval(run, path):
    """The rows of the grid, and a digest of the prompts."""
    base = base_in_place(run)
    with forwards() as shapes:
        found = evaluation._retrieval(run, shards_of(run), {"base": base})
    prompts = sorted(
        hashlib.sha256(each.read_bytes()).hexdigest() for each in (run.storage / "prompts").rglob("*") if each.is_file()
    )
    return [found, prompts, shapes]


def plausible(run, path):
    """How far above and below its training loss a model's NLL passes for that of the trained one."""
    from e2ray.evaluate.perplexity import Cell
    from e2ray.evaluate.plausible import ImplausibleError, refuse_implausible

    found, settings = [], run.config.evaluate
    lines = [MetricsLine(step=1, tokens=1, tokens_per_second=1.0, loss_by_scale={"1": 2.0})]
    bounds = {"loss_gap": settings.loss_gap, "least_loss_share": settings.least_loss_share}
    for nll in (0.0, 2.0, *(2.0 + 2.0**power for power in range(-50, 40)), *(2.0**power for power in range(-120, 1))):
        fields = ("tuned", 32, 1.0, nll, 0.0, 100, 1, 8, None)
        cell = Cell(**dict(zip(Cell.model_fields, fields, strict=False)))
        with suppress(ImplausibleError):
            refuse_implausible([cell], lines, window=32, **bounds)
            found.append(nll)
    return found


def suites(run, path):
    """The samples and scores of the tasks, and what is missing; the lengths that tasks are told to write."""
    settings = run.config.evaluate.suites
    told = []
    with pytest.MonkeyPatch.context() as patch:
        real = asking.checked
        patch.setattr(
            asking, "checked", lambda settings, told_them=None: told.append(told_them) or real(settings, told_them)
        )
        reading = evaluation.reading_of(run, shards_of(run), "base", base_in_place(run))
        samples = run.folder / "suites-samples-base.jsonl"
        parts = asking.ask_suites(reading, settings, run.longest, run.config.evaluate.batch_tokens, None, samples)
    samples = samples.read_text(encoding="utf-8")
    assert settings is not None
    return [parts, samples, [each["max_seq_lengths"] for each in told]]


def profiles(run, path):
    """How each context length is served."""
    base_in_place(run)
    settings = run.config.export
    config = AutoConfig.from_pretrained(run.folder / "model")
    method = method_of(run.config.positions.method)
    options = {"base_scaling": getattr(run.config.model, "base_scaling", None), "method": method}
    made = [make_profile(config, run.base_context_length, each, **options) for each in settings.context_lengths]
    return [asdict(each) for each in made]


def served(run, path):
    """The scales that an export serves by, where an evaluation has written some."""
    from e2ray.evaluate.weights import weights_digest

    base_in_place(run)
    row = {"context_length": 64, "paper": 2.0, "best": 1.0, "served": 1.0}
    found = {
        "base_context_length": run.base_context_length,
        "lengths": [row],
        "weights_digest": weights_digest(run.folder / "model"),
    }
    (run.folder / "scales.json").write_text(json.dumps(found), encoding="utf-8")
    return exporting.measured_scales(run)


def stages(run, path):
    """The stages that `e2ray train` runs."""
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "cluster", lambda settings: nullcontext())
        patch.setattr(launch, "resources", lambda settings: None)
        patched = [(pipeline, name) for name in ("train", "evaluate", "suites", "export")]
        for module, name in (*patched, (training, "pretrain"), (checks, "check_suites")):
            patch.setattr(module, name, lambda *arguments, name=name: ran.append(name) or "/nowhere")
        pipeline.run_stages(run, pipeline.STAGES)
    return ran


# ---- comparisons and studies ------------------------------------------------------------------------------------


def jobs(run, path):
    """The jobs of a comparison: what each trains and is asked."""
    settings = run.config.compare
    if settings is None:
        comparing.compare(run.config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "base_of", lambda run, shards: run.config.model)
        found = list(comparing._jobs(run, settings))
    return [
        [
            *(job.lane, job.seed, job.out.name, job.max_scale),
            job.config and [job.config.train.lr, job.config.positions.model_dump(), job.config.data.window],
            job.config and job.config.train.objective.model_dump(),
            job.asked and job.asked.model_dump(),
        ]
        for job in found
    ]


def study(run, path):
    """The first trials of a study: what each trains with, where it is measured, stopped, and what it is worth."""
    if run.config.search is None:
        from e2ray.stages import tune as tuning

        tuning.tune(run.config, resume=False)
    folder = run.storage / "study"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = Study(folder, run.config, run.base_context_length)
    windows = sorted({run.base_context_length, *made.windows})
    made.set_base(_cells(run, windows, 0.5), {"retrieval": 0.0, "answer_nll": 0.0})
    found = []
    for plan in itertools.islice(iter(made.next, None), 14):
        value = _value(plan)
        stopped = None
        for step in plan.rungs:
            if made.rung(plan.number, _measured(run, windows, step, value)):
                stopped = step
                break
        if stopped is None:
            made.complete(plan.number, _measured(run, windows, plan.config.train.steps, value))
        worth = made.records()[plan.number].value
        values = made._optuna.trials[plan.number].values
        told = [plan.number, plan.config.model_dump(), plan.rungs, plan.baseline, plan.repeat]
        found.append([*told, stopped, worth, values])
    return [found, shared(run, path)]


def shared(run, path):
    """What all trials of a study are measured with."""
    made = share(run.config, None, run.folder)
    return [made.evaluate.model_dump(), made.surface, made.retrieval and made.retrieval.model_dump()]


def _value(plan):
    told = json.dumps([plan.config.positions.model_dump(), plan.config.train.lr, plan.config.seed])
    return int(hashlib.sha256(told.encode()).hexdigest()[6:12], 16) / 16**6


def _cells(run, windows, value):
    rest = {"stderr": 0.01, "tokens": 100, "documents": 2, "stride": 8}
    return [
        {"window": w, "scale": max(1.0, w / run.base_context_length), "nll": 3 + value + w / 1000} | rest
        for w in windows
    ]


def _measured(run, windows, step, value):
    found = {"step": step, "cells": _cells(run, windows, value), "retrieval": 0.5, "answer_nll": 2.0}
    return found | {"tokens": 100 * step, "trial_seconds": 1.0, "loss": 3.0}


def room(run, path):
    """How many trials run at once on a machine of eight CPUs."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
        patch.setattr(ray, "nodes", lambda: [{"Resources": {"CPU": 8.0}, "Alive": True}])
        return tune.room(run.config.trial().cluster, run.config.search.concurrency).trials


def tables(run, path):
    """How many tables a study of a thousand seconds shows."""
    clock, lines = Clock(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "time", clock)
        patch.setattr(progress, "line_of", lambda *arguments: "")
        patch.setattr(progress, "table", lambda *arguments, **options: lines.append("") or "")
        every, quiet = run.config.search.progress_s, lambda *arguments: None
        made = progress.Progress(lambda: [None], None, show=quiet, every_s=every, export=quiet, gauges=quiet)
        patch.setattr(progress, "best_of", lambda records: None)
        made.records = lambda: [types.SimpleNamespace(state="complete")]
        for _ in range(100):
            clock.now += 10
            made.told(0)
    return len(lines)
