"""How much each searched setting matters for a good trial, by Optuna's PED-ANOVA."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from e2ray.config.search import Choice, IntRange, Parameter, Space
from e2ray.search.record import TrialRecord

GOOD_SHARE = 0.25  # of the complete trials: importance is for being among them; Optuna's own 10 % is three of thirty


def importances(records: Iterable[TrialRecord], space: Space) -> dict[str, float]:
    """Return each parameter's importance for being among the best `GOOD_SHARE` of the complete trials, summing to 1.

    It compares how a parameter is spread among the best trials with how it is spread among all. Empty if fewer than
    two complete trials have parameters.

    Source: PED-ANOVA (arXiv 2304.10255).
    """
    return _shares(_comparable(records), space)


def spread(records: Iterable[TrialRecord], space: Space) -> dict[str, tuple[float, float]]:
    """Return the lowest and the highest importance of each parameter when any one trial is left out.

    This shows what a single trial decides and is no confidence interval; the true uncertainty is larger. A parameter
    that drops out of the computation without a trial counts as 0 there.
    """
    trials = _comparable(records)
    whole = _shares(trials, space)
    left_out = [_shares(trials[:index] + trials[index + 1 :], space) for index in range(len(trials))]
    samples = {path: [shares.get(path, 0.0) for shares in [whole, *left_out]] for path in whole}
    return {path: (min(shares), max(shares)) for path, shares in samples.items()}


def _comparable(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if record.state == "complete" and record.params]


def _shares(records: Sequence[TrialRecord], space: Space) -> dict[str, float]:
    if len(records) < 2:
        return {}
    made = optuna.create_study(direction="minimize")
    spaces = {path: distribution(parameter) for path, parameter in space.items()}
    for record in records:
        known = {path: spaces[path] for path in record.params}
        made.add_trial(optuna.trial.create_trial(params=record.params, distributions=known, value=record.value))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=GOOD_SHARE)
    with warnings.catch_warnings():  # it warns of settings that one trial alone has used, as conditional ones are
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        scores = optuna.importance.get_param_importances(made, evaluator=evaluator)
    return {path: float(share) for path, share in scores.items() if math.isfinite(share)}


def distribution(parameter: Parameter) -> BaseDistribution:
    """Return Optuna's form of a parameter."""
    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.options)
    kind: Callable[..., BaseDistribution] = IntDistribution if isinstance(parameter, IntRange) else FloatDistribution
    return kind(parameter.low, parameter.high, log=parameter.log)
