"""Models: loading or building them, with the attention that their device can compute. Remote code is never run."""

import math
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from e2ray.config.base import SettingsError
from e2ray.config.model import LlamaModel, Model, ModelSettings, PretrainedModel
from e2ray.core.adapters import with_adapters
from e2ray.core.attention import resolve_attention
from e2ray.core.base import load_config, location, plain_rope, trained_config
from e2ray.core.compiled import decoder_layers
from e2ray.core.model_folder import probe_of, refuse_damaged
from e2ray.core.probe import Probe, forward_of, refuse_other_answers
from e2ray.core.proof import prove, seeded
from e2ray.core.rope import RotaryHook
from e2ray.core.weights import first_line, load_weights, non_finite, refuse_vocabulary

__all__ = [
    "build_model",
    "check_adapters",
    "check_weights",
    "merged",
    "meta_model",
    "model_class",
    "prove",
]


def build_model(
    settings: Model,
    *,
    dtype: torch.dtype,
    vocab_size: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    runs_on: str | torch.device | None = None,
    untouched: bool = False,
) -> PreTrainedModel | PeftModel:
    """Return the model of a run, ready to be trained; inverse frequencies are float32 whatever the dtype.

    Args:
        settings: A checkpoint to load, or sizes to build a Llama from.
        dtype: Of the parameters.
        vocab_size: Tokens of the tokenizer; needed to build a model, checked against a checkpoint's embeddings.
        seed: Of the built weights and of the adapters; the global random state is left as it was.
        device: Where the model is put.
        runs_on: The device that its attention is chosen for; None: `device`. An engine moves a model that was loaded
            on the CPU.
        untouched: Leave a checkpoint its own scaling, whatever `base_scaling` says.

    Raises:
        SettingsError: If the checkpoint is missing or incomplete, or has not the attention or a module named for LoRA.
    """
    attention = resolve_attention(
        settings, device if runs_on is None else runs_on, dtype=dtype, kind=model_class(settings)
    )
    if isinstance(settings, LlamaModel):
        model = _build_llama(settings, attention=attention, vocab_size=vocab_size, seed=seed)
        for parameter in model.parameters():  # model.to(dtype) would round the frequencies too
            parameter.data = parameter.data.to(dtype)
    else:
        config = load_config(settings) if untouched else trained_config(settings)
        model = _load_checkpoint(settings, config, attention=attention, dtype=dtype, vocab_size=vocab_size)
    model = model.to(device)
    if runs_on in (None, device) and (probe := known_probe(settings)) is not None:
        _refuse_other_answers(model, settings, probe)
    return made_ready(model, settings, seed=seed)


def known_probe(settings: Model) -> Probe | None:
    """Return the probe that the model of a folder must pass when it is loaded, None where the folder has none.

    Raises:
        SettingsError: If the folder is damaged.
    """
    if not isinstance(settings, PretrainedModel) or not settings.is_folder or settings.base_scaling == "replace":
        return None
    return probe_of(Path(settings.path).expanduser())


def _refuse_other_answers(model: PreTrainedModel, settings: ModelSettings, probe: Probe) -> None:
    """Raise SettingsError if a loaded model, on the device where it will run, is not the one that was trained."""
    hook, training = RotaryHook(model), model.training
    model.eval()
    what = f"model.path {getattr(settings, 'path', '')}"
    refuse_other_answers(probe, forward_of(model), hook, model, device=model.device, what=what)
    hook.remove()
    model.train(training)


def made_ready(model: PreTrainedModel, settings: Model, *, seed: int) -> PreTrainedModel | PeftModel:
    """Return a loaded model with what training adds to it: gradient checkpointing and adapters.

    Args:
        model: Changed in place where adapters are added.
        settings: Name what to add.
        seed: Of the adapters' weights; the global random state is left as it was.

    Raises:
        SettingsError: If a module named for LoRA is missing.
    """
    if settings.checkpoint_share:
        recompute(model, settings.checkpoint_share)
    if settings.lora is None:
        return model
    with seeded(seed, model.device):
        return with_adapters(model, settings.lora)


def meta_model(settings: Model) -> PreTrainedModel:
    """Return a model of the same modules without weights, made from the config alone; it cannot compute anything.

    Raises:
        SettingsError: If there is no usable config, or transformers knows no causal language model of its type.
    """
    with torch.device("meta"):
        return from_config(settings, attention="eager", vocab_size=257)


def from_config(settings: Model, *, attention: str, vocab_size: int, num_layers: int | None = None) -> PreTrainedModel:
    """Return a model of the shapes that the settings describe, its weights left as torch makes them.

    Args:
        settings: Sizes, or a checkpoint of which the config alone is read.
        attention: As transformers calls it.
        vocab_size: Of a model that is built from sizes.
        num_layers: The last of its layers alone; None: all.

    Raises:
        SettingsError: If there is no usable config, or transformers knows no causal language model of its type.
    """
    if isinstance(settings, LlamaModel):
        fewer = settings if num_layers is None else settings.model_copy(update={"num_layers": num_layers})
        return _build_llama(fewer, attention=attention, vocab_size=vocab_size, seed=0)
    config = load_config(settings)
    if num_layers is not None:
        text = config.get_text_config()
        text.num_hidden_layers = num_layers
        if isinstance(kinds := getattr(text, "layer_types", None), list):
            text.layer_types = kinds[-num_layers:]
    try:
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, trust_remote_code=False)
    except Exception as error:  # sizes that do not fit each other, no causal head: each its own exception
        raise SettingsError(
            f"model.path {settings.path}: its config.json makes no causal language model ({first_line(error)}); "
            "repair it or choose another checkpoint"
        ) from None


def check_adapters(settings: Model) -> list[str]:
    """Return one line for each thing that LoRA does differently than asked for; the model's weights are not read.

    Raises:
        SettingsError: If LoRA names a module that the model does not have, or that cannot have an adapter.
    """
    if settings.lora is None:
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", r"model\.lora\.", UserWarning)
        with_adapters(meta_model(settings), settings.lora)
    return [str(each.message) for each in caught]


def model_class(settings: Model) -> type[PreTrainedModel]:
    """Return the transformers class of the causal language model that the settings describe.

    Raises:
        SettingsError: If there is no usable config, or transformers knows no causal language model for it.
    """
    if isinstance(settings, LlamaModel):
        return LlamaForCausalLM
    config = load_config(settings)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise SettingsError(
            f"model.path {settings.path}: transformers has no causal language model for {config.model_type}; choose a "
            "checkpoint of one"
        )
    return kind


def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return a plain model that can be saved and served: adapters merged in place, the cache allowed again."""
    plain = model.merge_and_unload() if isinstance(model, PeftModel) else model
    plain.config.use_cache = True
    return plain


def _build_llama(settings: LlamaModel, *, attention: str, vocab_size: int | None, seed: int) -> PreTrainedModel:
    """Return a Llama with random float32 weights, the same for the same seed on every machine."""
    if vocab_size is None:
        raise ValueError("a model built from its sizes needs vocab_size, got None")
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_key_value_heads,
        max_position_embeddings=settings.base_context_length,
        rope_parameters=plain_rope(settings.base_frequency),
        tie_word_embeddings=settings.tie_embeddings,
        initializer_range=settings.initializer_range,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=attention,
    )
    with seeded(seed, "cpu"):
        return LlamaForCausalLM(config)


def _load_checkpoint(
    settings: PretrainedModel,
    config: PreTrainedConfig,
    *,
    attention: str,
    dtype: torch.dtype,
    vocab_size: int | None,
) -> PreTrainedModel:
    where = location(settings.path, key="model.path")
    if settings.is_folder:
        refuse_damaged(Path(where))
    model = load_weights(
        where,
        key=f"model.path {settings.path}",
        config=config,
        revision=settings.revision,
        dtype=dtype,
        attn_implementation=attention,
    )
    refuse_vocabulary(model, vocab_size, key=f"model.path {settings.path}")
    if wrong := non_finite(model, dtype):
        raise SettingsError(
            f"model.path {settings.path}: {wrong} holds numbers that are not finite in {str(dtype)[6:]}; name a "
            "checkpoint that is whole"
        )
    return model


def check_weights(settings: Model, *, vocab_size: int | None) -> None:
    """Raise SettingsError if a checkpoint's weights are incomplete, by names and shapes alone: no values are read.

    Args:
        settings: A model that is built from sizes has no weights to check.
        vocab_size: Tokens of the tokenizer, None where it is not known yet.
    """
    if not isinstance(settings, PretrainedModel):
        return
    where, config = location(settings.path, key="model.path"), trained_config(settings)
    key = f"model.path {settings.path}"
    model = load_weights(where, key=key, config=config, revision=settings.revision, device_map="meta")
    refuse_vocabulary(model, vocab_size, key=key)


def recomputed_layers(share: float, num_layers: int) -> int:
    """Return how many of a model's layers recompute their activations; rounded up."""
    return math.ceil(share * num_layers - 1e-9)


def recompute(model: PreTrainedModel, share: float) -> None:
    """Let a share of the decoder layers, spread evenly, recompute their activations; rounded up to whole layers."""
    kwargs = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    else:  # the name in early transformers 5, deprecated in later ones
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    layers = decoder_layers(model)
    count = recomputed_layers(share, len(layers))
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = (number + 1) * count // len(layers) > number * count // len(layers)
    model.config.use_cache = False
