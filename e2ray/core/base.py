"""What a base model says about its positions: its config, its base context length, its rope parameters.

A checkpoint's frequencies are not saved with its weights, so what its config says about RoPE decides what is
trained. A checkpoint that already carries a scaling is therefore refused until `model.base_scaling` says whether
to train on top of it or without it.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import AutoConfig, PreTrainedConfig

from e2ray.config.base import LONGEST_TEXT, SettingsError
from e2ray.config.model import LlamaModel, Model, PretrainedModel
from e2ray.core.methods.base import Rope
from e2ray.core.model_folder import refuse_damaged
from e2ray.core.rope import LOCAL_LAYER_TYPE, other_keys
from e2ray.core.weights import first_line

# Rope types whose frequencies depend on the length of the text: no fixed model to train on top of.
LENGTH_DEPENDENT = ("dynamic", "longrope")
SCALINGS = ("linear", "llama3", "yarn", *LENGTH_DEPENDENT)

# Keys of a config that do not describe the model itself.
HARMLESS = frozenset(
    "_name_or_path transformers_version dtype torch_dtype use_cache architectures bos_token_id eos_token_id "
    "pad_token_id max_position_embeddings".split()
)


@dataclass(frozen=True)
class BaseFacts:
    """What a base model says about its positions.

    Attributes:
        base_context_length: L in tokens.
        rope_parameters: The checkpoint's own, flat or per layer type.
        scaling: Rope type of the scaling the checkpoint carries; None without one.
        base_scaling: Whether that scaling is kept or removed (`replace`); None without one.
        factor: Of that scaling; None without one.
        ignored: One line for each setting of the model that is without effect.
    """

    base_context_length: int
    rope_parameters: Rope
    scaling: str | None
    base_scaling: Literal["keep", "replace"] | None
    factor: float | None = None
    ignored: tuple[str, ...] = ()

    @property
    def trained_rope_parameters(self) -> Rope:
        """The rope parameters in effect during training: the checkpoint's, or with `replace` those unscaled."""
        return _unscaled(self.rope_parameters) if self.base_scaling == "replace" else self.rope_parameters


def base_facts(settings: Model) -> BaseFacts:
    """Return the base context length and the rope parameters of a model, from its config.json.

    Raises:
        SettingsError: If there is no usable config, the model has no RoPE, or it carries a scaling and
            `base_scaling` makes no choice, or one that is impossible.
    """
    if isinstance(settings, LlamaModel):
        return BaseFacts(settings.base_context_length, plain_rope(settings.base_frequency), None, None)
    return _config_facts(settings, load_config(settings))


def trained_config(settings: PretrainedModel) -> PreTrainedConfig:
    """Return the config a checkpoint is trained with: its own, or with `replace` the one without its scaling.

    Raises:
        SettingsError: As `base_facts`.
    """
    config = load_config(settings)
    facts = _config_facts(settings, config)
    # Has to be written before the model is made: later changes of a config have no effect on its frequencies.
    config.rope_parameters = facts.trained_rope_parameters
    if facts.base_scaling == "replace":  # servers multiply this length by the factor they are given
        config.max_position_embeddings = facts.base_context_length
    return config


def config_digest(config: PreTrainedConfig) -> str:
    """Return a digest of what a config says about a model, not where it is from or how it is run: 64 hex digits.

    Values that equal the class's defaults are left out, so that new defaults of transformers change nothing.
    """
    known = set(vars(type(config)())) - HARMLESS
    values = {key: value for key, value in config.to_diff_dict().items() if key in known or key == "rope_parameters"}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def plain_rope(base_frequency: float) -> Rope:
    """Return rope parameters without any scaling."""
    return {"rope_type": "default", "rope_theta": base_frequency}


def location(path: str, *, key: str) -> str:
    """Return the folder or hub id to load from; a folder must exist."""
    if not PretrainedModel(path=path).is_folder:
        return path
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise SettingsError(f"{key} {path}: no such folder; name a folder of a checkpoint or a hub id")
    return str(folder)


def load_config(settings: PretrainedModel) -> PreTrainedConfig:
    """Return the config of a checkpoint that is a text model with RoPE."""
    path, where = settings.path, location(settings.path, key="model.path")
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


def _global_parts(rope_parameters: Rope) -> dict[str, Rope]:
    """Return the rope parameters by layer type ("" where they are flat), those of local layers left out."""
    if "rope_type" in rope_parameters:
        return {"": rope_parameters}
    return {key: value for key, value in rope_parameters.items() if isinstance(value, dict) and key != LOCAL_LAYER_TYPE}


def _is_scaled(part: Rope) -> bool:
    """Whether rope parameters extend the context; types such as `proportional` only choose frequencies."""
    return part["rope_type"] in SCALINGS or part.get("factor", 1.0) != 1.0


def _unscaled(rope_parameters: Rope) -> Rope:
    """Return rope parameters with the scaling of the global layers removed; all other keys are kept."""
    plain = {}
    for key, part in _global_parts(rope_parameters).items():
        kept = {name: part[name] for name in ("rope_theta", "partial_rotary_factor") if part.get(name) is not None}
        plain[key] = {"rope_type": "default", **kept, **other_keys(part)} if _is_scaled(part) else part
    return plain[""] if "" in plain else rope_parameters | plain
