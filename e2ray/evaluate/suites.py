"""Published suites, run by lm-evaluation-harness: which tasks there are, and what a model scores on them.

A task that cannot be run (its data has to be fetched without a network, a package is missing, its prompts are too long)
is missing with one line on why; the others have scores. A group of which one task is missing has no score of its own,
since it would be that of another group. With every score come the number of prompts, their lengths in tokens, the
scales they were read at and how many were cut; each sample keeps its prompt as it was written.
"""

import difflib
import importlib.metadata
import json
import logging
import math
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import numpy as np
import torch

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.suites import SuiteSettings
from e2ray.data.pace import Pace, Progress
from e2ray.evaluate import leval, longproc
from e2ray.evaluate.perplexity import OUT_OF_MEMORY, is_out_of_memory
from e2ray.evaluate.requests import Key, Placed, RefusedError, request_key
from e2ray.optional import library
from e2ray.records.suites import MissingScore, Request, Sample, Score

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from e2ray.evaluate.harness import ScaledLM

Told = Mapping[str, Any]  # results of the harness, under its own names
LOCAL: dict[str, Sequence[str]] = {"leval": tuple(leval.EXAMS), "longproc": longproc.NAMES}
PACKAGES = ("lm_eval", "datasets")
SHOWN = 200  # characters of a folder's name in a message
BOOTSTRAPS = 1000  # for the spread of scores that are not a plain mean
# Errors of the libraries of datasets where the network or a cached copy is missing.
NETWORK_ERRORS = {
    "ConnectError",
    "ConnectTimeout",
    "ConnectionError",
    "LocalEntryNotFoundError",
    "MaxRetryError",
    "OfflineModeIsEnabled",
    "ProxyError",
    "ReadTimeout",
    "gaierror",
}


@dataclass
class Found:
    """The results of some tasks.

    Attributes:
        scores: One per task or group, score and filter.
        missing: Tasks, groups and scores that are missing, with the reason.
        samples: One per document of a task.
    """

    scores: list[Score] = field(default_factory=list)
    missing: list[MissingScore] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


@dataclass
class Selection:
    """The tasks of the settings that can be asked.

    Attributes:
        manager: The harness's index of tasks, which knows every one of `names`.
        names: Tasks and groups that are run, each once.
        missing: The names that are not a task, or of which a folder holds nothing.
    """

    manager: "TaskManager"
    names: list[str]
    missing: list[MissingScore]


def checked(settings: SuiteSettings, metadata: Mapping[str, object] | None = None) -> Selection:
    """Return which tasks the settings name; nothing is loaded.

    A name that cannot be asked is missing. Tasks of a tag and of `<suite>:all` are listed one by one, of the latter
    only those whose file exists.

    Args:
        settings: Names tasks and folders.
        metadata: Options of tasks that write their own prompts.

    Raises:
        SettingsError: If lm-evaluation-harness is not installed, a folder is missing, or no name can be asked.
    """
    try:
        tasks = library("lm_eval.tasks")
    except ImportError:
        raise SettingsError("evaluate.suites: needs the package lm_eval; pip install 'e2ray[eval]'") from None
    for key in ("include_path", "leval", "longproc"):
        folder = getattr(settings, key)
        if folder is not None and not _is_folder(folder):
            raise SettingsError(f"evaluate.suites.{key}: {folder[:SHOWN]}: no such folder")
    own = str(Path(settings.include_path).expanduser()) if settings.include_path else None
    published = [name for name in settings.tasks if name not in _local_names()]
    for with_all in (False, True):  # reading the thousands of files that the harness brings takes seconds
        manager = tasks.TaskManager(include_path=own, include_defaults=with_all, metadata=dict(metadata or {}))
        kinds = {name: manager.task_index[name].kind.name for name in published if name in manager.task_index}
        if len(kinds) == len(published) and "GROUP" not in kinds.values():
            break  # a user's own group may hold tasks of the harness
    selection = Selection(manager, [], [])
    for name in settings.tasks:
        parts = _local_parts(name, settings) if name in _local_names() else _published_parts(name, manager)
        selection.names += [part for part in parts if part not in selection.names]
        if not parts:
            selection.missing.append(MissingScore(task=name, reason=_why_missing(name, settings, manager)))
    if not selection.names:
        raise SettingsError(
            "evaluate.suites.tasks: " + "; ".join(f"{each.task!r} {each.reason}" for each in selection.missing)
        )
    return selection


def _is_folder(path: str) -> bool:
    try:
        return Path(path).expanduser().is_dir()
    except (OSError, RuntimeError):  # a name that is too long, ~somebody without a home
        return False


def _local_names() -> dict[str, tuple[str, str]]:
    """Return the suite and task of every name that is read from local files."""
    return {f"{suite}:{name}": (suite, name) for suite, names in LOCAL.items() for name in (*names, "all")}


def _local_parts(name: str, settings: SuiteSettings) -> list[str]:
    suite, task = _local_names()[name]
    return [f"{suite}:{part}" for part in (LOCAL[suite] if task == "all" else [task]) if _held(settings, suite, part)]


def _published_parts(name: str, manager: "TaskManager") -> list[str]:
    entry = manager.task_index.get(name)
    if entry is None:
        return []
    return sorted(entry.tags) if entry.kind.name == "TAG" else [name]


def _why_missing(name: str, settings: SuiteSettings, manager: "TaskManager") -> str:
    """Return in one line why a name cannot be asked, and what to do."""
    suite, task = _local_names().get(name, (None, name))
    if suite is None:
        near = difflib.get_close_matches(name, [*manager.all_tasks, *_local_names()], n=5, cutoff=0.6)
        return "is no task, " + (f"wanted one such as {', '.join(near)}" if near else "and none has a name like it")
    if task == "all":
        return f"is not there: {_folder(settings, suite)} holds no file of any of its tasks"
    data = f"{task}.jsonl of L-Eval's Closed-ended-tasks" if suite == "leval" else longproc.WANTED
    return f"is not there: {_folder(settings, suite)} holds no {task}; wanted {data}"


def _folder(settings: SuiteSettings, suite: str) -> Path:
    return Path(getattr(settings, suite)).expanduser()


def _held(settings: SuiteSettings, suite: str, name: str) -> bool:
    folder = _folder(settings, suite)
    return (folder / f"{name}.jsonl").is_file() if suite == "leval" else longproc.held(name, folder)


def run(
    model: "ScaledLM", settings: SuiteSettings, selection: Selection, *, progress: Progress | None = None
) -> Iterator[Found]:
    """Yield the scores of a model, task by task, after the tasks that are missing from the beginning.

    Args:
        model: The model.
        settings: How it is asked.
        selection: As `checked` returns it.
        progress: Takes one line per task, and within one how far all of them are.

    Raises:
        SettingsError: If a file of the user is wrong, or the model gives NaN.
    """
    library("datasets").disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # else the harness forks a process that holds a GPU
    with Pace(progress, "suites", total=len(selection.names), unit="tasks") as pace:
        if selection.missing:
            yield _told(Found(missing=list(selection.missing)), pace)
        for number, name in enumerate(selection.names):
            model.answered = partial(_answered, pace, number)
            results = _asked(name, model, settings, selection.manager)
            pace.done = number + 1
            yield _told(results, pace)


def _answered(pace: Pace, number: int, share: float) -> None:
    pace.done = number + share


def _told(results: Found, pace: Pace) -> Found:
    for line in lines(results):
        pace.tell(line)
    return results


def _asked(name: str, model: "ScaledLM", settings: SuiteSettings, manager: "TaskManager") -> Found:
    """Return the results of a task or group; of a group without a score, those of its tasks."""
    try:
        return _evaluated(name, model, settings, manager)
    except SettingsError:
        raise
    except Exception as error:  # a task is foreign code and may raise any error
        results = Found(missing=[MissingScore(task=name, reason=reason(error))])
    parts = [_asked(child, model, settings, manager) for child in _children(name, manager)]
    if any(part.scores for part in parts):
        for part in parts:
            results.scores += part.scores
            results.missing += part.missing
            results.samples += part.samples
    return results


def _children(name: str, manager: "TaskManager") -> list[str]:
    entry = manager.task_index.get(name)
    if entry is None or entry.kind.name != "GROUP":
        return []
    children = (entry.cfg or {}).get("task", [])
    return [child for child in children if isinstance(child, str) and child in manager.task_index]


def reason(error: BaseException) -> str:
    """Return in one line why a task has no score."""
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    kinds = {each.__name__ for cause in chain for each in type(cause).__mro__}
    message = " ".join(str(error).split())[:300] or type(error).__name__
    if kinds & NETWORK_ERRORS or any(isinstance(cause, URLError) for cause in chain):
        return f"its data has to be fetched and the network does not give it ({message})"
    if isinstance(error, ImportError):
        return f"needs a package ({message})"
    if isinstance(error, (MemoryError, RuntimeError)) and is_out_of_memory(error):
        return OUT_OF_MEMORY
    return message if isinstance(error, RefusedError) else f"{type(error).__name__}: {message}"


def _evaluated(name: str, model: "ScaledLM", settings: SuiteSettings, manager: "TaskManager") -> Found:
    """Return the results of one task or group.

    Raises:
        RefusedError: If it runs code that the model wrote and may not, or its prompts are too long.
        Exception: Whatever loading its data or its own code raises.
    """
    random.seed(settings.seed), np.random.seed(settings.seed), torch.manual_seed(settings.seed)
    loaded = _loaded(name, settings, manager)
    for task in loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False) and not settings.unsafe_code:
            raise RefusedError("may run code that the model has written; set evaluate.suites.unsafe_code: true")
        own = task.get_config("num_fewshot")
        if settings.num_fewshot is not None and own != 0:  # 0 in a task's file is intended, says the harness
            task.set_config(key="num_fewshot", value=settings.num_fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=settings.seed)
    model.placed.clear()
    result = library("lm_eval.evaluator").evaluate(
        model,
        loaded,
        limit=settings.limit,
        apply_chat_template=settings.chat_template,
        fewshot_as_multiturn=settings.chat_template,
        confirm_run_unsafe_code=settings.unsafe_code,
        bootstrap_iters=BOOTSTRAPS,
    )
    assert result is not None, "one process evaluates"
    by_document: dict[tuple[str, int], list[Told]] = {}  # once for each filter of the task
    for task, rows in result["samples"].items():
        for each in rows:
            by_document.setdefault((task, each["doc_id"]), []).append(each)
    samples = [_sample(task, rows, model.placed) for (task, _), rows in by_document.items()]
    return _scores(result, samples, settings)


def _loaded(name: str, settings: SuiteSettings, manager: "TaskManager") -> Told:
    """Return what the harness loads for a task's name, for the config of one from local files, or for a task file."""
    suite, task = _local_names().get(name, (None, name))
    if suite is None:
        return manager.load([name])
    folder = _folder(settings, suite)
    if suite == "leval":
        return manager.load([leval.task(task, folder)])
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "task.yaml"
        file.write_text(longproc.redirected(task, folder), encoding="utf-8")
        return manager.load([str(file)])


def _sample(task: str, results: Sequence[Told], placed: Mapping[Key, Placed]) -> Sample:
    """Return one sample from a document's results, one for each filter: how each request was read, its scores."""
    first = results[0]
    prompts = list(dict.fromkeys(str(arguments[0]) for arguments in first["arguments"]))
    requests = []
    for arguments, answers in zip(first["arguments"], first["resps"], strict=True):
        read = placed[request_key(task, first["doc_id"], arguments)]
        requests.append(
            {
                "prompt": prompts.index(str(arguments[0])),
                "asked": arguments[1] if len(arguments) > 1 else None,
                "tokens": read.tokens,
                "room": read.room,
                "scale": read.scale,
                "cut_tokens": read.cut,
                "windows": read.windows,
                "answers": answers,
            }
        )
    sample = {
        "task": task,
        "document": first["doc_id"],
        "target": first["target"],
        "scores": {each["filter"]: {name: each[name] for name in each["metrics"]} for each in results},
        "truncated": sum(request["cut_tokens"] > 0 for request in requests),
        "prompts": prompts,
        "requests": requests,
    }
    return Sample.model_validate_json(json.dumps(files.finite(sample), default=str, allow_nan=False))


def _scores(result: Told, samples: list[Sample], settings: SuiteSettings) -> Found:
    """Return the rows of a result; a score that is no number is missing, one of a length without prompts left out."""
    out = Found(samples=samples)
    parts = result.get("group_subtasks", {})
    for task, figures in {**result["results"], **result.get("groups", {})}.items():
        leaves = _leaves(task, parts)
        own = [sample for sample in samples if sample.task in leaves]
        about = {
            "task": task,
            "tasks": sorted(leaves) if task in parts else None,
            "version": result["versions"].get(task),
            "num_fewshot": result["n-shot"].get(task),
            "seed": settings.seed,
            "limit": settings.limit,
            "documents": len(own),
            **_read([request for sample in own for request in sample.requests]),
        }
        for key, value in figures.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            better = result["higher_is_better"].get(task, {}).get(metric)
            row = about | {"metric": metric, "filter": filter_name, "higher_is_better": better}
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                out.missing.append(MissingScore(task=task, reason=f"{metric} is {value}, no number"))
            elif not (metric.isdecimal() and value == -1):  # how the harness marks a length without a prompt
                stderr = figures.get(f"{metric}_stderr,{filter_name}")
                spread = float(stderr) if isinstance(stderr, float) and math.isfinite(stderr) else None
                out.scores.append(Score.model_validate(row | {"value": float(value), "stderr": spread}))
    return out


def _leaves(name: str, parts: Mapping[str, Sequence[str]]) -> set[str]:
    if name not in parts:
        return {name}
    return {leaf for child in parts[name] for leaf in _leaves(child, parts)}


def _read(requests: Sequence[Request]) -> Mapping[str, float | None]:
    """Return how a task's requests were read: their number, lengths in tokens, scales, and how many were cut."""
    tokens, scales = [request.tokens for request in requests], [request.scale for request in requests]
    return {
        "requests": len(requests),
        "truncated": sum(request.cut_tokens > 0 for request in requests),
        "tokens_min": min(tokens, default=None),
        "tokens_mean": sum(tokens) / len(tokens) if tokens else None,
        "tokens_max": max(tokens, default=None),
        "scale_min": min(scales, default=None),
        "scale_max": max(scales, default=None),
    }


def lines(results: Found) -> list[str]:
    """Return results in plain lines, one for each score and one for each that is missing."""
    texts = []
    for row in results.scores:
        spread = f" +- {row.stderr:.4f}" if row.stderr is not None else ""
        read = f"{row.documents} documents, {row.tokens_min} to {row.tokens_max} tokens"
        scales = f"scale {row.scale_min:g} to {row.scale_max:g}"
        cut = f", {row.truncated} truncated" if row.truncated else ""
        texts.append(f"{row.task}: {row.metric} {row.value:.4f}{spread} ({read}, {scales}{cut})")
    return texts + [f"{each.task}: no score: {each.reason}" for each in results.missing]


def versions() -> dict[str, str]:
    """Return the versions of the packages that ask the questions."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}
