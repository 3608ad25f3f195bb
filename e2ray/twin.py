"""Will a base model's serving profiles equal what is trained? Found out before the training, without weights.

How a config becomes a computation does not depend on the weights. So a twin stands in for the model: its class and its
config with one layer of each kind, few tokens, narrow feed-forward layers and random weights. The export's own
verification is run on it, in fp32, and what it says about the twin it would say after the training.
"""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from e2ray.config.base import SettingsError
from e2ray.config.model import PretrainedModel
from e2ray.core.model import check_attention, model_class, trained_config
from e2ray.core.proof import seeded
from e2ray.evaluate.serving import profile_folder, quietly, verify
from e2ray.export import make_profile
from e2ray.files import write_json

VOCABULARY = 256
FEED_FORWARD = 16  # width of the twin's feed-forward layers and experts


def check_base(settings: PretrainedModel, context_lengths: Sequence[int], *, base_context_length: int) -> str | None:
    """Prove on a twin of a base model that every context length can be served as it is trained.

    Args:
        settings: The base model; its weights are not read.
        context_lengths: W in tokens; without any, only the model's class and its attention are looked at.
        base_context_length: L in tokens.

    Returns:
        None, or in one line why no twin can be made of this model, so that its profiles are proven after training only.

    Raises:
        SettingsError: If the model cannot be built, cannot compute the attention asked for, or a profile would differ
            from the trained model.
    """
    check_attention(settings, model_class(settings))
    config = trained_config(settings)
    try:
        whole = _skeleton(config)
    except Exception as error:  # whatever sizes that do not fit each other raise
        raise SettingsError(
            f"model.path {settings.path}: no model can be built from its config.json ({type(error).__name__}: "
            f"{_first_line(error)}); repair it or choose another checkpoint"
        ) from None
    small = cut_down(config, whole)
    if small is None:
        return (
            f"model.path {settings.path}: {config.model_type} cannot be cut down, so profiles are proven at export only"
        )
    try:
        _verify(small, settings, context_lengths, base_context_length)
    except SettingsError as error:
        raise SettingsError(
            f"model.path {settings.path}: what would be trained could not be served: {error}; {_way_out(settings)}"
        ) from None
    return None


def cut_down(config: PreTrainedConfig, whole: PreTrainedModel) -> PreTrainedConfig | None:
    """Return a config with one layer of each kind, few tokens and narrow feed-forward layers; None where none can be.

    Args:
        config: As the model is trained.
        whole: The model of it on the meta device.
    """
    kinds = _layer_kinds(whole)
    first = sorted({kinds.index(kind) for kind in kinds})
    for layers in (first, list(range(max(first, default=0) + 1))):
        small = _with_layers(config, layers)
        try:
            with quietly():
                small = _reread(small)
                found = _layer_kinds(_skeleton(small))
        except Exception:  # not every class takes any choice of layers; then the first ones in a row
            continue
        if set(found) == set(kinds):
            return small
    return None


def _way_out(settings: PretrainedModel) -> str:
    other = {"keep": "set model.base_scaling to replace, ", "replace": "set model.base_scaling to keep, "}
    return f"{other.get(settings.base_scaling or '', '')}choose another checkpoint, or export: null to train without"


def _verify(
    config: PreTrainedConfig, settings: PretrainedModel, context_lengths: Sequence[int], base_context_length: int
) -> None:
    """Save a twin with a profile for each context length and verify it as an export."""
    with tempfile.TemporaryDirectory(prefix="e2ray-") as place:
        folder = Path(place)
        with seeded(0, "cpu"), quietly():
            AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        for length in context_lengths:
            profile = make_profile(config, base_context_length, length, base_scaling=settings.base_scaling)
            write_json(profile_folder(folder, length) / "config_override.json", profile.override)
        try:
            verify(folder, base_context_length=base_context_length, context_lengths=context_lengths)
        except SettingsError:
            raise
        except Exception as error:  # the model's own code, given rope parameters that it does not expect
            raise SettingsError(f"its layers fail with {type(error).__name__}: {_first_line(error)}") from None


def _skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model without memory for its weights."""
    with torch.device("meta"), quietly():
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))


def _layer_kinds(model: PreTrainedModel) -> list[Any]:
    """Return what tells a model's decoder layers apart as far as positions go, feed-forward parts left out."""
    count = model.config.num_hidden_layers
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    types = list(getattr(model.config, "layer_types", None) or [None] * count)
    return [(types[number], _traits(layer)) for number, layer in enumerate(stacks[0])] if stacks else []


def _traits(layer: nn.Module) -> tuple[Any, ...]:
    """Return classes and plain attributes of a layer's attention modules."""
    found = [type(layer).__name__]
    for name, module in layer.named_modules():
        if "attention" in type(module).__name__.lower():
            plain = {
                key: value
                for key, value in vars(module).items()
                if key != "layer_idx" and isinstance(value, bool | int | str | type(None))
            }
            found.append(f"{name} {type(module).__name__} {sorted(plain.items(), key=str)}")
    return tuple(found)


def _with_layers(config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedConfig:
    """Return a copy of a config with these layers only; every list that has a value per layer is cut alike."""
    small = copy.deepcopy(config)
    count = config.num_hidden_layers
    for key, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(small, key, [value[number] for number in layers])
        elif key.endswith("intermediate_size") and isinstance(value, int):
            setattr(small, key, min(value, FEED_FORWARD))
        elif key.endswith("vocab_size") and isinstance(value, int):
            setattr(small, key, min(value, VOCABULARY))
        elif key.endswith("token_id"):
            setattr(small, key, None)
    small.num_hidden_layers = len(layers)
    small.initializer_range = config.hidden_size**-0.5  # scores of about 1, so that a wrong angle shows
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    return small


def _reread(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a config as it comes back from a file, with all that its class derives."""
    with tempfile.TemporaryDirectory(prefix="e2ray-") as place:
        config.save_pretrained(place)
        return AutoConfig.from_pretrained(place, trust_remote_code=False)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")
