"""A made-up study: deterministic numbers that resemble what a small model gives, with nothing trained.

The objectives are smooth functions of the settings plus noise of a known size. What follows from the records comes
from the package itself; only the importances, which a sampler would give, are made up.
"""

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from e2ray.config.positions import PositionSettings, preset
from e2ray.search.record import Cell, CurveCell, SearchedSetting, StudyFacts, TrialRecord, TrialSettings
from e2ray.search.results import StudyResults, results

Params = dict[str, Any]  # values by dotted path
Space = dict[str, SearchedSetting]
L, G, STEPS = 128, 16, 300
WINDOWS = (128, 256, 512, 1024, 2048)
SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)
RUNGS = (33, 99)
NOISE = 0.003
REPEAT_NOISE = 0.012  # larger, so that several trials are within one noise of the best
BASE = (3.399, 3.679, 4.092, 4.340, 4.540)
PUBLISHED = {
    "e2llm": (3.797, 3.521, 3.470, 3.542, 3.745),
    "pose": (3.735, 3.690, 3.612, 3.633, 3.760),
    "randpos": (3.412, 3.502, 3.781, 4.053, 4.272),
    "cream": (3.741, 3.702, 3.640, 3.661, 3.802),
    "clex": (3.760, 3.540, 3.497, 3.571, 3.790),
    "endprompt": (3.790, 3.731, 3.668, 3.702, 3.850),
    "pi": (3.801, 3.790, 3.520, 3.552, 3.714),
    "native": (3.330, 3.560, 4.031, 4.290, 4.511),
}
SPACE: Space = {
    "train.lr": {"kind": "float", "low": 3e-4, "high": 3e-3, "log": True, "when": {}},
    "positions.scale.kind": {"kind": "choice", "options": ["uniform_int", "log_uniform", "power", "beta"], "when": {}},
    "positions.scale.exponent": {
        "kind": "float", "low": -2.0, "high": 1.0, "log": False, "when": {"positions.scale.kind": ["power"]},
    },
    "positions.scale.a": {
        "kind": "float", "low": 0.3, "high": 5.0, "log": True, "when": {"positions.scale.kind": ["beta"]},
    },
    "positions.scale.b": {
        "kind": "float", "low": 0.3, "high": 5.0, "log": True, "when": {"positions.scale.kind": ["beta"]},
    },
    "positions.scale.native_share": {"kind": "float", "low": 0.0, "high": 0.6, "log": False, "when": {}},
    "positions.placement.kind": {
        "kind": "choice", "options": ["none", "prefix", "random_breaks", "sorted_random", "terminal"], "when": {},
    },
    "positions.placement.prefix": {
        "kind": "int", "low": 1, "high": 32, "log": True, "when": {"positions.placement.kind": ["prefix"]},
    },
    "positions.placement.num_breaks": {
        "kind": "int", "low": 1, "high": 8, "log": False, "when": {"positions.placement.kind": ["random_breaks"]},
    },
    "positions.placement.tokens": {
        "kind": "int", "low": 4, "high": 64, "log": True, "when": {"positions.placement.kind": ["terminal"]},
    },
    "positions.per": {"kind": "choice", "options": ["sequence", "step"], "when": {}},
}  # fmt: skip


def facts(
    num_trials: int = 45,
    *,
    weights: dict[str, float] | None = None,
    space: Space | None = None,
    mode: Literal["weighted", "pareto"] = "weighted",
) -> StudyFacts:
    """Return what all trials share; the base reads itself best at scale 1."""
    base = [
        cell(window, scale, BASE[i] + 0.12 * abs(math.log2(scale)) * (0.3 if scale > 1 else 0))
        for i, window in enumerate(WINDOWS)
        for scale in SCALES
    ]
    return StudyFacts(
        name="made-up", trials=num_trials, base_context_length=L, window=L, windows=WINDOWS, max_scale=float(G),
        steps=STEPS, batch_sequences=32, rungs=RUNGS, weights=weights or {"long": 1.0, "short": 0.5, "retrieval": 0.0},
        mode=mode, space=SPACE if space is None else space, base=base, documents=10, seed=0,
    )  # fmt: skip


def cell(window: int, scale: float, nll: float) -> Cell:
    """Return one cell of an evaluation."""
    return Cell(window=window, scale=scale, nll=nll, stderr=0.05, tokens=20470, documents=10, stride=64)


def drawn(space: Space, rng: random.Random) -> Params:
    """Return values of a random point of a space, conditions kept."""
    params: Params = {}
    for path, spec in space.items():
        if any(params.get(key) not in values for key, values in spec["when"].items()):
            continue
        if spec["kind"] == "choice":
            params[path] = rng.choice(spec["options"])
        elif spec["log"]:
            params[path] = math.exp(rng.uniform(math.log(spec["low"]), math.log(spec["high"])))
        else:
            params[path] = rng.uniform(spec["low"], spec["high"])
        if spec["kind"] == "int":
            params[path] = round(params[path])
    return params


def improved(space: Space, params: Params) -> Params:
    """Return the same point moved towards a good one, as a sampler that learns would propose it."""
    good = {"train.lr": 1.3e-3, "positions.scale.exponent": -0.8, "positions.scale.native_share": 0.5}
    kinds = {"positions.scale.kind": "power", "positions.placement.kind": "random_breaks", "positions.per": "sequence"}
    kept: Params = {path: kinds.get(path, value) for path, value in params.items() if not space[path]["when"]}
    number = params.get("positions.scale.native_share", 0.3)
    if "positions.scale.exponent" in space:
        kept["positions.scale.exponent"] = -0.82 + 0.1 * number
    if "positions.placement.num_breaks" in space:
        kept["positions.placement.num_breaks"] = 1 + int(number * 10) % 4
    if int(number * 100) % 4 == 1:  # now and then one for the long windows
        good |= {"positions.scale.exponent": 0.0, "positions.scale.native_share": 0.1}
    near = (0.02, 0.02, 0.05, 0.05, 0.3)[int(number * 100) % 5]
    return {path: good[path] + near * (value - good[path]) if path in good else value for path, value in kept.items()}


def settings_of(params: Params) -> TrialSettings:
    """Return the settings that values of SPACE stand for; E2-LLM's where a value is absent."""
    section: Params = {"scale": {"kind": "uniform_int", "max_scale": float(G)}, "placement": {"kind": "prefix"}}
    for name in section:
        kind = params.get(f"positions.{name}.kind")
        if kind:
            section[name] = {"kind": kind} | ({"max_scale": float(G)} if name == "scale" else {})
        section[name] |= {
            path.split(".")[-1]: value
            for path, value in params.items()
            if path.startswith(f"positions.{name}.") and not path.endswith(".kind")
        }
    section["per"] = params.get("positions.per", "sequence")
    resolved = PositionSettings.model_validate(section).model_dump(mode="json")
    return {"positions": resolved, "train.lr": params.get("train.lr", 1e-3)}


def nlls(params: Params) -> list[float]:
    """Return the NLL at W / L by window.

    Native draws save the short end, a good learning rate and breaks help everywhere.
    """
    native = params.get("positions.scale.native_share", 0.0)
    slopes = {"uniform_int": 0.0, "log_uniform": -1.0, "beta": -0.3}
    kind = params.get("positions.scale.kind", "")
    slope = slopes[kind] if kind in slopes else params.get("positions.scale.exponent", 0.0)
    short = min(1.0, 0.9 * native - 0.35 * slope)
    lr = 0.1 * math.log10(params.get("train.lr", 1e-3) / 1.3e-3) ** 2
    placed = {"random_breaks": -0.03, "sorted_random": 0.05, "terminal": 0.02, "none": 0.008}
    placement = placed.get(params.get("positions.placement.kind", ""), 0.0)
    per = 0.01 if params.get("positions.per") == "step" else 0.0
    tilt = (-0.36, -0.02, 0.12, 0.2, 0.24)
    return [
        nll + lr + per + placement * (i > 0) + tilt[i] * short
        for i, nll in enumerate((3.76, 3.521, 3.470, 3.542, 3.745))
    ]


def curves(diagonal: Sequence[float], step: int, surface: bool) -> list[CurveCell]:
    """Return the cells of one evaluation, whole or at scale W / L alone."""
    rows = []
    for i, window in enumerate(WINDOWS):
        for scale in SCALES if surface else [window / L]:
            away = math.log2(scale) - i
            read = cell(window, scale, diagonal[i] + (0.02 * away if away > 0 else -0.16 * away))
            rows.append(CurveCell(step=step, **read))
    return rows


def trial(
    number: int,
    diagonal: Sequence[float],
    *,
    params: Params,
    settings: TrialSettings,
    weights: Mapping[str, float],
    rng: random.Random,
    end: int,
    retrieval: float | None = None,
    surface: bool = True,
    **fields: Any,
) -> TrialRecord:
    """Return a trial whose NLL falls from 0.25 nats above `diagonal` at the first rung to it at the last step."""
    values: dict[int, float] = {}
    rows: list[CurveCell] = []
    numbers = (0.0, 0.0, 0.0)
    luck = rng.gauss(0, NOISE if fields.get("repeat") is None else REPEAT_NOISE)
    for step in (*RUNGS, STEPS):
        if step <= end:
            late = 0.25 * (1 - math.log(step / RUNGS[0]) / math.log(STEPS / RUNGS[0]))
            at_step = [nll + late + luck + rng.gauss(0, NOISE / 2) for nll in diagonal]
            long, short = statistics.mean(at_step), at_step[0] - BASE[0]
            value = weights["long"] * long + weights["short"] * short
            if retrieval is not None:
                value += weights["retrieval"] * (1 - retrieval)
            values[step], numbers = value, (long, short, value)
            rows += curves(at_step, step, surface and step == STEPS)
    long, short, value = numbers
    known = {
        "state": "complete" if end == STEPS else "pruned", "baseline": None, "repeat": None, "seed": 0, "reason": None,
    }  # fmt: skip
    return TrialRecord(
        number=number, params=params, settings=settings, steps=STEPS, step=end, long=long, short=short,
        retrieval=retrieval, value=value, tokens=end * 32 * L, seconds=2.0 + 0.15 * end, curves=rows, values=values,
        **(known | fields),
    )  # fmt: skip


def failed(record: TrialRecord, reason: str) -> TrialRecord:
    """Return the same trial as if it had failed before its first rung."""
    return replace(
        record, state="failed", step=0, long=None, short=None, retrieval=None, value=None, tokens=0, reason=reason,
        curves=[], values={},
    )  # fmt: skip


def made_up_records(
    about: StudyFacts, *, repeats: int = 3, retrieval: bool = False, surface: bool = True
) -> list[TrialRecord]:
    """Return the trials of a study.

    Eight baselines, further seeds of the paper's preset, then sampled ones: a third pruned, a few failed.
    """
    rng = random.Random(7)
    records: list[TrialRecord] = []
    kinds = [(name, 0 if name == "e2llm" else None) for name in PUBLISHED]
    for name, repeat in [*kinds, *(("e2llm", repeat) for repeat in range(1, repeats))]:
        positions = PositionSettings.model_validate(preset(name, float(G))).model_dump(mode="json")
        own = name in ("e2llm",) and "positions.scale.kind" in about.space
        params = {"positions.scale.kind": "uniform_int", "positions.placement.kind": "prefix", "train.lr": 1e-3}
        records.append(
            trial(
                len(records), PUBLISHED[name], params=params if own else {}, weights=about.weights, rng=rng, end=STEPS,
                settings={"positions": positions, "train.lr": 1e-3}, surface=surface, baseline=name, repeat=repeat,
                seed=repeat or 0, retrieval=0.4 if retrieval else None,
            )
        )  # fmt: skip
    while len(records) < about.trials:
        number, params = len(records), drawn(about.space, rng)
        if number > 18 and number % 3:
            params = improved(about.space, params)
        diagonal = nlls(params)
        end = (RUNGS[0] if number % 2 else RUNGS[1]) if statistics.mean(diagonal) > 3.63 or number % 9 == 4 else STEPS
        made = trial(
            number, diagonal, params=params, settings=settings_of(params), weights=about.weights, rng=rng, end=end,
            surface=surface, retrieval=round(rng.random(), 2) if retrieval and end == STEPS else None,
        )  # fmt: skip
        if number % 19 == 14:
            made = failed(made, "the loss became NaN at update 12; lower train.lr")
        records.append(made)
    return records


def importances_of(space: Space) -> dict[str, float]:
    """Return shares that fall along the space, summing to 1."""
    weights = [1 / (number + 1) ** 1.5 for number in range(len(space))]
    return {path: weight / sum(weights) for path, weight in zip(space, weights, strict=True)}


def made_up(
    num_trials: int = 45,
    *,
    repeats: int = 3,
    retrieval: bool = False,
    surface: bool = True,
    space: Space | None = None,
    mode: Literal["weighted", "pareto"] = "weighted",
) -> StudyResults:
    """Return a made-up study of `num_trials` trials, the same for the same arguments."""
    weights = {"long": 1.0, "short": 0.5, "retrieval": 0.2 if retrieval else 0.0}
    about = facts(num_trials, weights=weights, space=space, mode=mode)
    records = made_up_records(about, repeats=repeats, retrieval=retrieval, surface=surface)
    shares = importances_of(about.space)
    return results(records, about, shares, {path: (0.5 * share, 1.5 * share) for path, share in shares.items()})
