"""Every kept measurement as a Markdown page, docs/results.md, from `jobs/results/*.json` alone.

python jobs/results_page.py > docs/results.md

A question is the first line of the script that asks it. A test holds the page equal to the files.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

JOBS = Path(__file__).resolve().parent
HEAD = """# Results

Every measurement that is kept, by the question it answers: what was wanted, what was found, and what was missed. Each
file holds the commit, the command, the versions, the configuration and the raw figures. The page is made of them by
`python jobs/results_page.py`.
"""


class Goal(TypedDict):
    """One entry of a result's `goals`."""

    name: str
    value: float
    goal: str
    met: bool


class Result(TypedDict):
    """What the page reads of a result."""

    commit: str
    command: str
    hardware: Mapping[str, object]
    goals: list[Goal]


def script_of(result: Result) -> str:
    """Return the name of the script that wrote a result."""
    found = re.search(r"\bjobs/(bench_\w+\.py)", result["command"])
    if found is None:
        raise ValueError(f"command: wanted 'python jobs/bench_<question>.py ...', got {result['command']!r}")
    return found[1]


def question_of(script: str) -> str:
    """Return what a script asks, the first line of its docstring."""
    said = ast.get_docstring(ast.parse((JOBS / script).read_text(encoding="utf-8")))
    assert said, f"{script}: has no docstring to take the question from"
    return said.splitlines()[0]


def hardware_of(result: Result) -> str:
    """Return the hardware of a result in words."""
    hardware = result["hardware"]
    gpus = [str(each) for each in hardware["gpus"]] if isinstance(hardware["gpus"], list) else []
    cards = f", {len(gpus)} x {gpus[0]}" if gpus else ""
    return f"{hardware['cpus']} CPUs ({hardware['machine']}), {hardware['memory_gib']:g} GiB{cards}"


def page(folder: Path) -> str:
    """Return the page of all results of a folder: by question, the newest first."""
    results: dict[str, list[tuple[str, Result]]] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem.rpartition("_")[2], reverse=True):
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        results.setdefault(script_of(result), []).append((path.name, result))
    asked = sorted(results, key=question_of)
    return "\n".join([HEAD, *(line for script in asked for line in _section(script, results[script]))])


def _section(script: str, results: list[tuple[str, Result]]) -> Iterator[str]:
    yield f"## {question_of(script)}\n"
    for name, result in results:
        date = Path(name).stem.rpartition("_")[2]
        met = sum(goal["met"] for goal in result["goals"])
        total = len(result["goals"])
        yield f"[{name}](../jobs/results/{name}), {date}, {hardware_of(result)}: {met} of {total} goals met."
        yield f"`{result['command']}`\n"
        yield "| goal | found | wanted | |\n| --- | ---: | ---: | --- |"
        for goal in result["goals"]:
            told = goal["name"].replace("|", "\\|")
            yield f"| {told} | {goal['value']:.4g} | {goal['goal']} | {'met' if goal['met'] else '**missed**'} |"
        yield ""


if __name__ == "__main__":
    print(page(JOBS / "results"), end="")
