"""Does the built-in study keep its promises: so many trials in so much time on two cores, with all its exports?

python jobs/bench_study.py --keep runs

Runs `jobs/tune.py` with `jobs/recipes/search-cpu.yaml` in a fresh storage folder, pretraining of the base included,
and keeps its tables, recipes and pictures under jobs/results/search-cpu. With --again RESULT nothing is trained: the
study that --keep holds is exported by this commit, and what an earlier run measured of it (seconds, memory) is taken
over.
"""

import csv
import json
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a source tree too

from benchmarking import RESULTS, finish, goal, parser, watched

SECONDS_AT_MOST = 45 * 60
TRIALS_AT_LEAST = 40
DETERMINED_AT_LEAST = 3
RECIPE = "jobs/recipes/search-cpu.yaml"
KEPT = ("best*.yaml", "trials.csv", "ranges.json", "pareto.json")
PURELIB = sysconfig.get_paths()["purelib"]
PICTURES = ("pareto", "ranges", "importances", "surfaces", "slices", "rungs")


def main() -> int:
    """Measure and write the result."""
    made = parser(__doc__)
    made.add_argument("--keep", type=Path, help="folder that the study's storage is moved to")
    made.add_argument("--again", type=Path, metavar="RESULT", help="export the kept study anew; its first result file")
    parsed = made.parse_args()
    first = json.loads(parsed.again.read_text()) if parsed.again else None
    with tempfile.TemporaryDirectory() as name:
        storage = parsed.keep.absolute() if parsed.keep else Path(name)
        storage.mkdir(parents=True, exist_ok=True)
        _refuse_unfit(storage, again=first is not None)
        command = ["jobs/tune.py", "--config", RECIPE, "--set", f"storage={storage}"]
        command += ["--resume"] if first else []
        seconds, peak = watched(command, log=Path(name) / "log", every_s=10.0)
        if first:
            seconds, peak = first["runs"]["seconds"], first["runs"]["peak_mib"]
        export = storage / "search-cpu" / "export"
        with (export / "trials.csv").open(newline="") as file:
            trials = list(csv.DictReader(file))
        ranges = json.loads((export / "ranges.json").read_text())
        log = (Path(name) / "log").read_text()
        states = [row["state"] for row in trials]
        told = ranges["surrogate"] or {"parameters": {}}
        determined = [path for path, row in told["parameters"].items() if row and row["determined"]]
        goals = [
            goal("trials", len(trials), at_least=TRIALS_AT_LEAST),
            goal("seconds of the whole study after installation", seconds, at_most=SECONDS_AT_MOST),
            goal("settings that the surrogate determines", len(determined), at_least=DETERMINED_AT_LEAST),
        ]
        runs = {
            "trained_at": first["commit"] if first else "this commit",
            "seconds": seconds,
            "peak_mib": peak,
            "determined": determined,
            "states": {state: states.count(state) for state in sorted(set(states))},
            "tokens": sum(int(row["tokens"]) for row in trials),
            "ranges": ranges,
            "pareto": json.loads((export / "pareto.json").read_text()),
            "log": log.replace(str(storage), "~/e2ray").replace(PURELIB, "<site-packages>").splitlines()[-12:],
        }
        code = finish("study", config={"recipe": RECIPE}, runs=runs, goals=goals, check=parsed.check)
        _keep(export, storage)
    return code


def _refuse_unfit(storage: Path, *, again: bool) -> None:
    """End where a study is to be measured beside an older one, or exported again and is not finished."""
    if not again:
        if any(storage.iterdir()):
            raise SystemExit(f"{storage}: is not empty; the study is measured with nothing at hand")
        return
    status = storage / "search-cpu" / "status.json"
    if not status.exists() or json.loads(status.read_text())["state"] != "succeeded":
        raise SystemExit(f"{storage}: holds no finished study; --again wants --keep, the storage of one")


def _keep(export: Path, storage: Path) -> None:
    """Copy a study's tables, recipes and pictures into the results."""
    kept = RESULTS / "search-cpu"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    for path in [found for pattern in KEPT for found in export.glob(pattern)]:
        text = path.read_text(encoding="utf-8")
        (kept / path.name).write_text(text.replace(str(storage), "~/e2ray"), encoding="utf-8")  # where recipes default
    for picture in PICTURES:
        shutil.copyfile(export / "pictures" / f"{picture}.png", kept / f"{picture}.png")


if __name__ == "__main__":
    sys.exit(main())
