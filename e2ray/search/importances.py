"""How much each searched setting matters, by Optuna's PED-ANOVA."""

import math
import warnings
from collections.abc import Callable, Iterable

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from e2ray.config.search import Choice, IntRange, Parameter, Space
from e2ray.search.record import TrialRecord


def importances(records: Iterable[TrialRecord], space: Space) -> dict[str, float]:
    """Return each parameter's share of the weighted number's variance (PED-ANOVA), of complete trials only.

    Empty if fewer than two complete trials have parameters. Source: arXiv 2304.10255.
    """
    made = optuna.create_study(direction="minimize")
    spaces = {path: distribution(parameter) for path, parameter in space.items()}
    for record in records:
        if record.state == "complete" and record.params:
            made.add_trial(
                optuna.trial.create_trial(
                    params=record.params,
                    distributions={path: spaces[path] for path in record.params},
                    value=record.value,
                )
            )
    if len(made.trials) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    with warnings.catch_warnings():  # it warns of settings that one trial alone has used, as conditional ones are
        warnings.simplefilter("ignore", UserWarning)
        found = optuna.importance.get_param_importances(made, evaluator=evaluator)
    return {path: float(share) for path, share in found.items() if math.isfinite(share)}


def distribution(parameter: Parameter) -> BaseDistribution:
    """Return Optuna's form of a parameter."""
    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.options)
    kind: Callable[..., BaseDistribution] = IntDistribution if isinstance(parameter, IntRange) else FloatDistribution
    return kind(parameter.low, parameter.high, log=parameter.log)
