"""The learning rate of a step: a pure function, so that a restart needs no saved schedule."""

import math

from e2ray.config.train import TrainSettings


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Return the learning rate of update `step`, 0-based: linear warm-up, then the schedule's shape.

    The first update of a warm-up of n steps has 1/n of the peak, the n-th has the peak. Linear and cosine fall to
    `final_lr_share` of the peak, which the update after the last would have.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    match settings.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1 - done
        case "cosine":
            share = (1 + math.cos(math.pi * done)) / 2
    if settings.schedule != "constant":
        share = settings.final_lr_share + (1 - settings.final_lr_share) * share
    return settings.lr * share
