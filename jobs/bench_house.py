"""Are tests and first run as quick as promised, and is the house smaller than it was?

Takes two commits of this repository, in turn (old, new, old, new), each time from a fresh clone: `make train`, whose
memory is watched, and `make test`. Installing is not counted.

    python jobs/bench_house.py OLD NEW --check
    python jobs/bench_house.py OLD NEW --venv .venv    # one environment for all clones, which leaves out installing
"""

import argparse
import io
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a source tree too

from benchmarking import finish, goal, observed, parser

RATIO = 0.55  # of the older commit's time
TEST_S, TRAIN_S = 420, 240
TRAIN_MIB = 3072
README_LINES = 180
ANY_PER_1000 = 8
COUNTED = ("passed", "failed", "skipped", "error", "errors", "xfailed", "xpassed", "deselected")


def clone(commit: str, folder: Path, venv: Path | None) -> dict[str, str]:
    """Clone a commit into a folder, with what `make` runs its programs from, and return the environment for it.

    Args:
        commit: Of this repository.
        folder: Must not be there yet.
        venv: An environment that holds all packages; its e2ray gives way to the clone's. None makes one in the clone.
    """
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", commit], check=True)
    if venv is None:
        subprocess.run(["make", "--silent", "setup"], cwd=folder, check=True)
        return dict(os.environ)
    (folder / ".venv").mkdir()
    for entry in venv.iterdir():
        (folder / ".venv" / entry.name).symlink_to(entry)
    (folder / ".venv" / ".ready").unlink(missing_ok=True)
    (folder / ".venv" / ".ready").touch()  # newer than what it depends on, so that make installs nothing
    return os.environ | {"PYTHONPATH": str(folder)}


def test_counts(log: str) -> dict[str, int]:
    """Return how many tests passed, failed and so on, from the last line of pytest's that tells it."""
    lines = [line for line in log.splitlines() if re.search(r"\d+ (passed|failed|error)", line)]
    found = re.findall(r"(\d+) ([a-z]+)", lines[-1]) if lines else []
    return {word: int(count) for count, word in found if word in COUNTED}


def size_of(folder: Path) -> dict[str, Any]:
    """Return how large a checkout is: lines of its README and of the package, and `Any` per 1,000 of these."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((folder / "e2ray").rglob("*.py"))]
    lines = sum(len(text.splitlines()) for text in texts)
    names = sum(
        token.type == tokenize.NAME and token.string == "Any"
        for text in texts
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
    )
    readme = len((folder / "README.md").read_text(encoding="utf-8").splitlines())
    return {"readme_lines": readme, "package_lines": lines, "any_per_1000_lines": 1000 * names / lines}


def measure(commit: str, parsed: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what both commands took in a fresh clone of a commit, and how large it is."""
    environment = clone(commit, folder / "clone", parsed.venv and parsed.venv.absolute())
    log, place = folder / "log", folder / "clone"
    found: dict[str, Any] = {"commit": commit, **size_of(place)}
    for name, command, every_s in (("train", parsed.train, 1.0), ("test", parsed.test, None)):
        seconds, peak, code = observed(
            shlex.split(command), folder=place, log=log, environment=environment, every_s=every_s
        )
        found |= {f"{name}_s": seconds, f"{name}_exit_code": code}
        if every_s is not None:
            found[f"{name}_peak_mib"] = peak
        print(f"{commit}: {command}: {seconds:.0f} s, exit code {code}", flush=True)
        if code:
            print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
    return found | {"tests": test_counts(log.read_text(errors="replace"))}


def goals_of(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the goals from what each commit took, a mapping for each of its rounds."""

    def median(rounds: list[dict[str, Any]], key: str) -> float:
        return statistics.median(each[key] for each in rounds)

    codes = [each[key] for each in (*old, *new) for key in ("train_exit_code", "test_exit_code")]
    goals = [
        goal("runs of both commits that ended with an exit code other than 0", float(sum(map(bool, codes))), at_most=0)
    ]
    for name, seconds in (("test", TEST_S), ("train", TRAIN_S)):
        key = f"{name}_s"
        ratio = median(new, key) / median(old, key)
        goals.append(goal(f"make {name}: ratio of medians, new to old", ratio, at_most=RATIO))
        goals.append(goal(f"make {name}: median of seconds, new", median(new, key), at_most=seconds))
    peak = max(each["train_peak_mib"] for each in new)
    before, now = old[0], new[0]
    return [
        *goals,
        goal("make train: peak memory of all processes, MiB (proportional set size), new", peak, at_most=TRAIN_MIB),
        goal("lines of README.md, new", now["readme_lines"], at_most=README_LINES),
        goal("lines of e2ray, new minus old", now["package_lines"] - before["package_lines"], at_most=0),
        goal("`Any` per 1,000 lines of e2ray, new", now["any_per_1000_lines"], at_most=ANY_PER_1000),
        goal(
            "`Any` per 1,000 lines of e2ray, new minus old",
            now["any_per_1000_lines"] - before["any_per_1000_lines"],
            at_most=0,
        ),
    ]


def main() -> int:
    """Measure and write the result."""
    options = parser(__doc__)
    options.add_argument("old", help="commit before")
    options.add_argument("new", help="commit after")
    options.add_argument("--rounds", type=int, default=2, help="how often each commit is measured")
    options.add_argument("--venv", type=Path, help="environment that all clones use; without it each makes its own")
    options.add_argument("--test", default="make test", help="what is timed as the tests")
    options.add_argument("--train", default="make train", help="what is timed as the first run")
    parsed = options.parse_args()
    rounds: dict[str, list[dict[str, Any]]] = {"old": [], "new": []}
    for _ in range(parsed.rounds):
        for side, commit in (("old", parsed.old), ("new", parsed.new)):
            with tempfile.TemporaryDirectory() as folder:
                rounds[side].append(measure(commit, parsed, Path(folder)))
    config = {"rounds": parsed.rounds, "test": parsed.test, "train": parsed.train}
    goals = goals_of(rounds["old"], rounds["new"])
    return finish("house", config=config, runs=rounds, goals=goals, check=parsed.check)


if __name__ == "__main__":
    sys.exit(main())
