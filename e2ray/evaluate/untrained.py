"""The base read by extensions that need no training, each window at the scale that serves it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from e2ray.config.methods import UNTRAINED, untrained_model
from e2ray.core.methods.registry import method_of
from e2ray.core.rope import RotaryHook, refuse_scaled
from e2ray.core.scales import paper_scale, untrained_scale
from e2ray.evaluate.perplexity import Sums, document_sums


def untrained_sums(
    model: nn.Module,
    documents: Sequence[np.ndarray],
    *,
    lanes: Sequence[str],
    windows: Sequence[int],
    base_context_length: int,
    **options: Any,
) -> list[Sums]:
    """Return each document's summed NLL per lane and window, each window at W / L.

    Args:
        model: The base; none of its hooks is applied.
        documents: Integer tokens of shape [length] each.
        lanes: Names of `UNTRAINED`.
        windows: W in tokens; dynamic NTK is that of the longest.
        base_context_length: L in tokens.
        **options: All other options of `document_sums`, except scales and name.

    Raises:
        SettingsError: If the model has a scaling of its own.
    """
    all_sums, largest = [], paper_scale(max(windows), base_context_length)
    for lane in lanes:
        refuse_scaled(model, lane)
        hook = RotaryHook(model, method_of(UNTRAINED[lane]), base_context_length=base_context_length)
        scales = partial(_scales, lane, base_context_length, largest)
        try:
            name = untrained_model(lane)
            read = document_sums(model, hook, documents, windows=windows, scales=scales, name=name, **options)
        finally:
            hook.remove()
        all_sums += [replace(sums, scale=paper_scale(sums.window, base_context_length)) for sums in read]
    return all_sums


def _scales(lane: str, base_context_length: int, max_scale: float, window: int) -> list[float]:
    return [untrained_scale(lane, window, base_context_length, max_scale)]
