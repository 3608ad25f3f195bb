"""How far beyond 16 L does a base of short rows read, and what stands in the way of 32 L?

python jobs/bench_reach.py --keep runs

The base model of `jobs/recipes/compare-methods-cpu.yaml` (taken over where the storage holds it) is fine-tuned for the
same steps on the same rows by a few lanes, drawn up to 16 or up to 32, and every window from L to 32 L is read at scale
W / L on documents that no trial behind that recipe has read. The same command goes on with what was stopped. How far a
window is from L has three parts that this table tells apart: the price of a scale (untrained YaRN), what training takes
off it, and what is left.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a source tree too

from benchmarking import finish, goal, parser, watched

RECIPE = "jobs/recipes/compare-methods-cpu.yaml"
NAME = "compare-reach-cpu"
BASE_LENGTH, REACH, SKIPPED = 128, 32, 25
DISTILLED = {"next_token": 0.5, "distill": 0.5}
# of the built-in study's best trial (jobs/results/search-cpu), on another base and corpus
SEARCHED = {"fast": 7.304, "slow": 0.8403, "temperature": {"kind": "log", "coefficient": 0.2185}}


def lanes() -> dict[str, dict[str, Any]]:
    """Return what is trained."""

    def draws(method: str, scale: dict[str, Any], *, breaks: int, **settings: Any) -> dict[str, Any]:
        placement = {"kind": "random_breaks", "num_breaks": breaks} if breaks else {"kind": "none"}
        return {"positions": {"scale": scale, "placement": placement, "method": {"kind": method, **settings}}}

    def log_uniform(largest: int, share: float) -> dict[str, Any]:
        return {"kind": "log_uniform", "max_scale": largest, "native_share": share}

    def fixed(largest: int, share: float) -> dict[str, Any]:
        return {"kind": "fixed", "max_scale": largest, "native_share": share}

    def uniform(largest: int) -> dict[str, Any]:
        return {"kind": "uniform_int", "max_scale": largest}

    return {
        "recommended, distilled, to 16": draws("yarn", log_uniform(16, 0.5), breaks=1) | {"objective": DISTILLED},
        "recommended, distilled, to 32": draws("yarn", log_uniform(32, 0.5), breaks=1) | {"objective": DISTILLED},
        "YaRN, uniform to 32": draws("yarn", uniform(32), breaks=0),
        "MrRoPE, uniform to 32": draws("ramp_power", uniform(32), breaks=0),
        "MrRoPE, uniform to 32, distilled": draws("ramp_power", uniform(32), breaks=0) | {"objective": DISTILLED},
        "best of the search, to 32": draws("yarn", fixed(32, 0.081), breaks=0, **SEARCHED)
        | {"objective": {"next_token": 1.0, "distill": 0.158}},
    }


def recipe(storage: Path) -> dict[str, Any]:
    """Return the recipe of the comparison: the same base and steps, further windows, other lanes."""
    found: dict[str, Any] = yaml.safe_load((ROOT / RECIPE).read_text())
    scales = [2**power for power in range(REACH.bit_length())]
    windows = [BASE_LENGTH * scale for scale in scales]
    found |= {"name": NAME, "storage": str(storage)}
    found["positions"] |= {"max_scale": REACH}
    found["evaluate"] |= {"windows": windows, "scales": scales, "skip_documents": SKIPPED}
    found["evaluate"] |= {"document_tokens": windows[-1]}
    found["compare"] |= {"lanes": ["e2llm"], "untrained": ["linear", "yarn"], "seeds": [101], "own": lanes()}
    found["compare"]["retrieval"] |= {"trials": 4}
    return found


def main() -> int:
    """Measure and write the result."""
    made = parser(__doc__)
    made.add_argument("--keep", type=Path, help="folder that the comparison's storage is, or becomes")
    parsed = made.parse_args()
    with tempfile.TemporaryDirectory() as name:
        storage = parsed.keep.absolute() if parsed.keep else Path(name)
        storage.mkdir(parents=True, exist_ok=True)
        path = Path(name) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(storage), sort_keys=False))
        watched(["jobs/compare.py", "--config", str(path)], log=Path(name) / "log", every_s=10.0)
        rows = json.loads((storage / NAME / "comparison.json").read_text())["rows"]
    longest = str(BASE_LENGTH * REACH)
    behind = {row["lane"]: row["nll"][longest]["mean"] - row["nll"][str(BASE_LENGTH)]["mean"] for row in rows}
    for lane, rise in behind.items():
        print(f"{lane}: NLL at {REACH} L {rise:+.3f} nats above its own at L")
    goals = [
        goal(f"{lane}: NLL at {REACH} L minus at L, nats per token", behind[lane], at_most=0.0) for lane in lanes()
    ]
    return finish("reach", config={"lanes": lanes()}, runs={"rows": rows}, goals=goals, check=parsed.check)


if __name__ == "__main__":
    sys.exit(main())
