"""Models: loading or building them, from what their config says about positions.

A checkpoint's frequencies are not saved with its weights, so what its config says about RoPE decides what is
trained. A checkpoint that already carries a scaling is therefore refused until `model.base_scaling` says whether
to train on top of it or without it. Remote code is never run.
"""

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import is_flash_attn_2_available

from e2ray.config.base import LONGEST_TEXT, SettingsError
from e2ray.config.model import LlamaModel, Model, ModelSettings, PretrainedModel
from e2ray.core.adapters import with_adapters
from e2ray.core.model_folder import probe_of, refuse_damaged
from e2ray.core.probe import Probe, forward_of, refuse_other_answers
from e2ray.core.proof import prove, seeded
from e2ray.core.rope import LOCAL_LAYER_TYPE, RotaryHook, other_keys
from e2ray.core.weights import first_line, load_weights, non_finite, refuse_vocabulary

# Rope types whose frequencies depend on the length of the text: no fixed model to train on top of.
LENGTH_DEPENDENT = ("dynamic", "longrope")
SCALINGS = ("linear", "llama3", "yarn", *LENGTH_DEPENDENT)

__all__ = [
    "BaseFacts",
    "base_facts",
    "build_model",
    "check_adapters",
    "check_attention",
    "check_weights",
    "config_digest",
    "merged",
    "meta_model",
    "model_class",
    "prove",
    "resolve_attention",
    "trained_config",
]


@dataclass(frozen=True)
class BaseFacts:
    """What a base model says about its positions.

    Attributes:
        base_context_length: L in tokens.
        rope_parameters: The checkpoint's own, flat or per layer type.
        scaling: Rope type of the scaling the checkpoint carries; None without one.
        base_scaling: Whether that scaling is kept or replaced by none; None without one.
        factor: Of that scaling; None without one.
        ignored: One line for each setting of the model that is without effect.
    """

    base_context_length: int
    rope_parameters: dict[str, Any]
    scaling: str | None
    base_scaling: Literal["keep", "replace"] | None
    factor: float | None = None
    ignored: tuple[str, ...] = ()

    @property
    def trained_rope_parameters(self) -> dict[str, Any]:
        """The rope parameters in effect during training: the checkpoint's, or with `replace` those unscaled."""
        return _unscaled(self.rope_parameters) if self.base_scaling == "replace" else self.rope_parameters


def base_facts(settings: Model) -> BaseFacts:
    """Return the base context length and the rope parameters of a model, from its config.json.

    Raises:
        SettingsError: If there is no usable config, the model has no RoPE, or it carries a scaling and
            `base_scaling` makes no choice, or one that is impossible.
    """
    if isinstance(settings, LlamaModel):
        return BaseFacts(settings.base_context_length, _plain_rope(settings.base_frequency), None, None)
    return _config_facts(settings, _load_config(settings))


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
        SettingsError: If the checkpoint is not there or not whole, or the attention or a module named for LoRA is not.
    """
    attention = resolve_attention(
        settings, device if runs_on is None else runs_on, dtype=dtype, kind=model_class(settings)
    )
    if isinstance(settings, LlamaModel):
        model = _build_llama(settings, attention=attention, vocab_size=vocab_size, seed=seed)
        for parameter in model.parameters():  # model.to(dtype) would round the frequencies too
            parameter.data = parameter.data.to(dtype)
    else:
        config = _load_config(settings) if untouched else trained_config(settings)
        model = _load_checkpoint(settings, config, attention=attention, dtype=dtype, vocab_size=vocab_size)
    model = model.to(device)
    if runs_on in (None, device) and (probe := known_probe(settings)) is not None:
        _refuse_other_answers(model, settings, probe)
    return made_ready(model, settings, seed=seed)


def known_probe(settings: Model) -> Probe | None:
    """Return what the model of a folder has to answer as it is loaded, None where nothing is known of it.

    Raises:
        SettingsError: If the folder is damaged.
    """
    if not isinstance(settings, PretrainedModel) or not settings.is_folder or settings.base_scaling == "replace":
        return None
    return probe_of(Path(settings.path).expanduser())


def _refuse_other_answers(model: PreTrainedModel, settings: ModelSettings, probe: Probe) -> None:
    """Raise SettingsError if a loaded model, which stands where it will run, is not the one that was trained."""
    hook, training = RotaryHook(model), model.training
    model.eval()
    what = f"model.path {getattr(settings, 'path', '')}"
    refuse_other_answers(probe, forward_of(model), hook, model, device=model.device, what=what)
    hook.remove()
    model.train(training)


def made_ready(model: PreTrainedModel, settings: Model, *, seed: int) -> PreTrainedModel | PeftModel:
    """Return a loaded model with what a training adds to it: gradient checkpointing and adapters.

    Args:
        model: Changed in place where adapters are added.
        settings: Say what to add.
        seed: Of the adapters' weights; the global random state is left as it was.

    Raises:
        SettingsError: If a module named for LoRA is not there.
    """
    if settings.gradient_checkpointing:
        _enable_checkpointing(model)
    if settings.lora is None:
        return model
    with seeded(seed, model.device):
        return with_adapters(model, settings.lora)


def meta_model(settings: Model) -> PreTrainedModel:
    """Return a model of the same modules without any weights, made from its config alone; nothing can be computed.

    Raises:
        SettingsError: If there is no usable config, or transformers knows no causal language model of its type.
    """
    with torch.device("meta"):
        if isinstance(settings, LlamaModel):
            return _build_llama(settings, attention="eager", vocab_size=257, seed=0)
        config = _load_config(settings)
        try:
            return AutoModelForCausalLM.from_config(config, attn_implementation="eager", trust_remote_code=False)
        except Exception as error:  # sizes that do not fit each other, no causal head: each its own exception
            raise SettingsError(
                f"model.path {settings.path}: its config.json makes no causal language model ({first_line(error)}); "
                "repair it or choose another checkpoint"
            ) from None


def check_adapters(settings: Model) -> list[str]:
    """Return one line for each thing that LoRA does otherwise than asked for; the model's weights are not read.

    Raises:
        SettingsError: If LoRA names a module that the model has not, or that can have no adapter.
    """
    if settings.lora is None:
        return []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", r"model\.lora\.", UserWarning)
        with_adapters(meta_model(settings), settings.lora)
    return [str(each.message) for each in told]


def model_class(settings: Model) -> type[PreTrainedModel]:
    """Return the class that transformers makes a causal language model of these settings with.

    Raises:
        SettingsError: If there is no usable config, or transformers knows no causal language model for it.
    """
    if isinstance(settings, LlamaModel):
        return LlamaForCausalLM
    config = _load_config(settings)
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        raise SettingsError(
            f"model.path {settings.path}: transformers has no causal language model for {config.model_type}; choose a "
            "checkpoint of one"
        )
    return found


def check_attention(settings: ModelSettings, kind: type[PreTrainedModel]) -> None:
    """Raise SettingsError if the attention that is asked for is none that a class of models can compute."""
    wanted = settings.attention
    if wanted != "auto" and wanted not in _attentions(kind):
        raise SettingsError(
            f"model.attention: {wanted} is none that {kind.__name__} can compute, wanted one of "
            f"{', '.join(_attentions(kind))}; set it to auto or {_attentions(kind)[-1]}"
        )


def resolve_attention(
    settings: ModelSettings,
    device: str | torch.device,
    *,
    dtype: torch.dtype | None = None,
    kind: type[PreTrainedModel] = LlamaForCausalLM,
) -> str:
    """Return the attention implementation for transformers: flash_attention_2 where it can run, else sdpa, else eager.

    Args:
        settings: `attention: auto` leaves the choice to this function.
        device: Where the model will run.
        dtype: Of its parameters; flash_attention_2 knows no float32. None means a half precision.
        kind: Class of the model; not every one can compute every attention.

    Raises:
        SettingsError: If an attention is asked for and cannot run.
    """
    check_attention(settings, kind)
    able = _attentions(kind)
    obstacle = None
    if torch.device(device).type != "cuda":
        obstacle = f"needs a GPU, the device is {torch.device(device).type}"
    elif dtype == torch.float32:
        obstacle = "needs bf16 weights, train.precision is fp32"
    elif not is_flash_attn_2_available():
        obstacle = "is not installed (pip install e2ray[gpu])"
    without_flash = next(attention for attention in able if attention != "flash_attention_2")
    if settings.attention == "auto":
        return without_flash if obstacle else able[0]
    if settings.attention == "flash_attention_2" and obstacle:
        raise SettingsError(f"model.attention: flash_attention_2 {obstacle}; set it to auto or {without_flash}")
    return settings.attention


def _attentions(kind: type[PreTrainedModel]) -> list[str]:
    """Return the attentions a class of models can compute, fastest first.

    A class that lists its flash implementations is given another one of them by transformers where flash_attention_2
    is not among them, so that counts as none.
    """
    listed = getattr(kind, "_compatible_flash_implementations", None)
    flash = kind._supports_flash_attn and (listed is None or "flash_attention_2" in listed)
    return [*(["flash_attention_2"] if flash else []), *(["sdpa"] if kind._supports_sdpa else []), "eager"]


def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return a plain model that can be saved and served: adapters merged in place, the cache allowed again."""
    plain = model.merge_and_unload() if isinstance(model, PeftModel) else model
    plain.config.use_cache = True
    return plain


def _plain_rope(base_frequency: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": base_frequency}


def _global_parts(rope_parameters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rope parameters by layer type ("" where they are flat), those of local layers left out."""
    if "rope_type" in rope_parameters:
        return {"": rope_parameters}
    return {key: value for key, value in rope_parameters.items() if isinstance(value, dict) and key != LOCAL_LAYER_TYPE}


def _is_scaled(part: dict[str, Any]) -> bool:
    """Whether rope parameters extend the context; types such as `proportional` only choose frequencies."""
    return part["rope_type"] in SCALINGS or part.get("factor", 1.0) != 1.0


def _unscaled(rope_parameters: dict[str, Any]) -> dict[str, Any]:
    """Return rope parameters with the scaling of the global layers removed; what else they say is kept."""
    plain = {}
    for key, part in _global_parts(rope_parameters).items():
        kept = {name: part[name] for name in ("rope_theta", "partial_rotary_factor") if part.get(name) is not None}
        plain[key] = {"rope_type": "default", **kept, **other_keys(part)} if _is_scaled(part) else part
    return plain[""] if "" in plain else rope_parameters | plain


def _location(path: str, *, key: str) -> str:
    """Return the folder or hub id to load from; a folder has to be there."""
    if not PretrainedModel(path=path).is_folder:
        return path
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise SettingsError(f"{key} {path}: no such folder; name a folder of a checkpoint or a hub id")
    return str(folder)


def _load_config(settings: PretrainedModel) -> PreTrainedConfig:
    """Return the config of a checkpoint that is a text model with RoPE."""
    path, where = settings.path, _location(settings.path, key="model.path")
    if settings.is_folder and not (Path(where) / "config.json").is_file():
        raise SettingsError(f"model.path {path}: holds no config.json; name the folder of a Hugging Face checkpoint")
    if settings.is_folder:
        refuse_damaged(Path(where), only=["config.json"])
    try:
        config = AutoConfig.from_pretrained(where, revision=settings.revision, trust_remote_code=False)
    except Exception as error:  # damaged files, unknown types, an unreachable hub: each its own exception
        if "trust_remote_code" in str(error):
            reason = "it needs remote code, which is never run; choose a model transformers knows by itself"
        elif settings.is_folder:
            reason = f"its config.json cannot be used ({first_line(error)}); repair it or choose another checkpoint"
        else:
            reason = (
                f"cannot be fetched from the hub ({first_line(error)}); check the id, the network and the "
                "access rights, or download it and name the folder"
            )
        raise SettingsError(f"model.path {path}: {reason}") from None
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise SettingsError(
            f"model.path {path}: its weights are quantised ({method or 'quantization_config'}), wanted bf16, fp16 or "
            "fp32; take a checkpoint that is not, or save this one dequantised"
        )
    if config.get_text_config() is not config:
        raise SettingsError(
            f"model.path {path}: {config.model_type} is a model of several modalities; choose a text-only checkpoint"
        )
    if not _global_parts(getattr(config, "rope_parameters", None) or {}):
        raise SettingsError(
            f"model.path {path}: {config.model_type} has no rotary positions, so they cannot be scaled; "
            "choose a RoPE model such as Llama, Qwen, Mistral or Gemma"
        )
    return config


def _config_facts(settings: PretrainedModel, config: PreTrainedConfig) -> BaseFacts:
    rope, path, choice = dict(config.rope_parameters), settings.path, settings.base_scaling
    scaled = [part for part in _global_parts(rope).values() if _is_scaled(part)]
    scaling = scaled[0]["rope_type"] if scaled else None
    ignored: tuple[str, ...] = ()
    if scaling is None and choice is not None:
        ignored = (f"model.base_scaling: {choice} is without effect, since {path} carries no rope scaling",)
        choice = None
    if scaling is not None and choice is None:
        raise SettingsError(
            f"model.base_scaling: {path} already carries a rope scaling ({scaling}, factor {scaled[0].get('factor')}), "
            "so a choice is needed: keep trains on top of it, replace removes it first"
        )
    if choice == "keep" and scaling in LENGTH_DEPENDENT:
        raise SettingsError(
            f"model.base_scaling: keep is impossible for {path}, since the frequencies of its {scaling} scaling change "
            "with the length of the text; set it to replace"
        )
    length = settings.base_context_length
    if length is None and choice == "replace":
        length = scaled[0].get("original_max_position_embeddings")
    elif length is None:
        length = getattr(config, "max_position_embeddings", None)
    if length is None:
        raise SettingsError(
            f"model.base_context_length: the config.json of {path} does not say how many tokens it was pretrained "
            "with before any scaling; set it"
        )
    whole = isinstance(length, (int, float)) and not isinstance(length, bool) and length == int(length)
    if not whole or not 2 <= length <= LONGEST_TEXT:
        raise SettingsError(
            f"model.path {path}: its config.json says that it was pretrained with {length!r} tokens, wanted a whole "
            f"number of 2 to {LONGEST_TEXT}; repair it or set model.base_context_length"
        )
    factor = scaled[0].get("factor") if scaled else None
    return BaseFacts(int(length), rope, scaling, choice, factor, ignored)


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
        rope_parameters=_plain_rope(settings.base_frequency),
        tie_word_embeddings=settings.tie_embeddings,
        initializer_range=settings.initializer_range,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=attention,
    )
    with seeded(seed, "cpu"):
        return LlamaForCausalLM(config)


def trained_config(settings: PretrainedModel) -> PreTrainedConfig:
    """Return the config a checkpoint is trained with: its own, or with `replace` the one without its scaling.

    Raises:
        SettingsError: As `base_facts`.
    """
    config = _load_config(settings)
    facts = _config_facts(settings, config)
    # Has to be written before the model is made: later changes of a config have no effect on its frequencies.
    config.rope_parameters = facts.trained_rope_parameters
    if facts.base_scaling == "replace":  # servers multiply this length by the factor they are given
        config.max_position_embeddings = facts.base_context_length
    return config


def _load_checkpoint(
    settings: PretrainedModel,
    config: PreTrainedConfig,
    *,
    attention: str,
    dtype: torch.dtype,
    vocab_size: int | None,
) -> PreTrainedModel:
    where = _location(settings.path, key="model.path")
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
    """Raise SettingsError if a checkpoint's weights are not whole, by names and shapes alone: no values are read.

    Args:
        settings: A model to build has none.
        vocab_size: Tokens of the tokenizer, None where it is not known yet.
    """
    if not isinstance(settings, PretrainedModel):
        return
    where, config = _location(settings.path, key="model.path"), trained_config(settings)
    key = f"model.path {settings.path}"
    model = load_weights(where, key=key, config=config, revision=settings.revision, device_map="meta")
    refuse_vocabulary(model, vocab_size, key=key)


# What a config says beside the model that it makes.
HARMLESS = frozenset(
    "_name_or_path transformers_version dtype torch_dtype use_cache architectures bos_token_id eos_token_id "
    "pad_token_id max_position_embeddings".split()
)


def config_digest(config: PreTrainedConfig) -> str:
    """Return 64 hexadecimal digits that name what a config says of a model, not where it is from or how it is run.

    What a class's defaults say is left out, so that those of a later version of transformers change nothing.
    """
    known = set(vars(type(config)())) - HARMLESS
    told = {key: value for key, value in config.to_diff_dict().items() if key in known or key == "rope_parameters"}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _enable_checkpointing(model: PreTrainedModel) -> None:
    kwargs = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    else:  # the name in early transformers 5, deprecated in later ones
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    model.config.use_cache = False
