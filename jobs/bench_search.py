"""What a search costs beside its training, and how much of a full grid it saves.

python jobs/bench_search.py

Overhead: studies of one-second trials in shared actors against a Ray Train of its own for each trial, alternately, one
thread for each trial on both sides; "outside" is what a trial costs beyond its training and evaluation: choosing,
starting, model copy, proof, reporting, and its share of the study's own start. Trials per hour are compared from the
first trials' end on, so that the start of neither side counts.
Grid: every point of a space of 36 is trained in full and measured at a rung; the search, with its early stopping, is
then replayed on those measurements under 20 seeds: each value it asks for is the one that the real trial gave. Its
cost is the number of updates until it holds a full trial within 1 % of the best weighted number of the grid. What 1 %
is worth depends on how many points of the grid lie within it, so that is told, and what random choice costs, with the
same early stopping and without.
"""

import statistics
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarking import finish, goal, parser

from e2ray.config.load import read_recipe, validate
from e2ray.config.run import RunConfig
from e2ray.config.space import assign
from e2ray.data.pace import show
from e2ray.stages.cluster import cluster
from e2ray.stages.run import resolve
from e2ray.stages.train import base_of, prepare, task_of

RECIPE = Path(__file__).parent / "recipes" / "search-cpu.yaml"
SECOND = {"train.steps": 8, "train.warmup_steps": 1, "train.log_every": 4, "train.checkpoint_every": 8}
SECOND |= {
    "cluster.num_workers": 1,
    "train.batch_sequences": 8,
    "evaluate.documents": 1,
    "evaluate.windows": [128, 512],
}
STEPS, RUNG = 120, 40
KINDS = ("uniform_int", "log_uniform", "fixed")
SHARES = (0.0, 0.1, 0.25, 0.5)
PLACEMENTS = ("prefix", "random_breaks", "none")
SEEDS = 20
WITHIN = 1.01


def recipe_of(folder: Path, name: str, search: dict[str, Any]) -> RunConfig:
    """Return the study recipe under another name, with another search."""
    recipe = read_recipe(RECIPE) | {"name": name, "storage": str(folder), "search": search}
    return validate(recipe, source=str(RECIPE))


def opened(config: RunConfig) -> tuple[Any, Any, Any]:
    """Return (run, what trials share, study) of a recipe, its base model at hand."""
    import torch

    from e2ray.search.shared import share
    from e2ray.search.study import Study
    from e2ray.search.trial import examine_base

    run = resolve(config)
    run.folder.mkdir(parents=True, exist_ok=True)
    shards = prepare(run)
    model = base_of(run, shards)
    task = task_of(run, run.folder, shards, model, run.config.trial().train, run.config.positions)
    shared = share(run.config, task, run.folder)
    study = Study(run.folder, run.config, run.base_context_length)
    if study.base is None:
        study.set_base(*examine_base(shared, torch.device("cpu")))
    return run, shared, study


def overhead(folder: Path, *, trials: int, share_actors: bool, name: str) -> dict[str, Any]:
    """Run a study of one-second trials and return its figures."""
    from e2ray.search import tune

    search = {"trials": trials, "trial": SECOND, "baselines": ["e2llm"], "repeats": 1, "early_stopping": None}
    run, shared, study = opened(recipe_of(folder, name, search | {"surface": False}))
    ends: list[float] = []
    began = time.perf_counter()
    tune.run(
        study,
        shared,
        run.config.trial().cluster,
        told=lambda number: ends.append(time.perf_counter() - began),
        share_actors=share_actors,
    )
    seconds = time.perf_counter() - began
    records = study.records()
    assert all(record.state == "complete" for record in records), [record.reason for record in records]
    room = tune.room(run.config.trial().cluster, None).trials
    work = [record.seconds for record in records]
    # from the first end on every actor stands: what is left is the cost of a trial alone
    steady = (ends[-1] - ends[room - 1]) * room / (trials - room) - statistics.mean(work) if trials > room else None
    return {
        "trials": trials,
        "at_once": room,
        "wall_s": seconds,
        "work_s_per_trial": statistics.mean(work),
        "outside_s_per_trial": (seconds * room - sum(work)) / trials,
        "outside_s_per_trial_once_started": steady,
        "trials_per_hour": trials / seconds * 3600,
        "trials_per_hour_once_started": (trials - room) / (ends[-1] - ends[room - 1]) * 3600 if trials > room else None,
    }


class Grid:
    """Every point of a space, in the place of a study: nothing is stopped, everything is kept."""

    def __init__(self, study: Any, points: list[dict[str, Any]]) -> None:
        from e2ray.search.trial_plan import Plan

        self.study, self.search, self.name = study, study.search, study.name
        self.waiting = [
            Plan(number, RunConfig.model_validate(assign(study.recipe, point, RunConfig)), (RUNG,), None, None, point)
            for number, point in enumerate(points)
        ]
        self.plans = list(self.waiting)
        self.values: dict[int, dict[int, float]] = {}
        self.running: set[int] = set()

    def next(self) -> Any:
        """Return the next point to train, or None."""
        if not self.waiting:
            return None
        plan = self.waiting.pop(0)
        self.running.add(plan.number)
        return plan

    def is_running(self, number: int) -> bool:
        """Return whether a point is in training."""
        return number in self.running

    def rung(self, number: int, measured: Any) -> bool:
        """Keep a value; nothing is stopped."""
        self.values.setdefault(number, {})[measured.step] = self.study.objective(measured)["value"]
        return False

    def complete(self, number: int, measured: Any) -> None:
        """Keep a point's last value."""
        self.rung(number, measured)
        self.running.discard(number)
        show(f"grid {len(self.plans) - len(self.waiting)}/{len(self.plans)}: {self.values[number]}")

    def fail(self, number: int, reason: str, **spent: Any) -> None:
        """A grid with a hole is none."""
        raise RuntimeError(f"grid point {number} failed: {reason}")


def space() -> dict[str, Any]:
    """Return the grid's space."""
    return {
        "positions.scale.kind": {"kind": "choice", "options": list(KINDS)},
        "positions.scale.native_share": {"kind": "choice", "options": list(SHARES)},
        "positions.placement.kind": {"kind": "choice", "options": list(PLACEMENTS)},
    }


def grid(folder: Path) -> tuple[RunConfig, dict[tuple[Any, ...], dict[int, float]]]:
    """Train every point in full and return the search's recipe and each point's values by step."""
    from e2ray.search import tune

    search = {
        "trials": len(KINDS) * len(SHARES) * len(PLACEMENTS),
        "space": space(),
        "trial": {"train.steps": STEPS, "train.warmup_steps": 15, "cluster.num_workers": 1, "evaluate.documents": 4},
        "baselines": ["e2llm"],
        "repeats": 1,
        "surface": False,
        "startup_trials": 6,
        "early_stopping": {"kind": "asha", "min_steps": RUNG, "reduction_factor": 3},
    }
    run, shared, study = opened(recipe_of(folder, "grid", search))
    points = [dict(zip(space(), point, strict=True)) for point in product(KINDS, SHARES, PLACEMENTS)]
    every = Grid(study, points)
    tune.run(every, shared, run.config.trial().cluster)  # type: ignore[arg-type]
    return run.config, {tuple(plan.params.values()): every.values[plan.number] for plan in every.plans}


def replay(config: RunConfig, values: dict[tuple[Any, ...], dict[int, float]], seed: int, **search: Any) -> int | None:
    """Search on the grid's measurements and return the updates until a full trial is within 1 % of the best.

    None if all trials went by without one.
    """
    from e2ray.search.study import Study
    from e2ray.search.trial_plan import Reached

    wanted = WITHIN * min(value[STEPS] for value in values.values())
    recipe = config.model_dump(mode="json") | {"seed": seed}
    recipe["search"] |= search
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder), RunConfig.model_validate(recipe), 128)
        weights = study.search.weights
        # cells whose weighted number is the measured one: long = short = value / (sum of weights) over a base of 0
        window_cells = [{"window": w, "scale": w / 128, "documents": 1} for w in (128, *study.windows)]
        study.set_base([cell | {"nll": 0.0} for cell in window_cells])

        def measured(step: int, value: float) -> Reached:
            cells = [cell | {"nll": value / (weights.long + weights.short)} for cell in window_cells]
            return Reached(step=step, cells=cells, tokens=step, trial_seconds=0.0, loss=0.0)

        spent = 0
        while plan := study.next():
            positions = plan.config.positions
            point = (positions.scale.kind, positions.scale.native_share, positions.placement.kind)
            stopped = False
            if plan.rungs:
                spent += RUNG
                stopped = study.rung(plan.number, measured(RUNG, values[point][RUNG]))
            if not stopped:
                spent += STEPS - (RUNG if plan.rungs else 0)
                study.complete(plan.number, measured(STEPS, values[point][STEPS]))
                if values[point][STEPS] <= wanted:
                    return spent
    return None


def compare_overhead(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure both kinds of trials in the order A B B A."""
    sides: dict[str, list[dict[str, Any]]] = {"shared": [], "own": []}
    for number, side in enumerate(("shared", "own", "own", "shared")):
        shared = side == "shared"
        found = overhead(folder, trials=46 if shared else 12, share_actors=shared, name=f"{side}-{number}")
        show(f"{side}: {found}")
        sides[side].append(found)
    outside = [found["outside_s_per_trial"] for found in sides["shared"]]
    rates = {
        side: statistics.mean(found["trials_per_hour_once_started"] for found in runs) for side, runs in sides.items()
    }
    ratio = rates["shared"] / rates["own"]
    return {"overhead": sides}, [
        goal("seconds outside training and evaluation per one-second trial", max(outside), at_most=1.0),
        goal("trials per hour, shared actors / a Ray Train per trial", ratio, at_least=4.0),
    ]


def replays(
    config: RunConfig, values: dict[tuple[Any, ...], dict[int, float]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Search on the grid's measurements under many seeds, and in other ways beside it."""
    full = STEPS * len(values)

    def shares(**how: Any) -> list[float]:
        costs = [replay(config, values, seed, **how) for seed in range(SEEDS)]
        return [1.0 if cost is None else cost / full for cost in costs]

    found = {
        "search": shares(),
        "random_with_stopping": shares(sampler="random"),
        "random_without_stopping": shares(sampler="random", early_stopping=None),
        "tpe_without_stopping": shares(early_stopping=None),
    }
    final = sorted(value[STEPS] for value in values.values())
    runs = {
        "grid": [{"point": point, "values": measured} for point, measured in values.items()],
        "share_of_grid_by_seed": found,
        "median_share_of_grid": {name: statistics.median(each) for name, each in found.items()},
        "worst_share": max(found["search"]),
        "points_within_1_percent": sum(value <= WITHIN * final[0] for value in final),
        "grid_best_and_worst": [final[0], final[-1]],
    }
    median = statistics.median(found["search"])
    return runs, [goal("updates to within 1 % of the grid's best / updates of the grid, median", median, at_most=0.4)]


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--storage", type=Path, help="storage whose shards and base model are taken, e.g. the study's")
    made.add_argument("--only", choices=("overhead", "grid"), help="measure one half")
    parsed = made.parse_args()
    runs: dict[str, Any] = {}
    goals: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kept in ("shards", "bases") if parsed.storage else ():
            (folder / kept).symlink_to((parsed.storage / kept).absolute())
        config = recipe_of(folder, "first", {"trials": 1, "baselines": ["e2llm"], "repeats": 1})
        with cluster(config.cluster):
            if parsed.only != "grid":
                runs, goals = compare_overhead(folder)
            if parsed.only != "overhead":
                config, values = grid(folder)
        if parsed.only != "overhead":
            more, found = replays(config, values)
            runs, goals = runs | more, goals + found
    kept_config = config.model_dump(mode="json") | {"storage": "~/e2ray"}
    return finish("search", config=kept_config, runs=runs, goals=goals, check=parsed.check)


if __name__ == "__main__":
    sys.exit(main())
