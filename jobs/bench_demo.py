"""Does the built-in run keep its promises: well below the base at every longer window, in time and memory?

Runs `jobs/train.py` with `jobs/recipes/demo-cpu.yaml` in a fresh storage folder, watches the memory of all its
processes (proportional set size: shared pages are counted once), and reads its evaluation.

    python jobs/bench_demo.py --check
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a source tree too

from benchmarking import finish, goal, parser, watched

SECONDS_AT_MOST = 4 * 60
MIB_AT_MOST = 3 * 1024
BELOW_NATS = 0.2  # of the tuned model, beyond L
RECIPE = "jobs/recipes/demo-cpu.yaml"


def main() -> int:
    """Measure and write the result."""
    parsed = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as storage:
        command = ["jobs/train.py", "--config", RECIPE, "--set", f"storage={storage}"]
        seconds, peak = watched(command, log=Path(storage) / "log")
        folder = Path(storage) / "demo-cpu"
        evaluation = json.loads((folder / "evaluation.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        picture = (folder / "evaluation.png").read_bytes()
        if not (folder / "report.html").is_file():  # a run ends well without its page, and says why
            raise SystemExit((Path(storage) / "log").read_text()[-3000:])
    goals = [
        goal("seconds of the whole run after installation", seconds, at_most=SECONDS_AT_MOST),
        goal("peak memory of all processes, MiB (proportional set size)", peak, at_most=MIB_AT_MOST),
    ]
    windows = evaluation["verdict"]["windows"]
    for row in windows[1:]:
        bases = {"base untouched": row["base_untouched"], "base at W/L, untrained linear": row["untrained"]["linear"]}
        for name, nll in bases.items():
            name = f"window {row['window']}: {name} minus tuned at W/L, nats"
            goals.append(goal(name, nll - row["tuned"], at_least=BELOW_NATS))
    runs = {
        "seconds": seconds,
        "peak_mib": peak,
        "below_untrained_yarn_nats": {row["window"]: row["gain_over_untrained"] for row in windows},
        "evaluation": evaluation,
        "tokens_per_second": [line["tokens_per_second"] for line in lines],
    }
    code = finish("demo", config={"recipe": RECIPE}, runs=runs, goals=goals, check=parsed.check)
    (ROOT / "jobs/results/demo-cpu.png").write_bytes(picture)  # afterwards: it would make the commit a dirty one
    return code


if __name__ == "__main__":
    sys.exit(main())
