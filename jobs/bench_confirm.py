"""Does what a search recommends hold beyond the study? The balanced recipe against the paper's preset, trained anew.

python jobs/bench_confirm.py --study runs/search-cpu

The study's base model is fine-tuned for the full budget of best-balanced.yaml under seeds that the study never used,
on documents that neither the study nor the base ever saw: the Python sources of the installed packages; with --text own
on the study's own corpus as best-balanced.yaml says, and on held-out documents that the study has not read; with
--max-scale 32 drawn up to and read up to 32 L. The paper's preset gets the same rows and as many tokens, once with the
recipe's learning rate and once with the balanced one's, which tells the draws from the learning rate. The base itself
is read by YaRN too, untrained. Held against both at every window, each read at scale W / L. Long is the mean NLL over
all windows, L among them; since L is also the short objective's, the mean over the windows beyond L is told beside it.
Differences are paired: over seeds with Student's t for three runs, over held-out documents with a bootstrap.
"""

import statistics
import sys
import sysconfig
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from benchmarking import finish, goal, parser

from e2ray.config.load import dump, load, read_recipe, validate
from e2ray.config.positions import PositionSettings
from e2ray.config.run import RunConfig
from e2ray.stages.run import resolve

PACKAGES = (
    "numpy",
    "torch/nn",
    "torch/optim",
    "torch/distributed",
    "pyarrow",
    "optuna",
    "matplotlib",
    "networkx",
    "ray/data",
)
SEEDS = (101, 102, 103)
DOCUMENTS = 24
T_95 = 4.303  # Student's t, two degrees of freedom, 95 %
RESAMPLES = 10_000
ARMS = ("balanced", "paper", "paper, balanced lr")
OBJECTIVES = ("long", "beyond", "short")
YARN = "untrained YaRN"


def recipes(study: Path, *, text: str, max_scale: int | None) -> dict[str, RunConfig]:
    """Return the recipe of each arm: the study's base model on new documents, `own` or `packages`.

    Another `max_scale` is drawn up to, and read up to, in windows that double.
    """
    best = load(study / "export" / "best-balanced.yaml")
    recipe = read_recipe(study / "config.yaml")
    base = resolve(validate(recipe | {"storage": str(study.parent)}, source="study")).base
    folder = Path(sysconfig.get_paths()["purelib"])
    changes = {
        "model": {"kind": "pretrained", "path": str(base / "model"), "base_context_length": 128},
        "pretrain": None,
        "search": None,
    }
    if text == "packages":
        changes["data"] = {
            "corpus": [{"kind": "text", "paths": [f"{folder / package}/**/*.py" for package in PACKAGES]}],
            "tokenizer": {"kind": "pretrained", "path": str(base / "model")},
            "window": best.data.window,
            "validation_share": 0.1,
            "on_bad": "skip",
        }
    plain = best.model_dump(mode="json") | changes
    read = 0 if text == "packages" else plain["evaluate"]["skip_documents"]  # by which the trial was chosen
    plain["evaluate"] |= {"skip_documents": read, "documents": DOCUMENTS}
    told = validate(recipe, source="study")
    paper = told.positions.model_dump(mode="json")
    assert paper == PositionSettings.model_validate({"preset": "e2llm", "max_scale": 16}).model_dump(mode="json")
    if max_scale is not None:
        scales = [2**power for power in range(max_scale.bit_length())]
        windows = [128 * scale for scale in scales]
        plain["evaluate"] |= {"scales": scales, "windows": windows, "document_tokens": windows[-1]}
        for positions in (plain["positions"], paper):
            positions["scale"]["max_scale"] = float(max_scale)
    objective = {"objective": told.train.objective.model_dump(mode="json")}
    arms = {
        "balanced": plain,
        "paper": plain | {"positions": paper, "train": plain["train"] | objective | {"lr": told.train.lr}},
        "paper, balanced lr": plain | {"positions": paper, "train": plain["train"] | objective},
    }
    return {name: validate(arm | {"name": "confirm"}, source=name) for name, arm in arms.items()}


def shared_of(config: RunConfig) -> Any:
    """Return what the runs of all arms share; the shards are prepared already."""
    from e2ray.search.shared import Shared
    from e2ray.stages.train import prepare, task_of

    run = resolve(config)
    shards = prepare(run)
    task = task_of(run, run.folder, shards, run.config.model, run.config.train, run.config.positions)
    assert run.config.evaluate is not None
    return Shared("confirm", run.folder, task, run.config.evaluate, False, None)


def by_document(examiner: Any, model: Any, hook: Any) -> list[dict[str, float]]:
    """Return each document's NLL by window, each window read at scale W / L."""
    documents, found = examiner.documents, []
    for document in documents:
        examiner.documents = [document]
        found.append({str(cell["window"]): cell["nll"] for cell in examiner.cells(model, hook, examiner.served)})
    examiner.documents = documents
    return found


def train(job: tuple[str, int, RunConfig]) -> dict[str, Any]:
    """Train one arm under one seed and return its NLL by document and window; "base" and YARN read the base."""
    import torch

    from e2ray.config.methods import UNTRAINED
    from e2ray.core.methods.registry import method_of
    from e2ray.core.model import build_model
    from e2ray.core.rope import RotaryHook
    from e2ray.search.trial import Workbench
    from e2ray.search.trial_plan import Plan

    torch.set_num_threads(1)
    name, seed, config = job
    shared = shared_of(config)
    bench = Workbench(shared, device=torch.device("cpu"))
    began = time.perf_counter()
    if name in ("base", YARN):
        model = build_model(config.model, dtype=torch.float32, vocab_size=shared.task.vocab_size).eval()
        method = method_of(UNTRAINED["yarn"]) if name == YARN else None
        hook = RotaryHook(model, method, base_context_length=shared.task.base_context_length)
        return {"arm": name, "seed": seed, "documents": by_document(bench.examiner, model, hook)}
    bench.begin(Plan(0, config.model_copy(update={"seed": seed}), (), None, None, {}))
    metrics = bench.advance()
    assert "failed" not in metrics, metrics
    found = by_document(bench.examiner, bench.engine.ds.module, bench.engine.hook)  # type: ignore[union-attr]
    print(f"{name}, seed {seed}: {metrics['tokens']:,} tokens, {time.perf_counter() - began:.0f} s", flush=True)
    return {"arm": name, "seed": seed, "tokens": metrics["tokens"], "documents": found}


def objectives(documents: list[dict[str, float]], base: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Return `long`, `beyond` (long without L) and `short` of each document, nats per token."""
    windows = sorted(documents[0], key=int)
    return {
        "long": np.array([statistics.fmean(row[window] for window in windows) for row in documents]),
        "beyond": np.array([statistics.fmean(row[window] for window in windows[1:]) for row in documents]),
        "short": np.array([row[windows[0]] - other[windows[0]] for row, other in zip(documents, base, strict=True)]),
    }


def paired(differences: np.ndarray, generator: np.random.Generator) -> dict[str, Any]:
    """Return the mean of paired differences [seeds, documents] and its 95 % intervals over seeds and over documents."""
    seeds, documents = differences.mean(axis=1), differences.mean(axis=0)
    half = T_95 * seeds.std(ddof=1) / np.sqrt(len(SEEDS))
    picks = generator.integers(0, len(documents), (RESAMPLES, len(documents)))
    return {
        "difference": float(seeds.mean()),
        "by_seed": seeds.tolist(),
        "interval_over_seeds": [float(seeds.mean() - half), float(seeds.mean() + half)],
        "interval_over_documents": np.quantile(documents[picks].mean(axis=1), (0.025, 0.975)).tolist(),
    }


def compared(runs: list[dict[str, Any]], arm: str, other: str, base: list[dict[str, float]]) -> dict[str, Any]:
    """Return arm minus other for each objective, paired, with 95 % intervals over seeds and over documents."""
    generator = np.random.default_rng(0)
    found = {}
    for name in OBJECTIVES:
        by_run = {(run["arm"], run["seed"]): objectives(run["documents"], base)[name] for run in runs}
        differences = np.array([by_run[arm, seed] - by_run[other, seed] for seed in SEEDS])  # [seeds, documents]
        found[name] = paired(differences, generator) | {
            arm: float(np.mean([by_run[arm, seed].mean() for seed in SEEDS])),
            other: float(np.mean([by_run[other, seed].mean() for seed in SEEDS])),
        }
    return found


def apart(runs: list[dict[str, Any]], other: str) -> dict[str, Any]:
    """Return the balanced arm minus another at every window, seed by seed, with 95 % intervals as above.

    An untrained reading has no seed: every seed is held against the same one.
    """
    generator = np.random.default_rng(0)
    by_run = {(run["arm"], run["seed"]): run["documents"] for run in runs}
    found = {}
    for window in sorted(next(iter(by_run.values()))[0], key=int):
        differences = np.array(
            [
                [row[window] - reference[window] for row, reference in zip(rows, references, strict=True)]
                for seed in SEEDS
                for rows, references in [(by_run["balanced", seed], by_run[other, 0 if other == YARN else seed])]
            ]
        )  # [seeds, documents]
        found[window] = paired(differences, generator)
    return found


def rise(runs: list[dict[str, Any]], base: list[dict[str, float]]) -> dict[str, Any]:
    """Return the balanced arm at its longest window minus itself at L, and minus the base at L, as `paired` tells."""
    rows = [run["documents"] for run in runs if run["arm"] == "balanced"]
    first, *_, last = sorted(rows[0][0], key=int)
    own = np.array([[row[last] - row[first] for row in documents] for documents in rows])
    over = np.array([[row[last] - one[first] for row, one in zip(documents, base, strict=True)] for documents in rows])
    generator = np.random.default_rng(0)
    return {"window": int(last), "over its own L": paired(own, generator), "over the base's L": paired(over, generator)}


def by_window(runs: list[dict[str, Any]], arm: str) -> dict[str, float]:
    """Return an arm's mean NLL over seeds and documents by window, each read at scale W / L."""
    rows = [row for run in runs if run["arm"] == arm for row in run["documents"]]
    return {window: statistics.fmean(row[window] for row in rows) for window in rows[0]}


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--study", type=Path, required=True, help="folder of a finished study")
    made.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="what is trained; default: all three")
    made.add_argument("--text", choices=("packages", "own"), default="packages", help="what is trained on and read")
    made.add_argument("--max-scale", type=int, help="another one, 2 ** n, that is drawn up to and read up to")
    parsed = made.parse_args()
    if "balanced" not in parsed.arms:
        raise SystemExit("--arms: wants balanced, which all others are held against")
    every = recipes(parsed.study.absolute(), text=parsed.text, max_scale=parsed.max_scale)
    arms = {name: recipe for name, recipe in every.items() if name in parsed.arms}
    from e2ray.stages.cluster import cluster

    with cluster(arms["balanced"].cluster):
        shared_of(arms["balanced"])  # prepares the shards
    jobs = [(name, 0, arms["balanced"]) for name in ("base", YARN)] + [
        (name, seed, arms[name]) for seed in SEEDS for name in arms
    ]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        base, yarn, *runs = pool.map(train, jobs)
    against = {other: compared(runs, "balanced", other, base["documents"]) for other in arms if other != "balanced"}
    for other, found in against.items():
        for name, row in found.items():
            print(f"balanced - {other}, {name}: {row}")
    goals = [
        goal(
            f"{name}: balanced - paper, nats per token, upper end over seeds",
            found["interval_over_seeds"][1],
            at_most=0.0,
        )
        for name, found in against.get("paper", {}).items()
        if name != "beyond"
    ]
    windows = {other: apart([*runs, yarn], other) for other in ("paper", YARN) if other in (*arms, YARN)}
    for other, found in windows.items():
        print(f"balanced - {other} by window: {found}")
        goals += [
            goal(
                f"W {window}: balanced - {other}, nats per token, upper end over {over}",
                row[f"interval_over_{over}"][1],
                at_most=0.0,
            )
            for window, row in found.items()
            for over in ("seeds", "documents")
        ]
    longest = rise(runs, base["documents"])
    print(f"balanced at its longest window: {longest}")
    if parsed.max_scale is not None:
        goals += [
            goal(
                f"W {longest['window']}: NLL {over}, nats per token, upper end over seeds",
                longest[over]["interval_over_seeds"][1],
                at_most=0.0,
            )
            for over in ("over its own L", "over the base's L")
        ]
    result = {
        "differences": against,
        "longest": longest,
        "by_window": windows,
        "nll_by_window": {arm: by_window(runs, arm) for arm in arms}
        | {name: by_window([run], name) for name, run in (("base", base), (YARN, yarn))},
        "runs": runs,
        "base": base,
        "yarn": yarn,
    }
    places = {str(parsed.study.absolute().parent): "~/e2ray", sysconfig.get_paths()["purelib"]: "<site-packages>"}
    config = {name: dump(arm) for name, arm in arms.items()}
    for place, shown in places.items():  # a result says nothing of the machine's folders
        config = {name: text.replace(place, shown) for name, text in config.items()}
    question = "confirm" if parsed.text == "packages" else "confirm-own"
    question += f"-x{parsed.max_scale}" if parsed.max_scale else ""
    return finish(question, config=config, runs=result, goals=goals, check=parsed.check)


if __name__ == "__main__":
    sys.exit(main())
