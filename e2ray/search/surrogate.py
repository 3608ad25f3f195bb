"""What a study says of settings between its trials: a surrogate of its weighted number, and the intervals it gives.

A Gaussian process (scikit-learn) is fitted to all trials, its noise at least that of a trial. A trial that was stopped
at a rung counts, too: the share of the training done before a number is a coordinate of its own, and what is predicted
is the number at the end. The process knows which settings are active: a choice is a coordinate for each of its options,
and a conditional setting that does not apply has a constant coordinate, so that it distinguishes no trials. For each
setting, all others as in the best trial that has it, its interval is where the prediction stays within one noise of the
lowest. Leaving trials out one by one shows how far that can be believed: whether the measured number is where the
others predict it, whether their order is right, and how often the interval of the others holds the best place of all.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from e2ray.config.search import Value
from e2ray.records.study import Interval, SurrogateFound
from e2ray.search.ranks import chance_correlation, spearman
from e2ray.search.record import SearchedSetting

FEWEST_TRIALS = 8  # under which nothing is fitted, and no setting determined that fewer have
FEWEST_TRIED = 3  # trials of an option, under which it is open
MOST_TRIALS = 120  # of more, the best half and every n-th of the others
PLACES = 65  # of a range at which the surrogate is asked
WIDEST = 0.5  # share of a range that a determined interval has at most
COVERED = 0.8  # of left-out trials inside their prediction's interval, and of refits that hold the best place
DEVIATIONS = 1.645  # standard deviations on either side of a prediction: nine of ten measurements
IDLE = 0.5  # coordinate, 0 to 1, of a setting that does not apply

Space = Mapping[str, SearchedSetting]
Params = Mapping[str, Value]
Points = Float64[np.ndarray, "trials coordinates"]


@dataclass(frozen=True)
class Trial:
    """What a surrogate is fitted to.

    Attributes:
        params: The values of a trial's active settings.
        value: Its weighted number at the end; None where it was stopped.
        rungs: Its weighted number at each rung, by the share of the training done by then, above 0 and below 1.
    """

    params: Params
    value: float | None
    rungs: Mapping[float, float] = field(default_factory=dict)

    @property
    def numbers(self) -> list[tuple[float, float]]:
        """Every (share of the training, weighted number), ascending."""
        ended = [] if self.value is None else [(1.0, self.value)]
        return sorted(self.rungs.items()) + ended


class Surrogate:
    """A Gaussian process over the settings of a space."""

    def __init__(self, space: Space, trials: Sequence[Trial], *, noise: float) -> None:
        """Fit to trials, at least `FEWEST_TRIALS` of them in full.

        `noise` is the standard deviation of a trial's number, the least noise that the process assumes.
        """
        self.space, self.trials = space, list(trials)
        self.columns = [(path, option) for path in space for option in _options(space[path])]
        rows = [(n, share, value) for n, trial in enumerate(trials) for share, value in trial.numbers]
        self.owners = np.array([number for number, _, _ in rows])
        self.points = np.array([self.point(trials[number].params, share) for number, share, _ in rows])
        self.values = np.array([value for _, _, value in rows])
        self.centre, self.spread = float(self.values.mean()), float(self.values.std()) or 1.0
        kernel = ConstantKernel(1.0, (0.05, 50.0)) * Matern([1.0] * self.points.shape[1], (0.1, 50.0), nu=2.5)
        least = max((noise / self.spread) ** 2, 1e-4)
        process = GaussianProcessRegressor(kernel + WhiteKernel(least, (least, 10.0 * least)), random_state=0)
        self.process = _fitted(process, self.points, (self.values - self.centre) / self.spread)

    def point(self, params: Params, share: float = 1.0) -> list[float]:
        """Return the coordinates of a trial, 0 to 1 each; the last one is the share of the training done."""
        return [*(_coordinate(self.space[path], option, params.get(path)) for path, option in self.columns), share]

    @property
    def full(self) -> list[int]:
        """The places in `trials` of those that ran to the end."""
        return [number for number, trial in enumerate(self.trials) if trial.value is not None]

    def predict(self, points: Points) -> Float64[np.ndarray, " trials"]:
        """Return the predicted weighted number at some coordinates."""
        return np.asarray(self.process.predict(points)) * self.spread + self.centre

    def deviation(self, points: Points) -> Float64[np.ndarray, " trials"]:
        """Return the predicted standard deviation of a measurement at some coordinates."""
        return np.asarray(self.process.predict(points, return_std=True)[1]) * self.spread

    def without(self, left_out: int) -> "Surrogate":
        """Return the surrogate of all trials but one, under the same kernel."""
        other = object.__new__(Surrogate)
        kept = self.owners != left_out
        other.space, other.columns = self.space, self.columns
        other.trials = [trial for number, trial in enumerate(self.trials) if number != left_out]
        other.owners = self.owners[kept] - (self.owners[kept] > left_out)
        other.points, other.values = self.points[kept], self.values[kept]
        other.centre, other.spread = self.centre, self.spread
        process = GaussianProcessRegressor(self.process.kernel_, optimizer=None)
        other.process = _fitted(process, other.points, (other.values - self.centre) / self.spread)
        return other

    def along(self, path: str, start: Params) -> Float64[np.ndarray, " places"]:
        """Return the predicted weighted number at every place of a setting, all others as in `start`."""
        values = _values(self.space[path])
        return self.predict(np.array([self.point(self.moved(start, path, value)) for value in values]))

    def moved(self, start: Params, path: str, value: Value) -> dict[str, Value]:
        """Return a trial's settings with another value of one: what no longer applies is left out.

        What begins to apply is taken from the best trial that has the value.
        """
        having = [trial for trial in self.trials if trial.params.get(path) == value]
        best = _best(having).params if having else {}
        settings = {**best, **start, path: value}
        while dropped := [name for name in settings if name in self.space and not _applies(self.space[name], settings)]:
            settings = {name: known for name, known in settings.items() if name not in dropped}
        return settings


def _best(trials: Sequence[Trial]) -> Trial:
    """Return the best of the trials in full, or of those that came farthest where none is."""
    return min(trials, key=lambda trial: (-trial.numbers[-1][0], trial.numbers[-1][1]))


def _applies(parameter: SearchedSetting, params: Params) -> bool:
    """Return whether a setting applies beside others."""
    return all(key in params and params[key] in values for key, values in (parameter.get("when") or {}).items())


def _fitted(process: GaussianProcessRegressor, points: Points, values: np.ndarray) -> GaussianProcessRegressor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: the setting says nothing
        return process.fit(points, values)


def _options(parameter: SearchedSetting) -> Sequence[Value]:
    return parameter["options"] if parameter["kind"] == "choice" else (None,)


def _values(parameter: SearchedSetting) -> Sequence[Value]:
    """Return the values of a setting at which a surrogate is asked."""
    return parameter["options"] if parameter["kind"] == "choice" else grid(parameter)


def _coordinate(parameter: SearchedSetting, option: Value, value: Value) -> float:
    """Return the coordinate of a value, 0 to 1."""
    if parameter["kind"] == "choice":
        return 0.0 if value is None else float(value == option)
    if value is None:
        return IDLE
    assert isinstance(value, int | float), "of a range"
    low, high = parameter["low"], parameter["high"]
    if parameter.get("log"):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def grid(parameter: SearchedSetting) -> list[float]:
    """Return the places of a numeric setting's range at which a surrogate is asked, ascending, ends included."""
    low, high = parameter["low"], parameter["high"]
    shares = np.linspace(0, 1, PLACES)
    values = low * (high / low) ** shares if parameter.get("log") else low + (high - low) * shares
    if parameter["kind"] == "int":
        return sorted({round(value) for value in values})
    return [float(value) for value in np.clip(values, low, high)]


def intervals(space: Space, trials: Sequence[Trial], *, within: float) -> SurrogateFound | None:
    """Return what a surrogate says of each setting; None with too few full trials or if all have one number.

    Args:
        space: Searched settings by dotted path.
        trials: With a number, the repeats of one left out; of more than `MOST_TRIALS` some are taken.
        within: One noise of a trial, in terms of the weighted number.

    Returns:
        For each setting where the prediction stays within or no trial was; it is `determined` with a `share` of at most
        `WIDEST`, `held`, `narrow` and `coverage` of at least `COVERED`, at least `FEWEST_TRIALS` that have it, and
        left-out trials ordered better than by chance.
    """
    ended = {trial.value for trial in trials if trial.value is not None}
    if sum(trial.value is not None for trial in trials) < FEWEST_TRIALS or len(ended) == 1:
        return None
    trials = _fewer(trials)
    whole = Surrogate(space, trials, noise=within)
    starts = {path: start for path in space if (start := _start(whole, path)) is not None}
    others: dict[str, list[list[int]]] = {path: [] for path in starts}
    checks: list[tuple[float, float, float]] = []  # of each full trial its number, the prediction, its deviation
    for number, trial in enumerate(trials):  # one refit at a time: each holds a matrix
        refit = whole.without(number)
        for path, start in starts.items():
            others[path].append(_good(refit, path, start, within)[0])
        if trial.value is not None:
            point = np.array([whole.point(trial.params)])
            checks.append((trial.value, float(refit.predict(point)[0]), DEVIATIONS * float(refit.deviation(point)[0])))
    ranks = spearman([predicted for _, predicted, _ in checks], [value for value, _, _ in checks])
    coverage = sum(abs(value - predicted) <= most for value, predicted, most in checks) / len(checks)
    believed = coverage >= COVERED and ranks is not None and ranks > chance_correlation(len(checks))
    return SurrogateFound(
        trials=len(trials),
        full=len(checks),
        left_out_spearman=ranks,
        coverage=coverage,
        parameters={
            path: _interval(path, whole, starts[path], others[path], within, believed=believed)
            if path in starts
            else None
            for path in space
        },
    )


def _fewer(trials: Sequence[Trial]) -> list[Trial]:
    """Return at most `MOST_TRIALS`: the time of a fit grows with the cube of their number."""
    if len(trials) <= MOST_TRIALS:
        return list(trials)
    ranked = sorted(trials, key=lambda trial: (-trial.numbers[-1][0], trial.numbers[-1][1]))
    half = MOST_TRIALS // 2
    ranks = np.linspace(half, len(ranked) - 1, MOST_TRIALS - half).round().astype(int)
    return ranked[:half] + [ranked[rank] for rank in ranks]


def _start(whole: Surrogate, path: str) -> Params | None:
    """Return the settings of the best full trial that has a setting, at which all others are held; None if none has."""
    having = [whole.trials[number] for number in whole.full if path in whole.trials[number].params]
    return _best(having).params if having else None


def _interval(
    path: str,
    whole: Surrogate,
    start: Params,
    others: Sequence[Sequence[int]],
    within: float,
    *,
    believed: bool,
) -> Interval:
    """Return the interval of a setting; `others` are its places in the refits."""
    parameter = whole.space[path]
    chosen, best = _good(whole, path, start, within)
    share, held = _share(parameter, chosen), sum(best in other for other in others) / len(others)
    narrow = sum(_share(parameter, other) <= WIDEST for other in others) / len(others)
    tried = sum(path in trial.params for trial in whole.trials)
    determined = believed and tried >= FEWEST_TRIALS and share <= WIDEST and min(held, narrow) >= COVERED
    interval = Interval(trials=tried, share=share, held=held, narrow=narrow, determined=determined)
    values = [_values(parameter)[number] for number in chosen]
    return interval.changed(
        **{"kinds": values} if parameter["kind"] == "choice" else {"low": values[0], "high": values[-1]}
    )


def _good(fit: Surrogate, path: str, start: Params, within: float) -> tuple[list[int], int]:
    """Return at which places of a setting a fit stays within, or knows nothing, and its best place."""
    curve, tried = fit.along(path, start), _tried(fit, path)
    return _within(curve, within, tried, fit.space[path]["kind"]), _lowest(curve, tried)


def _share(parameter: SearchedSetting, chosen: Sequence[int]) -> float:
    """Return the share of a range or of the options that the chosen places cover."""
    if parameter["kind"] == "choice":
        return len(chosen) / len(parameter["options"])
    points = grid(parameter)
    return _coordinate(parameter, None, points[chosen[-1]]) - _coordinate(parameter, None, points[chosen[0]])


def _tried(whole: Surrogate, path: str) -> np.ndarray:
    """Return which places of a setting trials cover: options that enough have, or all between the outermost values.

    None where no trial has it. Elsewhere a process predicts the mean of all, which is worse than the best and yet no
    finding.
    """
    parameter, values = whole.space[path], [trial.params[path] for trial in whole.trials if path in trial.params]
    if parameter["kind"] == "choice":
        return np.array([values.count(option) >= FEWEST_TRIED for option in parameter["options"]])
    numbers = [value for value in values if isinstance(value, int | float)]
    if not numbers:  # the only trial that has the setting is the one that is left out
        return np.zeros(len(grid(parameter)), dtype=bool)
    return np.array([min(numbers) <= point <= max(numbers) for point in grid(parameter)])


def _lowest(curve: Float64[np.ndarray, " places"], tried: np.ndarray) -> int:
    """Return the lowest place of those that were tried; of all if none of these is on the grid."""
    return int(np.where(tried, curve, np.inf).argmin() if tried.any() else curve.argmin())


def _within(curve: Float64[np.ndarray, " places"], within: float, tried: np.ndarray, kind: str) -> list[int]:
    """Return the places where a curve is within some distance of its least, or nothing was tried.

    All of a choice, else those connected to the least.
    """
    best = _lowest(curve, tried)
    good = (curve <= curve[best] + within) | ~tried
    if kind == "choice":
        return [int(number) for number in np.flatnonzero(good)]
    first, last = best, best
    while first > 0 and good[first - 1]:
        first -= 1
    while last < len(curve) - 1 and good[last + 1]:
        last += 1
    return list(range(first, last + 1))
