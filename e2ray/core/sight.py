"""How far back a model's layers see, read from its config as the mask code of transformers reads it.

In a layer with a sliding window of w tokens a token attends to the nearest w, itself included; with chunked attention
to those of its own chunk. No scale of positions changes that. Through n sliding layers a token still depends on tokens
up to n * (w - 1) before it, a window at a time, and on none farther back; chunks pass nothing on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from e2ray.config.base import SettingsError

ONE_MASK = (
    "mistral",
    "ministral3",
    "minimax",
)  # model types whose mask depends on the window alone, whatever layer_types say
SLIDING, CHUNKED = "sliding_attention", "chunked_attention"


@dataclass(frozen=True)
class Sight:
    """What the layers of a model see.

    Attributes:
        windows: Tokens that a token of each layer attends to at most, itself included; None for all before it.
        chunked: Whether every layer attends within chunks.
    """

    windows: tuple[int | None, ...]
    chunked: bool

    @property
    def limits(self) -> list[int]:
        """The windows of the layers that do not see everything."""
        return [window for window in self.windows if window is not None]

    @property
    def reach(self) -> int | None:
        """Tokens, itself included, that a token depends on at most through all layers; None for all before it."""
        if len(self.limits) < len(self.windows):
            return None
        return max(self.limits) if self.chunked else 1 + sum(window - 1 for window in self.limits)


def sight(config: PreTrainedConfig) -> Sight:
    """Return what the layers of a model see; fields unknown to its config's class are ignored, as by the model."""

    def known(name: str) -> int | None:
        return getattr(config, name, None) if hasattr(type(config), name) else None

    count = config.num_hidden_layers
    typed = hasattr(type(config), "layer_types") and config.model_type not in ONE_MASK
    types = getattr(config, "layer_types", None) if typed else None
    windows = {SLIDING: known("sliding_window"), CHUNKED: known("attention_chunk_size")}
    if types is None:  # one mask for all layers
        types = [SLIDING if windows[SLIDING] is not None else CHUNKED] * count
    return Sight(tuple(windows.get(kind) for kind in types), all(kind == CHUNKED for kind in types))


def check_sight(path: str, config: PreTrainedConfig, lengths: Mapping[str, Sequence[int]]) -> str | None:
    """Return one line where some or all layers see less than a context length, None where all see all of it.

    Args:
        path: Of the model, for the line.
        config: Its config.
        lengths: Context lengths in tokens by the setting that asks for them.

    Raises:
        SettingsError: If no layer sees everything and all layers together do not reach across a context length.
    """
    seen = sight(config)
    longest, asked = max((max(each), name) for name, each in lengths.items() if each)
    if not seen.limits or longest <= min(seen.limits):
        return None
    limits = sorted(set(seen.limits))
    window = f"{limits[0]:,}" if len(limits) == 1 else f"{limits[0]:,} to {limits[-1]:,}"
    layers = f"the nearest {window} tokens" if not seen.chunked else f"chunks of {window} tokens"
    if seen.reach is None:
        whole = len(seen.windows) - len(seen.limits)
        return (
            f"model.path {path}: {len(seen.limits)} of its {len(seen.windows)} layers see {layers} only, whatever "
            f"the scale; what is farther back in a context of {longest:,} reaches the other {whole} alone"
        )
    if longest > seen.reach:
        raise SettingsError(
            f"model.path {path}: each of its {len(seen.windows)} layers sees {layers} only, so nothing beyond "
            f"{seen.reach:,} tokens can change its logits, and {asked} asks for {longest:,}; keep to {seen.reach:,} "
            "or choose a checkpoint with full attention"
        )
    return (
        f"model.path {path}: each of its {len(seen.windows)} layers sees {layers} only, whatever the scale; what is "
        f"farther back is handed on from layer to layer, over {seen.reach:,} tokens at most"
    )
