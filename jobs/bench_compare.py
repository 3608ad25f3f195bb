"""Which method, draws and objective read how far from one small base model, and what do they cost?

python jobs/bench_compare.py --keep runs

Runs `jobs/compare.py` with `jobs/recipes/compare-methods-cpu.yaml`, its base included: a screen of all lanes, then the
best three of the screened ones and the paper's preset under all seeds. Tables and picture are kept under
jobs/results/compare-methods-cpu. The same command goes on with what was stopped; the time of the lanes is the sum of
what each took, over the workers. Then, each in a process of its own, the seconds of a training step by the length of
its rows, all of as many tokens, and the memory of a step of one row, the least that rows of a length can be trained
with.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a source tree too

from benchmarking import RESULTS, finish, goal, parser, watched

RECIPE = "jobs/recipes/compare-methods-cpu.yaml"
BASE_SECONDS_AT_MOST = 3 * 3600
LANE_SECONDS_AT_MOST = 100 * 60
PASSKEY_AT_LEAST = 0.9
SEEDS_AT_LEAST = 3
RISE_AT_MOST = 0.03  # nats per token at L
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
        folder = storage / "compare-methods-cpu"
        recipe = yaml.safe_load((ROOT / RECIPE).read_text())
        peak = _compare(storage, Path(name) / "screen.log", ())
        rows = json.loads((folder / "comparison.json").read_text())["rows"]
        best = screened(rows, recipe["compare"]["own"])
        print("the best three of the screen:", "; ".join(best), flush=True)
        more = [f"compare.own.{lane}.seeds={len(recipe['compare']['seeds'])}" for lane in best]
        peak = max(peak, _compare(storage, Path(name) / "seeds.log", more))
        found = json.loads((folder / "comparison.json").read_text())
        rows = found["rows"]
        bases = list(storage.glob("bases/*/status.json"))
        if len(bases) > 1:
            raise SystemExit(f"{storage}: holds {len(bases)} bases; wanted one at most, that of {RECIPE}")
        base = _took(bases[0])
        lanes = [json.loads(path.read_text())["seconds"] for path in (folder / "lanes").glob("*.json")]
        seconds = sum(lanes) / recipe["cluster"]["num_workers"]
        runs = {
            "lane_seconds": seconds,
            "base_seconds": base,
            "peak_mib": peak,
            "screened": best,
            "best": found["best"],
        }
        code = finish(
            "compare",
            config={"recipe": RECIPE},
            runs=runs | {"best": found["best"], "steps": _steps(), "rows": rows},
            goals=_goals(rows, best, list(recipe["compare"]["own"]), base=base, lanes=seconds),
            check=parsed.check,
        )
        kept = RESULTS / "compare-methods-cpu"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for name in KEPT:
            shutil.copyfile(folder / name, kept / name)
    return code


def _compare(storage: Path, log: Path, changes: Sequence[str]) -> float:
    """Run the comparison, or go on with it, and return its peak memory in MiB."""
    sets = [word for change in (f"storage={storage}", *changes) for word in ("--set", change)]
    _, peak = watched(["jobs/compare.py", "--config", RECIPE, *sets], log=log, every_s=10.0)
    return peak


def screened(rows: Sequence[Mapping[str, Any]], own: Mapping[str, Any]) -> list[str]:
    """Return the three of a recipe's own lanes that read best beyond L, those first that rise little at L."""
    known = [row for row in rows if row["lane"] in own and None not in (row["long"]["mean"], row["short"]["mean"])]
    ranked = sorted(known, key=lambda row: (row["short"]["mean"] > RISE_AT_MOST, row["long"]["mean"]))
    return [row["lane"] for row in ranked[:3]]


def _took(path: Path) -> float:
    """Return the seconds that the pretraining of a base took, by its status.json."""
    status = json.loads(path.read_text())
    began, ended = (datetime.fromisoformat(status[key]) for key in ("started_at", "ended_at"))
    return (ended - began).total_seconds()


def _goals(
    rows: list[dict[str, Any]], best: Sequence[str], own: Sequence[str], *, base: float, lanes: float
) -> list[dict[str, Any]]:
    by_lane = {row["lane"]: row for row in rows}
    inside = next(iter(by_lane["base"]["retrieval"]["passkey"].values()))["share"]
    several = [lane for lane in own if len(by_lane[lane]["seeds"]) >= SEEDS_AT_LEAST]
    ahead = [lane for lane in several if is_ahead(by_lane[lane])]
    winning = [lane for lane in several if reaches_all(by_lane[lane], by_lane["yarn"])]
    beyond = [lane for lane in several if reaches_all(by_lane[lane], by_lane["yarn"], shortest=WINDOWS[0] + 1)]
    return [
        goal("passkey of the base inside L", inside, at_least=PASSKEY_AT_LEAST),
        goal("seconds of pretraining", base, at_most=BASE_SECONDS_AT_MOST),
        goal("seconds of all lanes", lanes, at_most=LANE_SECONDS_AT_MOST),
        goal("seeds of the best three and of the paper's preset", min(_seeds(by_lane, best)), at_least=SEEDS_AT_LEAST),
        goal("lanes of three seeds ahead of untrained YaRN and the preset at 2 L to 16 L", len(ahead), at_least=1),
        goal("of those, with a small rise at L and as many passkeys as untrained YaRN", len(winning), at_least=1),
        goal("the same, passkeys counted beyond L alone", len(beyond), at_least=1),
    ]


def _seeds(by_lane: Mapping[str, Any], best: Sequence[str]) -> list[int]:
    return [len(by_lane[lane]["seeds"]) for lane in (*best, "e2llm")]


def is_ahead(row: Mapping[str, Any]) -> bool:
    """Return whether a lane is better than untrained YaRN and the preset at every window beyond L, intervals apart."""
    beyond = [found for window, found in row["nll"].items() if int(window) > WINDOWS[0]]
    highest = [high for found in beyond for high in (found["high"], found["over_yarn"]["high"])]
    return all(high is not None and high < 0 for high in highest)


def reaches_all(row: Mapping[str, Any], yarn: Mapping[str, Any], *, shortest: int = 0) -> bool:
    """Return whether a lane is ahead, rises little at L, and finds as many passkeys as untrained YaRN."""
    rise = row["short"]["mean"]
    mine, theirs = row["retrieval"].get("passkey", {}), yarn["retrieval"].get("passkey", {})
    finds = all(
        length in mine and mine[length]["share"] >= told["share"]
        for length, told in theirs.items()
        if int(length) >= shortest
    )
    return is_ahead(row) and rise is not None and rise <= RISE_AT_MOST and bool(theirs) and finds


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
