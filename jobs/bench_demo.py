"""Does the built-in run keep its promises: below the base at every longer window, in time and memory?

Runs `jobs/train.py` with `jobs/recipes/demo-cpu.yaml` in a fresh storage folder, watches the memory of all its
processes (proportional set size: shared pages are counted once), and reads its evaluation.

    python jobs/bench_demo.py --check
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a source tree too

import psutil
from benchmarking import finish, goal, parser

SECONDS_AT_MOST = 12 * 60
MIB_AT_MOST = 4 * 1024
RECIPE = "jobs/recipes/demo-cpu.yaml"


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


def run(storage: Path) -> tuple[float, float]:
    """Run the recipe to its end and return its seconds and its peak memory in MiB."""
    command = [sys.executable, "jobs/train.py", "--config", RECIPE, "--set", f"storage={storage}"]
    began = time.perf_counter()
    with (storage / "log").open("w") as log:
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        process, peak = psutil.Process(child.pid), 0.0
        while child.poll() is None:
            peak = max(peak, memory_mib(process))
            time.sleep(1.0)
    if child.returncode:
        raise SystemExit((storage / "log").read_text()[-3000:])
    return time.perf_counter() - began, peak


def main() -> int:
    """Measure and write the result."""
    parsed = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as storage:
        seconds, peak = run(Path(storage))
        folder = Path(storage) / "demo-cpu"
        evaluation = json.loads((folder / "evaluation.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        (ROOT / "jobs/results/demo-cpu.png").write_bytes((folder / "evaluation.png").read_bytes())
    goals = [
        goal("seconds of the whole run after installation", seconds, at_most=SECONDS_AT_MOST),
        goal("peak memory of all processes, MiB (proportional set size)", peak, at_most=MIB_AT_MOST),
    ]
    for row in evaluation["verdict"]["windows"]:
        if row["window"] > evaluation["verdict"]["windows"][0]["window"]:
            name = f"window {row['window']}: tuned at W/L minus the better of base untouched and base at W/L, nats"
            difference = row["tuned"] - min(row["base_untouched"], row["base_linear"])
            goals.append(goal(name, difference, at_most=0.0))
    runs = {
        "seconds": seconds,
        "peak_mib": peak,
        "evaluation": evaluation,
        "tokens_per_second": [line["tokens_per_second"] for line in lines],
    }
    return finish("demo", config={"recipe": RECIPE}, runs=runs, goals=goals, check=parsed.check)


if __name__ == "__main__":
    sys.exit(main())
