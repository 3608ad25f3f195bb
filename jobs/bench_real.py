"""What does a real small model pay, and win back, under each recipe?

    python jobs/bench_real.py --model SmolLM2-135M --text peps.jsonl.gz --keep runs

Trains LoRA on rows of 512 tokens of a pretrained model of L = 8,192 for 30 steps, under the paper's preset and under
those of METHODS, scales up to 4, and reads held-out rows of 512 tokens at scales 1, 2 and 4 before and after. A row of
512 tokens is far inside L, so that what a scale costs there is the method's price and nothing else. Kept are the
training loss by scale and the NLL of the rows; with --base-length also how far the base reads by itself, measured once
(on CPUs its windows of up to 16,384 tokens take longer than all else). The same command goes on with what was stopped.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a source tree too

from benchmarking import finish, goal, parser

WINDOW, SCALES, STEPS, SEQUENCES = 512, (1.0, 2.0, 4.0), 30, 4
METHODS: dict[str, dict[str, Any]] = {
    "e2llm": {"positions": {"preset": "e2llm", "max_scale": 4}},
    "recommended": {"positions": {"preset": "recommended", "max_scale": 4}},
    "recommended-distilled": {
        "positions": {"preset": "recommended", "max_scale": 4},
        "objective": {"next_token": 0.5, "distill": 0.5},
    },
}


def recipe(name: str, model: str, text: str, storage: Path) -> dict[str, Any]:
    """Return the recipe of one run."""
    told = METHODS[name]
    return {
        "name": f"real-{name}",
        "storage": str(storage),
        "model": {
            "kind": "pretrained",
            "path": model,
            "lora": {"rank": 16, "alpha": 32},
        },
        "data": {
            "corpus": [{"kind": "jsonl" if ".jsonl" in text else "text", "paths": [text], "min_tokens": 4 * WINDOW}],
            "window": WINDOW,
            "validation_share": 0.25,
            "on_bad": "skip",
        },
        "positions": told["positions"],
        "train": {
            "steps": STEPS,
            "batch_sequences": SEQUENCES,
            "micro_batch_sequences": 2,
            "lr": 5e-4,
            "warmup_steps": 3,
            "checkpoint_every": 10,
            "log_every": 5,
            "objective": told.get("objective", {}),
        },
        "evaluate": {
            "windows": [WINDOW],
            "scales": list(SCALES),
            "documents": 8,
            "document_tokens": 4 * WINDOW,
            "stride": WINDOW,
        },
        "export": None,
    }


def main() -> int:
    """Measure and write the result."""
    made = parser(__doc__)
    made.add_argument("--model", required=True, help="folder of the pretrained model, L = 8,192")
    made.add_argument("--text", required=True, help="text or .jsonl files to train on and to hold out")
    made.add_argument("--keep", type=Path, help="folder that the runs' storage is, or becomes")
    made.add_argument("--base-length", action="store_true", help="find out how far the base reads, too")
    parsed = made.parse_args()
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        storage = parsed.keep.absolute() if parsed.keep else Path(name)
        for title in METHODS:
            path = Path(name) / f"{title}.yaml"
            path.write_text(yaml.safe_dump(recipe(title, parsed.model, parsed.text, storage)))
            measuring = parsed.base_length and title == next(iter(METHODS))
            for command in ("train", "evaluate"):  # a training without evaluation does not measure L
                words = ["--set", "evaluate=null"] if command == "train" and not measuring else []
                run = [sys.executable, f"jobs/{command}.py", "--config", str(path), *words]
                subprocess.run(run, cwd=ROOT, check=True)
            runs[title] = collected(storage / f"real-{title}")
            if measuring:
                runs["base_length"] = json.loads((storage / f"real-{title}" / "base-length.json").read_text())
            print(title, runs[title], flush=True)
    paper, best = runs["e2llm"], runs["recommended"]
    goals = [goal("price at scale 1 after training under YaRN", best["after"]["1"] - best["before"]["1"], at_most=0.03)]
    for when in ("before", "after"):
        for scale in ("2", "4"):
            lead = best[when][scale] - paper[when][scale]
            goals.append(goal(f"NLL under YaRN minus linear at scale {scale}, {when}", lead, at_most=0.0))
    config = {"window": WINDOW, "steps": STEPS, "sequences": SEQUENCES, "methods": METHODS}
    return finish("real", config=config, runs=runs, goals=goals, check=parsed.check)


def collected(folder: Path) -> dict[str, Any]:
    """Return what a run has left: NLL by scale before and after, and the loss by scale of its logged lines."""
    rows = json.loads((folder / "evaluation.json").read_text())["rows"]
    by_model = {"base": "before", "tuned": "after"}
    found: dict[str, Any] = {name: {} for name in by_model.values()}
    for row in rows:
        found[by_model[row["model"]]][f"{row['scale']:g}"] = row["nll"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return found | {"loss_by_scale": [{"step": line["step"]} | line["loss_by_scale"] for line in lines]}


if __name__ == "__main__":
    sys.exit(main())
