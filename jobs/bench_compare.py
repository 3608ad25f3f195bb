"""How far does each method read from one small base model, and what does it cost?

python jobs/bench_compare.py --keep runs

Runs `jobs/compare.py` with `jobs/recipes/compare-cpu.yaml`, the pretraining of its base included, and keeps its tables
and picture under jobs/results/compare-cpu. A base that lies in the folder of --keep already is taken as it is, with
the seconds that it took. Then, each in a process of its own, the seconds of a training step by the length of its rows,
all of as many tokens, and the memory of a step of one row, the least that rows of a length can be trained with.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a source tree too

from benchmarking import RESULTS, finish, goal, parser, watched

RECIPE = "jobs/recipes/compare-cpu.yaml"
BASE_SECONDS_AT_MOST = 3 * 3600
LANE_SECONDS_AT_MOST = 2 * 3600
PASSKEY_AT_LEAST = 0.9
KEPT = ("comparison.json", "comparison.md", "comparison.png")
WINDOWS = (128, 512, 2048, 8192)  # tokens of a training row
TOKENS = 8192  # of a step


def main() -> int:
    """Measure and write the result."""
    made = parser(__doc__)
    made.add_argument("--keep", type=Path, help="folder that the comparison's storage is, or becomes")
    parsed = made.parse_args()
    with tempfile.TemporaryDirectory() as name:
        storage = parsed.keep.absolute() if parsed.keep else Path(name)
        storage.mkdir(parents=True, exist_ok=True)
        folder = storage / "compare-cpu"
        if folder.exists():
            raise SystemExit(f"{folder}: is there already; lanes are measured with none of them done before")
        before = list(storage.glob("bases/*/status.json"))
        if len(before) > 1:
            raise SystemExit(f"{storage}: holds {len(before)} bases; wanted one at most, that of {RECIPE}")
        seconds, peak = watched(
            ["jobs/compare.py", "--config", RECIPE, "--set", f"storage={storage}"], log=Path(name) / "log", every_s=10.0
        )
        made_now = set(storage.glob("bases/*/status.json")) - set(before)
        base = _took(*(made_now or before))
        rows = json.loads((folder / "comparison.json").read_text())["rows"]
        lanes = seconds - (base if made_now else 0.0)
        runs = {"seconds": seconds, "base_seconds": base, "base_at_hand": not made_now, "peak_mib": peak}
        code = finish(
            "compare",
            config={"recipe": RECIPE},
            runs=runs | {"steps": _steps(), "rows": rows},
            goals=_goals(rows, base=base, lanes=lanes),
            check=parsed.check,
        )
        kept = RESULTS / "compare-cpu"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for found in KEPT:
            shutil.copyfile(folder / found, kept / found)
    return code


def _took(path: Path) -> float:
    """Return the seconds that the pretraining of a base took, by its status.json."""
    status = json.loads(path.read_text())
    began, ended = (datetime.fromisoformat(status[key]) for key in ("started_at", "ended_at"))
    return (ended - began).total_seconds()


def _goals(rows: list[dict[str, Any]], *, base: float, lanes: float) -> list[dict[str, Any]]:
    untouched = next(row for row in rows if row["lane"] == "base")
    inside = next(iter(untouched["retrieval"]["passkey"].values()))["share"]
    seeds = min(len(row["seeds"]) for row in rows if row["seeds"] and row["lane"] != "pi_long")
    return [
        goal("passkey of the base inside L", inside, at_least=PASSKEY_AT_LEAST),
        goal("seconds of pretraining", base, at_most=BASE_SECONDS_AT_MOST),
        goal("seconds of all lanes, preparing included", lanes, at_most=LANE_SECONDS_AT_MOST),
        goal("seeds of each lane on short rows", seeds, at_least=3),
    ]


def _steps() -> list[dict[str, Any]]:
    """Return seconds and memory of training steps by row length, each in processes of its own, to and fro."""
    seconds: dict[int, list[float]] = {window: [] for window in WINDOWS}
    memory: dict[int, list[float]] = {window: [] for window in WINDOWS}
    for window in (*WINDOWS, *reversed(WINDOWS)):
        seconds[window] += _step(window, TOKENS)["seconds"][1:]
        memory[window].append(_step(window, window)["mib"])
    return [
        {
            "window": window,
            "seconds_per_step": statistics.median(seconds[window]),
            "mib_of_one_row": statistics.median(memory[window]),
        }
        for window in WINDOWS
    ]


def _step(window: int, tokens: int) -> dict[str, Any]:
    command = [sys.executable, "jobs/bench_compare_step.py", str(window), str(tokens)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
