"""What the benchmarks share: alternating measurements and the form of a result file.

Both sides of a ratio run in one process in the order A B B A, so that a machine that grows slower or faster favours
neither. A result is written only from a clean commit that can be named.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).resolve().parent / "results"


def alternate(
    one: Callable[[], object],
    other: Callable[[], object],
    *,
    pairs: int,
    warmup: int,
    before: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Return the seconds of both sides, measured in the order A B B A, and the ratio of their medians.

    Args:
        one: Runs side A once, to its end.
        other: Runs side B once, to its end.
        pairs: Pairs that are measured, an even number.
        warmup: Runs of each side that are not counted.
        before: Called before each run and after the last, outside of what is measured.
    """
    for _ in range(warmup):
        for side in (one, other):
            before()
            side()
    seconds: dict[str, list[float]] = {"a_s": [], "b_s": []}
    sides = {"a_s": one, "b_s": other}
    for pair in range(pairs):
        for side in ("a_s", "b_s") if pair % 2 == 0 else ("b_s", "a_s"):
            before()
            began = time.perf_counter()
            sides[side]()
            seconds[side].append(time.perf_counter() - began)
    before()
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    spread = {f"{side}_quartiles": statistics.quantiles(values, n=4) for side, values in seconds.items()}
    return {
        **seconds,
        **{f"{side}_median": value for side, value in medians.items()},
        **spread,
        "ratio_of_medians": medians["a_s"] / medians["b_s"],
        "median_of_pair_ratios": statistics.median(a / b for a, b in zip(seconds["a_s"], seconds["b_s"], strict=True)),
    }


def memory_mib(process: psutil.Process) -> float:
    """Return the proportional set size of a process and all below it, in MiB."""
    total_kib = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended meanwhile
            continue
        total_kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kib / 1024


def observed(
    command: Sequence[str],
    *,
    folder: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    every_s: float | None = 1.0,
) -> tuple[float, float, int]:
    """Run a command to its end and return its seconds, the peak memory of all its processes in MiB, its exit code.

    Args:
        command: Program and arguments.
        folder: Where it runs.
        log: Where its output goes.
        environment: Of the program; None: this process's.
        every_s: Seconds between two looks at the memory. Reading the maps of a dozen large processes takes a tenth of a
            second of a core, which where time is measured is a tenth of one taken away. None: the memory is not looked
            at, and its peak is 0.
    """
    began = time.perf_counter()
    with log.open("w") as output:
        child = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment)
        process, peak = psutil.Process(child.pid), 0.0
        while child.poll() is None:
            try:
                child.wait(every_s)
            except subprocess.TimeoutExpired:
                peak = max(peak, memory_mib(process))
    return time.perf_counter() - began, peak, child.returncode


def watched(arguments: list[str], *, log: Path, every_s: float = 1.0) -> tuple[float, float]:
    """Run a Python program from the root of the source tree; return its seconds and peak memory as `observed` does.

    The end of its output is shown if it fails.
    """
    command = [sys.executable, *arguments]
    seconds, peak, code = observed(command, folder=RESULTS.parents[1], log=log, every_s=every_s)
    if code:
        raise SystemExit(log.read_text()[-3000:])
    return seconds, peak


def goal(name: str, value: float, *, at_most: float | None = None, at_least: float | None = None) -> dict[str, Any]:
    """Return one entry of `goals`: what was measured, what was wanted, whether it was met."""
    met = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    wanted = f"<= {at_most}" if at_most is not None else f">= {at_least}"
    return {"name": name, "value": value, "goal": wanted, "met": met}


def _without_place(word: str) -> str:
    """Return a word of the command line; a path beyond the repository by its own name alone."""
    option, mark, value = word.partition("=") if "=" in word else ("", "", word)
    away = Path(value).is_absolute() or value.startswith(("../", "~"))
    return f"{option}{mark}{Path(value).name}" if away else word


def finish(question: str, *, config: dict[str, Any], runs: Any, goals: list[dict[str, Any]], check: bool) -> int:
    """Print the goals, write `results/<question>_<hardware>_<date>.json`, and return the exit code."""
    from e2ray import files
    from e2ray.train.environment import environment

    found = environment().model_dump(mode="json")
    for entry in goals:
        print(
            f"{'met   ' if entry['met'] else 'MISSED'}  {entry['name']}: {entry['value']:.4g} (wanted {entry['goal']})"
        )
    commit = found["commit"]
    if commit is None or commit.endswith("-dirty"):
        print("not written: results come from a clean commit", file=sys.stderr)
    else:
        hardware = found["hardware"]
        gpu = hardware["gpus"][0].replace(" ", "-").lower() if hardware["gpus"] else f"cpu{hardware['cpus']}"
        path = RESULTS / f"{question}_{gpu}_{datetime.now(UTC):%Y-%m-%d}.json"
        result = {
            "commit": commit,
            "command": " ".join(["python", f"jobs/{Path(sys.argv[0]).name}", *map(_without_place, sys.argv[1:])]),
            "hardware": hardware,
            "versions": found["versions"] | {"python": found["python"]},
            "config": config,
            "runs": runs,
            "goals": goals,
        }
        files.write_json(path, json.loads(json.dumps(result)))
        print(f"written to {path.relative_to(RESULTS.parents[1])}")
    return 1 if check and not all(entry["met"] for entry in goals) else 0


def parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--check", action="store_true", help="exit 1 if a goal is missed")
    return made
