"""Tasks of LongProc from the user's own copy of its data: long procedures written down, scored line by line.

`path_traversal` follows one-way connections between cities, `tom_tracking` where somebody believes a thing to be,
`html_to_tsv` takes a table out of a web page; each ends in the length of its answers: 0.5k, 2k or 8k tokens. Out of a
checkout of LongProc's program they are asked here, with the `prompts.yaml` beside their data. The prompts of the other
kinds are written by that program. They lie ready in its data set, PrincetonPli/LongProc: out of a copy of that every
kind is asked and scored by lm-evaluation-harness, `countdown` and `pseudo_to_code` among them, whose scorers run what
the model wrote.

One figure is stricter than LongProc's: `partial_accuracy` counts the right lines before the first wrong one, LongProc
and the harness count the wrong one too.

Source: LongProc (arXiv:2501.05414), formats and scoring of princeton-pli/LongProc.
"""

import csv
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2ray.config.base import SettingsError
from e2ray.files import read_json

ANSWER_TOKENS = {"0.5k": 1024, "2k": 3072, "8k": 9216}
# What LongProc takes out of a step before it is compared, so that words around places and beliefs may differ.
FILLING = frozenset("a an the on in at step thinks think believes believe is are of location know knows belief".split())

Scores = dict[str, float]


@dataclass(frozen=True)
class Procedure:
    """One kind of task.

    Attributes:
        fields: Takes an item of the data and the folder of the task, returns what its prompt is filled with.
        reference: Key of the right answer.
        score: Takes what the model wrote and the right answer, returns scores by name.
        metrics: Names of its scores.
    """

    fields: Callable[[Mapping[str, Any], Path], dict[str, str]]
    reference: str
    score: Callable[[str, str], Scores]
    metrics: tuple[str, ...]


def route(text: str, reference: str) -> Scores:
    """Return how much of the route between <Route> and </Route> is right, line by line."""
    said = re.search(r"<Route>(.*?)</Route>", text, re.DOTALL)
    lines = said.group(1).strip().split("\n") if said else []
    return _by_line(lines, reference.strip().split("\n")) | {"extraction_rate": float(said is not None)}


def beliefs(text: str, reference: str) -> Scores:
    """Return how many steps, from the last "- Step 0:" on, say where things and beliefs are as the reference does."""
    start = text.rfind("- Step 0:")
    found, right = _steps(text[max(0, start) :]), _steps(reference)
    return _by_line(found, right) | {"extraction_rate": float(bool(found))}


def _steps(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    return [_bare(line) for line in lines if re.match(r"- Step \d+:", line)]


def _bare(line: str) -> str:
    plain = line.lower().translate(str.maketrans("", "", string.punctuation + "\u2019"))
    return " ".join(word for word in plain.split() if word not in FILLING)


def _by_line(found: Sequence[str], right: Sequence[str]) -> Scores:
    same = [one == other for one, other in zip(found, right, strict=False)]
    good = same.index(False) if False in same else len(same)
    return {
        "accuracy": float(len(found) == len(right) and good == len(right)),
        "partial_accuracy": good / len(right),
    }


def table(text: str, reference: str) -> Scores:
    """Return precision, recall and F1 of the rows of the table after ```tsv, else of the whole answer.

    Rows are compared as sets: their order says nothing, nor do case, articles, spaces and signs. A row with another
    number of cells than the header is wrong, but for the last one, which the end of an answer may have torn.
    """
    fenced = re.search(r"```tsv(.*?)(?:```|\Z)", text, re.DOTALL)
    right = _rows(reference)
    found = _rows(fenced.group(1) if fenced else text)
    if not found or not right or len(found[0]) != len(right[0]):
        return {"f1": 0.0, "precision": 0.0, "recall": 0.0, "extraction_rate": 0.0}
    width = len(right[0])
    body = found[1:-1] if len(found) > 1 and len(found[-1]) != width else found[1:]
    wanted, given = right[1:], [row if len(row) == width else None for row in body]
    precision = sum(row in wanted for row in given) / len(given) if given else 0.0
    recall = sum(row in given for row in wanted) / len(wanted) if wanted else 0.0
    both = precision + recall
    f1 = 2 * precision * recall / both if both else 0.0
    return {"f1": f1, "precision": precision, "recall": recall, "extraction_rate": 1.0}


def _rows(text: str) -> list[tuple[str, ...]]:
    try:
        return [tuple(_cell(cell) for cell in row) for row in csv.reader(text.strip().split("\n"), delimiter="\t")]
    except csv.Error:  # a cell beyond csv's limit, or a NUL
        return []


def _cell(text: str) -> str:
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return "".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def _page(item: Mapping[str, Any], folder: Path) -> dict[str, str]:
    page = folder.joinpath(*Path(item["html_path"]).parts[-2:])  # it names a place in the repository
    try:
        content = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"longproc: {page} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    named = ("task_id", "website_id", "task_topic", "task_description", "tsv_header", "filtering_instruction")
    return {"html_str": content} | {name: item[name] for name in named}


def _cities(item: Mapping[str, Any], folder: Path) -> dict[str, str]:
    start, end = item["question_repr"][:2]
    return {"city_context": item["context_nl"], "src_city": start, "dst_city": end}


def _story(item: Mapping[str, Any], folder: Path) -> dict[str, str]:
    return {"story": item["story"], "question": item["question"], "story_components": item.get("story_components", "")}


_LINES = ("accuracy", "partial_accuracy", "extraction_rate")
PROCEDURES = {
    "path_traversal": Procedure(_cities, "answer_nl", route, _LINES),
    "tom_tracking": Procedure(_story, "solution", beliefs, _LINES),
    "html_to_tsv": Procedure(_page, "gt", table, ("f1", "precision", "recall", "extraction_rate")),
}
LENGTHS = {kind: tuple(ANSWER_TOKENS) for kind in (*PROCEDURES, "countdown")} | {
    "pseudo_to_code": ("0.5k", "2k"),
    "travel_planning": ("2k", "8k"),
}
NAMES = tuple(f"{kind}_{length}" for kind, lengths in LENGTHS.items() for length in lengths)


def _kind(name: str) -> str:
    return name.rsplit("_", 1)[0]


def _in_checkout(name: str, folder: Path) -> Path | None:
    """Return where a checkout of LongProc keeps a kind of tasks; None where the folder is none."""
    kind = _kind(name)
    return next((place for place in (folder / kind, folder / "data" / kind) if place.is_dir()), None)


def held(name: str, folder: Path) -> bool:
    """Return whether a folder holds what a task, one of NAMES, is asked with."""
    place = _in_checkout(name, folder)
    if place is not None:
        return _kind(name) in PROCEDURES and (place / f"{name}.json").is_file()
    return any(folder.rglob(f"{name}*"))


def wanted(name: str) -> str:
    """Return what a folder should be that is to hold a task, one of NAMES."""
    data_set = "a copy of the data set PrincetonPli/LongProc"
    if _kind(name) not in PROCEDURES:
        return f"{data_set}; a checkout of LongProc's program does not hold these prompts"
    return f"a checkout of princeton-pli/LongProc or {data_set}"


def redirected(name: str, folder: Path) -> str | None:
    """Return a task file that has the harness ask a task out of a copy of the data set; None for a task of `task`.

    Args:
        name: One of NAMES.
        folder: A copy of the data set, or a checkout of LongProc.
    """
    import lm_eval.tasks

    if _in_checkout(name, folder) is not None:
        return None
    original = Path(lm_eval.tasks.__file__).parent / "longproc" / f"{name}.yaml"
    content = {"include": str(original), "task": f"longproc:{name}", "dataset_path": str(folder.absolute())}
    return str(yaml.safe_dump(content))


def procedures(name: str, folder: Path) -> list[dict[str, str]]:
    """Return prompt and right answer of every item of a task.

    Args:
        name: A task of one of PROCEDURES.
        folder: LongProc's `data`, or the checkout that it lies in.

    Raises:
        SettingsError: If a file is not there or none of LongProc's.
    """
    procedure = PROCEDURES[_kind(name)]
    place = _in_checkout(name, folder) or folder / _kind(name)
    try:
        template = yaml.safe_load((place / "prompts.yaml").read_text(encoding="utf-8"))["USER_PROMPT"]
        items = read_json(place / f"{name}.json", wanted=f"LongProc's {name}")
        found = [
            {"prompt": template.format(**procedure.fields(item, place)), "answer": str(item[procedure.reference])}
            for item in items
        ]
    except SettingsError:
        raise
    except (OSError, ValueError, LookupError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise SettingsError(
            f"longproc: {place} is none of LongProc's ({type(error).__name__}: {error}); wanted prompts.yaml and "
            f"{name}.json of princeton-pli/LongProc"
        ) from None
    if not found:
        raise SettingsError(f"longproc: {place / name}.json holds nothing")
    return found


def task(name: str, folder: Path) -> dict[str, Any]:
    """Return the harness's config of a task of one of PROCEDURES, out of a checkout."""
    kind, length = name.rsplit("_", 1)
    procedure = PROCEDURES[kind]

    def documents(**_: Any) -> dict[str, Any]:
        import datasets

        return {"test": datasets.Dataset.from_list(procedures(name, folder))}

    metrics = [{"metric": each, "aggregation": "mean", "higher_is_better": True} for each in procedure.metrics]
    return {
        "task": f"longproc:{name}",
        "custom_dataset": documents,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": lambda document: document["prompt"],
        "doc_to_target": lambda document: document["answer"],
        "process_results": lambda document, said: procedure.score(said[0], document["answer"]),
        "metric_list": metrics,
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": ANSWER_TOKENS[length]},
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
