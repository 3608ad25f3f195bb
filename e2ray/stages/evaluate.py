"""The evaluate stage: the surface of base and tuned model, retrieval, the best scale per length and how far it reads.

The suites stage asks both models the tasks of published suites.

Every worker loads one model and scores its share of the documents; the driver puts their sums together, so the figures
are those of one worker that scores all.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.model import PretrainedModel
from e2ray.stages.cluster import remote, remote_each, wants_gpu
from e2ray.stages.run import Run, run_tokenizer, show

SUITES, SAMPLES = "suites.json", "suites-samples.jsonl"


def evaluate(run: Run, shards: str | Path, base: Any) -> dict[str, Any]:
    """Measure base and tuned model, write and print what was found, and return evaluation.json's content.

    The surface is written before retrieval is asked.

    Args:
        run: A run with a tuned model.
        shards: Its shards.
        base: Settings of the untouched base model.

    Raises:
        SettingsError: If there is no tuned model, or no document is long enough. One of retrieval is shown instead, and
            all but retrieval written.
        ImplausibleError: If the tuned model cannot be the one that was trained; what was measured is written.
    """
    from e2ray.core.methods.registry import method_of
    from e2ray.evaluate.by_length import length_cells
    from e2ray.evaluate.effective import effective_length, scale_table, sentences
    from e2ray.evaluate.perplexity import cell
    from e2ray.evaluate.plausible import refuse_implausible
    from e2ray.evaluate.removed import scaling_of
    from e2ray.evaluate.verdict import table, verdict
    from e2ray.evaluate.weights import weights_digest
    from e2ray.report.evaluation import write_by_length, write_evaluation, write_lengths
    from e2ray.train.record import read_metrics

    settings = run.config.evaluate
    assert settings is not None and settings.windows and settings.stride
    if not (run.folder / "model").is_dir():
        raise SettingsError(f"{run.folder / 'model'}: no tuned model yet; run train first")
    models = _models(run, base)
    sums, passes, scored = _surface(run, shards, models)
    cells = [cell(each) for each in sums]
    removed = removed_of(run, shards, base)
    label = method_of(run.config.positions.method).label
    found = verdict(cells, run.base_context_length, removed=removed, method=label)
    weights = {"weights_digest": weights_digest(run.folder / "model")}
    found["protocol"] |= scored | weights
    said = found["sentences"]
    scales = scale_table(sums, run.base_context_length) | weights
    windows, lengths = settings.windows, sorted({each.window for each in sums})
    by_length = [
        each
        for one in passes
        if (inside := [length for length in lengths if length <= one.window])
        for each in length_cells(one.nll, inside, last=settings.stride, scale=one.scale, model=one.model)
    ]

    def write(retrieval: list[dict[str, Any]]) -> None:
        tuned = [row for row in retrieval if row["model"] == "tuned"]
        asked = tuned if settings.retrieval else None
        effective = effective_length(sums, run.base_context_length, retrieval=asked)
        found["sentences"] = said + sentences(scales, effective)
        missing = sorted(set(windows) - set(lengths))
        write_evaluation(run.folder, cells, found, missing_windows=missing)
        tables: dict[str, Any] = {"scales": scales, "effective": effective, "retrieval": retrieval}
        write_lengths(run.folder, sums, **tables, removed_scaling=scaling_of(removed))

    write([])  # what is measured stays, whatever becomes of retrieval
    write_by_length(run.folder, by_length, removed_scaling=scaling_of(removed))
    if settings.retrieval:
        try:
            retrieval = _retrieval(run, shards, models)
        except SettingsError as error:
            show(f"retrieval left out: {error}")
        else:
            write(retrieval)
    show(table(cells, found))
    compared = refuse_implausible(
        cells,
        read_metrics(run.folder),
        window=run.config.data.window,
        loss_gap=settings.loss_gap,
        least_loss_share=settings.least_loss_share,
    )
    if not compared:
        show("the NLL was not held against the training losses: no window and scale has both")
    return files.read_vouched(run.folder / "evaluation.json", wanted="an evaluation")


def tuned_model(run: Run, base: Any) -> PretrainedModel:
    """Return the settings that load the run's `model/`."""
    scaling = getattr(base, "base_scaling", None)
    return PretrainedModel(
        path=str(run.folder / "model"),
        base_context_length=run.base_context_length,
        base_scaling="keep" if scaling == "keep" else None,
        attention=base.attention,
    )


def _models(run: Run, base: Any) -> dict[str, Any]:
    """Return the settings of both models, with the attention of the training where its device is at hand.

    One that the recipe names is taken as it is, and told where the training ran with another.

    Raises:
        SettingsError: If the base is not the one that the model was trained from.
    """
    from e2ray.train.origin import refuse_other_base
    from e2ray.train.record import training_facts

    remote("base", refuse_other_base, run.folder / "model", base, use_gpu=False)
    facts, named = training_facts(run.folder), run.config.model.attention
    same = facts.get("device", "").startswith("cuda") == wants_gpu(run.config.cluster)
    attention = {"attention": facts["attention"]} if facts and same and named == "auto" else {}
    if facts and named not in ("auto", facts["attention"]):
        show(f"model.attention: {named} here, {facts['attention']} in the training")
    return {
        "base": base.model_copy(update=attention),
        "tuned": tuned_model(run, base).model_copy(update=attention),
    }


def base_length_of(run: Run, shards: str | Path, base: Any) -> dict[str, Any]:
    """Return how far the base reads at scale 1, measured now or before.

    Args:
        run: The run; its folder keeps the result.
        shards: Its shards; held-out documents are read.
        base: Settings of the base model.
    """
    from e2ray.evaluate.base_length import FILE

    path = run.folder / FILE
    if not path.exists():
        use_gpu = wants_gpu(run.config.cluster)
        files.write_sealed(path, remote("base length", measure_length, run, shards, base, use_gpu, use_gpu=use_gpu))
    return dict(files.read_vouched(path, wanted="how far the base reads"))


def measure_length(run: Run, shards: str | Path, base: Any, use_gpu: bool) -> dict[str, Any]:
    """Return what `measure_base` finds on the run's held-out documents; needs no cluster."""
    from e2ray.evaluate.base_length import measure_base

    opened, device, hook, loaded = _loaded(run, shards, base, use_gpu)
    return measure_base(
        loaded,
        hook,
        opened.held_out(),
        base_context_length=run.base_context_length,
        batch_tokens=run.config.evaluate.batch_tokens if run.config.evaluate else 1,
        device=device,
        progress=show,
    )


def removed_of(run: Run, shards: str | Path, base: Any) -> dict[str, Any] | None:
    """Return how far the base moved when its scaling was removed, measured now or before; None where none was.

    Args:
        run: The run; its folder keeps the result.
        shards: Its shards; training rows are what is read.
        base: Settings of the base model.
    """
    from e2ray.evaluate.removed import FILE, removed_scaling

    if removed_scaling(base) is None:
        return None
    path = run.folder / FILE
    if not path.exists():
        use_gpu = wants_gpu(run.config.cluster)
        files.write_sealed(
            path, remote("removed scaling", _measure_removed, run, shards, base, use_gpu, use_gpu=use_gpu)
        )
    return dict(files.read_vouched(path, wanted="what removing the base's scaling did"))


def _measure_removed(run: Run, shards: str | Path, base: Any, use_gpu: bool) -> dict[str, Any]:
    """Compare the base with the checkpoint on the run's first rows; runs on a worker."""
    import torch

    from e2ray.data.shards import ShardSet
    from e2ray.evaluate.removed import TEXT_TOKENS, TEXTS, measure_removed

    opened = ShardSet.open(shards)
    rows = opened.tokens(range(min(TEXTS, opened.rows)))[:, : min(TEXT_TOKENS, run.base_context_length)]
    device = torch.device("cuda" if use_gpu else "cpu")
    dtype = torch.bfloat16 if use_gpu else torch.float32
    return measure_removed(base, rows.tolist(), dtype=dtype, device=device).row()


def _surface(run: Run, shards: str | Path, models: Mapping[str, Any]) -> tuple[list[Any], list[Any], dict[str, str]]:
    """Return the sums of every cell, the passes by length and what names the scored text.

    Each model's documents are scored by as many workers as train it.
    """
    from e2ray.evaluate.by_length import merged_passes
    from e2ray.evaluate.perplexity import merged

    use_gpu = wants_gpu(run.config.cluster)
    settings = run.config.evaluate
    assert settings is not None
    shares = min(run.config.cluster.num_workers, settings.documents)
    jobs = [(run, shards, name, models[name], share, shares, use_gpu) for name in models for share in range(shares)]
    parts = remote_each("evaluate", _score_share, jobs, use_gpu=use_gpu)
    by_model: dict[str, list[Any]] = {name: [] for name in models}
    for job, part in zip(jobs, parts, strict=True):
        if part is not None:  # fewer documents than workers leave some without any
            by_model[job[2]].append(part)
    sums = [one for each in by_model.values() for one in merged([part[0] for part in each])]
    passes = [one for each in by_model.values() for one in merged_passes([part[1] for part in each])]
    return sums, passes, parts[0][2]


def _score_share(
    run: Run, shards: str | Path, name: str, model: Any, share: int, shares: int, use_gpu: bool
) -> tuple[list[Any], list[Any], dict[str, str]] | None:
    """Return the sums of every `shares`-th document from `share` on and the passes by length, or None without one.

    With them goes what names the text: `tokenizer_hash`, and `documents_digest` of the documents of all workers. Runs
    on a worker; the first of a model tells how far it is.
    """
    from e2ray.data.shards import ShardSet
    from e2ray.evaluate.by_length import length_passes
    from e2ray.evaluate.documents import documents_digest, reachable_windows, select_documents
    from e2ray.evaluate.perplexity import document_sums

    settings = run.config.evaluate
    assert settings is not None and settings.windows and settings.scales and settings.stride
    tell: Callable[[str], None] | None = show if share == 0 else None
    opened = ShardSet.open(shards)
    held_out = opened.held_out()
    first = tell if name == "base" else None  # every model would say the same
    windows = reachable_windows(
        held_out, settings.windows, cut=settings.document_tokens, skip=settings.skip_documents, progress=first
    )
    documents = select_documents(
        held_out,
        minimum_tokens=max(windows),
        limit=settings.documents,
        cut=settings.document_tokens,
        skip=settings.skip_documents,
    )
    numbers = range(share, len(documents), shares)
    if not numbers:
        return None
    _, device, hook, loaded = _loaded(run, shards, model, use_gpu)
    if tell:
        tell(f"{name}: on {device.type}, {loaded.dtype}, {loaded.config._attn_implementation} attention")
    mine = [documents[number] for number in numbers]
    options: dict[str, Any] = {
        "numbers": numbers,
        "scales": settings.scales,
        "batch_tokens": settings.batch_tokens,
        "device": device,
        "name": name,
        "progress": tell,
    }
    sums = document_sums(loaded, hook, mine, windows=windows, stride=settings.stride, **options)
    passes = length_passes(loaded, hook, mine, windows=windows, **options)
    return (
        sums,
        passes,
        {"tokenizer_hash": opened.manifest["tokenizer_hash"], "documents_digest": documents_digest(documents)},
    )


def _loaded(run: Run, shards: str | Path, model: Any, use_gpu: bool) -> tuple[Any, Any, Any, Any]:
    """Return (shards, device, hook, model) ready to be measured; scales mean what they meant in the run's training."""
    import torch

    from e2ray.core.methods.registry import method_of
    from e2ray.core.model import build_model
    from e2ray.core.rope import RotaryHook
    from e2ray.data.shards import ShardSet

    opened = ShardSet.open(shards)
    device = torch.device("cuda" if use_gpu else "cpu")
    plain = model.model_copy(update={"lora": None, "gradient_checkpointing": False})
    dtype = torch.bfloat16 if use_gpu else torch.float32
    built = build_model(
        plain, dtype=dtype, device=device, vocab_size=opened.manifest["vocab_size"], seed=run.config.seed
    ).eval()
    method = method_of(run.config.positions.method)
    return opened, device, RotaryHook(built, method, base_context_length=run.base_context_length), built


def _retrieval(run: Run, shards: str | Path, models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the retrieval grid of all models."""
    use_gpu = wants_gpu(run.config.cluster)
    tokenizer = run_tokenizer(run, shards)
    jobs = [(run, shards, tokenizer, name, model, use_gpu) for name, model in models.items()]
    parts = remote_each("retrieval", _ask, jobs, use_gpu=use_gpu)
    return [{"model": name} | row for name, rows in zip(models, parts, strict=True) for row in rows]


def _ask(run: Run, shards: str | Path, tokenizer: Path, name: str, model: Any, use_gpu: bool) -> list[dict[str, Any]]:
    """Return one model's rows of the retrieval grid; runs on a worker."""
    from e2ray.data.tokenizer import load_tokenizer
    from e2ray.evaluate.prompts import PromptFolder
    from e2ray.evaluate.retrieval import accuracy

    settings = run.config.evaluate
    assert settings is not None and settings.retrieval and settings.windows
    opened, device, hook, loaded = _loaded(run, shards, model, use_gpu)
    return accuracy(
        loaded,
        hook,
        opened.held_out(),
        load_tokenizer(tokenizer),
        settings=settings.retrieval,
        base_context_length=run.base_context_length,
        batch_tokens=settings.batch_tokens,
        device=device,
        windows=settings.windows,
        kept=PromptFolder(run.storage / "prompts", opened.manifest["digest"]),
        progress=lambda line: show(f"{name}: {line}"),
    )


def check_suites(run: Run) -> None:
    """Say of each task of the run's suites that cannot be asked why not.

    Raises:
        SettingsError: If none can be, a folder is not there, or what asks them is not installed.
    """
    from e2ray.evaluate.suites import checked

    if run.config.evaluate and run.config.evaluate.suites:
        for each in checked(run.config.evaluate.suites).missing:
            show(f"evaluate.suites.tasks: {each['task']!r} {each['reason']}; it will have no score")


def suites(run: Run, shards: str | Path, base: Any) -> dict[str, Any]:
    """Ask base and tuned model the tasks of `evaluate.suites`, write what came out, and return suites.json's content.

    The tuned model's scales are those of scales.json where there is one, else W / L as for the base.

    Args:
        run: A run with a tuned model.
        shards: Its shards, for the tokenizer.
        base: Settings of the untouched base model.

    Raises:
        SettingsError: If there is no tuned model, scales.json is of other weights, no task is known, or a file of the
            user's is wrong.
    """
    from e2ray.evaluate.suites import versions
    from e2ray.evaluate.weights import read_scales
    from e2ray.train.record import environment, now

    settings = run.config.evaluate.suites if run.config.evaluate else None
    assert settings is not None
    if not (run.folder / "model").is_dir():
        raise SettingsError(f"{run.folder / 'model'}: no tuned model yet; run train first")
    started = now()
    path = run.folder / "scales.json"
    scales = {"base": None, "tuned": read_scales(path, model=run.folder / "model") if path.exists() else None}
    models = _models(run, base)
    use_gpu = wants_gpu(run.config.cluster)
    tokenizer = run_tokenizer(run, shards)
    jobs = [(run, shards, tokenizer, name, model, scales[name], use_gpu) for name, model in models.items()]
    try:
        parts = remote_each("suites", _ask_suites, jobs, use_gpu=use_gpu)
        with files.atomic_path(run.folder / SAMPLES) as aside, aside.open("wb") as target:
            for name in models:
                with _samples_of(run, name).open("rb") as source:
                    shutil.copyfileobj(source, target)
    finally:
        for name in models:
            _samples_of(run, name).unlink(missing_ok=True)
    there = environment()
    found = {
        "settings": settings.model_dump(mode="json"),
        "max_context_length": settings.max_context_length or run.longest,
        "versions": there["versions"] | versions(),
        "commit": there["commit"],
        "started_at": started,
        "ended_at": now(),
        "scores": [row for part in parts for row in part["scores"]],
        "missing": [row for part in parts for row in part["missing"]],
    }
    files.write_sealed(run.folder / SUITES, found)
    return found


def _samples_of(run: Run, name: str) -> Path:
    return run.folder / f"suites-samples-{name}.jsonl"


def _ask_suites(
    run: Run,
    shards: str | Path,
    tokenizer: Path,
    name: str,
    model: Any,
    scales: Mapping[str, Any] | None,
    use_gpu: bool,
) -> dict[str, list[Any]]:
    """Return one model's scores and what is missing, its samples in a file beside the others; runs on a worker."""
    from e2ray.data.tokenizer import load_tokenizer
    from e2ray.evaluate.harness import ScaledLM
    from e2ray.evaluate.suites import checked
    from e2ray.evaluate.suites import run as run_suites

    settings = run.config.evaluate
    assert settings is not None and settings.suites is not None
    longest = settings.suites.max_context_length or run.longest
    told = {"tokenizer": str(tokenizer), "max_seq_lengths": list(settings.suites.written_lengths(longest)) or [4096]}
    selection = checked(settings.suites, told)
    _, device, hook, loaded = _loaded(run, shards, model, use_gpu)
    asked = ScaledLM(
        Loaded(loaded, hook, load_tokenizer(tokenizer), device, run.base_context_length, scales),
        max_context_length=longest,
        too_long=settings.suites.too_long,
        batch_tokens=settings.batch_tokens,
        seed=settings.suites.seed,
    )
    out: dict[str, list[Any]] = {"scores": [], "missing": []}
    with files.atomic_path(_samples_of(run, name)) as aside, aside.open("w", encoding="utf-8") as file:
        for found in run_suites(asked, settings.suites, selection, progress=lambda line: show(f"{name}: {line}")):
            out["scores"] += [{"model": name} | row for row in found.scores]
            out["missing"] += [{"model": name} | row for row in found.missing]
            for sample in found.samples:
                line = files.finite({"model": name} | sample)
                file.write(json.dumps(line, ensure_ascii=False, default=str, allow_nan=False) + "\n")
    return out


@dataclass
class Loaded:
    """A loaded model and the scale that it reads a request with, as `evaluate.harness` asks for it.

    Attributes:
        model: In evaluation mode.
        hook: Its rotary hook.
        tokenizer: Of the model.
        device: Where it stands.
        base_context_length: L in tokens.
        scales: The content of scales.json, or None where W / L serves.
    """

    model: Any
    hook: Any
    tokenizer: Any
    device: Any
    base_context_length: int
    scales: Mapping[str, Any] | None

    def scale_of(self, num_tokens: int) -> float:
        """Return the scale that a request of `num_tokens` tokens, prompt and answer together, is read with."""
        from e2ray.core.scales import request_scale

        return request_scale(num_tokens, self.base_context_length, self.scales)
