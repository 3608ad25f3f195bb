"""Will a base model's serving profiles equal what is trained? Found out before the training, without weights.

How a config becomes a computation does not depend on the weights. So a twin stands in for the model: its class and its
config with one layer of each kind, few heads of the same size, few tokens, narrow feed-forward layers and random
weights. The export's own verification is run on it, in fp32, and finds on the twin what it would find after the
training.
"""

import copy
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from e2ray.config.base import SettingsError
from e2ray.config.model import PretrainedModel
from e2ray.core.attention import check_attention
from e2ray.core.base import trained_config
from e2ray.core.methods.base import FrequencyMethod
from e2ray.core.model import model_class
from e2ray.core.proof import seeded
from e2ray.core.rope import find_rotary_modules, frequency_buffers
from e2ray.core.sight import check_sight
from e2ray.core.weights import first_line, quietly
from e2ray.files import write_json
from e2ray.records.folders import ExportFolder
from e2ray.serve.profiles import make_profile
from e2ray.serve.verify import verify

EXPORTED = "export.context_lengths"
VOCABULARY = 256
FEED_FORWARD = 16  # width of the twin's feed-forward layers and experts
TOKENS = 64  # of a forward: some layers are slow without a GPU
PARAMETERS = 2e8  # of a twin at most
HEADS = 4  # of a twin at most, to one head of keys and values


def check_base(
    settings: PretrainedModel,
    lengths: Mapping[str, Sequence[int]],
    *,
    base_context_length: int,
    method: FrequencyMethod | None = None,
) -> list[str]:
    """Prove on a twin of a base model that every context length can be served as it is trained.

    Args:
        settings: The base model; its weights are not read.
        lengths: Context lengths, W in tokens, by the setting that asks for them; those of EXPORTED are served.
        base_context_length: L in tokens.
        method: What a scale means in the training; None: linear.

    Returns:
        Lines for the user: on what the layers do not see, and on a model of which no twin can be made, so that its
        profiles are proven after the training only.

    Raises:
        SettingsError: If the model cannot be built, cannot compute the attention asked for, does not see as far as a
            context length, or a profile would differ from the trained model.
    """
    check_attention(settings, model_class(settings))
    config = trained_config(settings)
    notes = [check_sight(settings.path, config, lengths)]
    try:
        whole = _skeleton(config)
    except Exception as error:  # sizes that do not fit each other: each class raises its own
        raise SettingsError(
            f"model.path {settings.path}: no model can be built from its config.json ({type(error).__name__}: "
            f"{first_line(error)}); repair it or choose another checkpoint"
        ) from None
    if served := lengths.get(EXPORTED):
        small = cut_down(config, whole)
        if small is None:
            notes.append(
                f"model.path {settings.path}: no small twin can be made of {config.model_type}, so its serving "
                "profiles are proven after the training only"
            )
        else:
            _verify(small, settings, served, base_context_length, method)
    return [line for line in notes if line]


def cut_down(config: PreTrainedConfig, whole: PreTrainedModel) -> PreTrainedConfig | None:
    """Return a config with one layer of each kind and little of what positions do not touch; None if none works.

    Args:
        config: As the model is trained.
        whole: The model of it on the meta device.
    """
    kinds = _layer_kinds(whole)
    first = sorted({kinds.index(kind) for kind in kinds})
    in_a_row = list(range(max(first, default=0) + 1))
    # Not every class takes any choice of layers, or few heads; the twin is the first one of the whole model's kinds.
    for layers, narrow in itertools.product((first, in_a_row), (True, False)):
        try:
            with quietly():
                small = _reread(_with_layers(_narrow(config) if narrow else config, layers))
            model = _skeleton(small)
        except Exception:  # sizes that do not fit each other: each class raises its own
            continue
        size = sum(parameter.numel() for parameter in model.parameters())
        if (
            size <= PARAMETERS
            and set(_layer_kinds(model)) == set(kinds)
            and _frequency_shapes(model) == _frequency_shapes(whole)
        ):
            return small
    return None


def _frequency_shapes(model: PreTrainedModel) -> list[dict[str, torch.Size]]:
    return [
        {name: buffer.shape for name, buffer in frequency_buffers(module).items()}
        for module in find_rotary_modules(model)
    ]


def _narrow(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of a config with one head of keys and values, of the same size; the width shrinks along."""
    small = copy.deepcopy(config)
    heads = config.num_attention_heads
    small.num_attention_heads = min(HEADS, heads // (getattr(config, "num_key_value_heads", None) or heads))
    small.hidden_size = config.hidden_size * small.num_attention_heads // heads
    if hasattr(config, "num_key_value_heads"):
        small.num_key_value_heads = 1
    return small


def _way_out(settings: PretrainedModel) -> str:
    other = {"keep": "set model.base_scaling to replace, ", "replace": "set model.base_scaling to keep, "}
    return f"{other.get(settings.base_scaling or '', '')}choose another checkpoint, or export: null to train without"


def _verify(
    config: PreTrainedConfig,
    settings: PretrainedModel,
    lengths: Sequence[int],
    base_context_length: int,
    method: FrequencyMethod | None,
) -> None:
    """Save a twin with a profile for each context length and verify it as an export."""
    with tempfile.TemporaryDirectory(prefix="e2ray-") as scratch:
        folder = Path(scratch)
        with seeded(0, "cpu"), quietly():
            AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        try:
            for length in lengths:
                profile = make_profile(
                    config, base_context_length, length, base_scaling=settings.base_scaling, method=method
                )
                write_json(ExportFolder(folder).override(context_length=length), profile.override)
            verify(
                folder, base_context_length=base_context_length, context_lengths=lengths, method=method, tokens=TOKENS
            )
        except Exception as error:  # the model's own code, given rope parameters that it does not expect
            reason = str(error) if isinstance(error, SettingsError) else f"{type(error).__name__}: {first_line(error)}"
            raise SettingsError(
                f"model.path {settings.path}: its training could not be served, as a small model of its class shows: "
                f"{reason}; {_way_out(settings)}"
            ) from None


def _skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model without memory for its weights."""
    with torch.device("meta"), quietly():
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))


def _layer_kinds(model: PreTrainedModel) -> list[tuple[str | None, tuple[str, ...]]]:
    """Return the kind of each decoder layer as far as positions matter, feed-forward parts left out."""
    count = model.config.num_hidden_layers
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    types = list(getattr(model.config, "layer_types", None) or [None] * count)
    return [(types[number], _traits(layer)) for number, layer in enumerate(stacks[0])] if stacks else []


def _traits(layer: nn.Module) -> tuple[str, ...]:
    """Return classes and plain attributes of a layer's attention modules."""
    traits = [type(layer).__name__]
    for name, module in layer.named_modules():
        if "attention" in type(module).__name__.lower():
            plain = {key: value for key, value in vars(module).items() if isinstance(value, bool | str | type(None))}
            traits.append(f"{name} {type(module).__name__} {sorted(plain.items(), key=str)}")
    return tuple(traits)


def _with_layers(config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedConfig:
    """Return a copy of a config with these layers only; every list that has a value per layer is cut alike."""
    small = copy.deepcopy(config)
    count = config.num_hidden_layers
    for key, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(small, key, [value[number] for number in layers])
        elif "intermediate_size" in key and isinstance(value, int):
            setattr(small, key, min(value, FEED_FORWARD))
        elif "vocab_size" in key and isinstance(value, int):
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
    with tempfile.TemporaryDirectory(prefix="e2ray-") as scratch:
        config.save_pretrained(scratch)
        return AutoConfig.from_pretrained(scratch, trust_remote_code=False)
