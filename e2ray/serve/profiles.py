"""What a served context length is: rope parameters for each program that serves, and the command lines.

The method that the model was trained with gives the rope parameters of a scale. Where the base carries a scaling of its
own, which other rope types would replace and not stack on, and in classes that know no other type, a profile is
`longrope` with one factor per pair of head dimensions.
"""

import copy
import json
import math
import shlex
from dataclasses import dataclass
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from e2ray.config.base import SettingsError
from e2ray.core.methods.base import FrequencyMethod, Rope
from e2ray.core.methods.linear import Linear
from e2ray.core.rope import LOCAL_LAYER_TYPE, other_keys
from e2ray.core.scales import reaching_scale

PER_PAIR = ("llama3", "yarn")  # kept scalings with frequencies of their own
DIVIDED = ("default", "linear")
Override = dict[str, Any]  # of a config: `rope_parameters`, and its length where that differs
LENGTH = "max_position_embeddings"


@dataclass(frozen=True)
class Profile:
    """How one context length is served.

    Attributes:
        context_length: W in tokens.
        scale: g, at least 1: W / L, or what was measured better.
        override: What transformers has to read in place of the config's values.
        server_override: The same for vLLM and SGLang, which need more keys for some rope types.
    """

    context_length: int
    scale: float
    override: Override
    server_override: Override


def make_profile(
    config: PreTrainedConfig,
    base_context_length: int,
    context_length: int,
    *,
    base_scaling: Literal["keep", "replace"] | None,
    scale: float | None = None,
    method: FrequencyMethod | None = None,
) -> Profile:
    """Return the profile that equals training at a scale.

    Args:
        config: Of the exported model, rope as during training.
        base_context_length: L in tokens.
        context_length: W in tokens.
        base_scaling: The run's choice; a config that still carries a scaling demands `keep`.
        scale: g >= 1; None takes W / L.
        method: What a scale meant in training; None: linear.

    Raises:
        SettingsError: If the config's scaling contradicts the choice or cannot be stacked on, or no rope type
            expresses the method.
    """
    paper = reaching_scale(context_length, base_context_length)
    scale = paper if scale is None or math.isclose(scale, paper, rel_tol=1e-6) else scale
    parts = _parts(config)
    made = {
        key: _scaled(config, key, part, scale, base_context_length, context_length, method or Linear())
        for key, part in parts.items()
    }
    kinds = {part["rope_type"] for part in parts.values()} - {"default", "proportional"}
    if kinds and base_scaling != "keep":
        raise SettingsError(
            f"export: the model's config carries a rope scaling ({', '.join(sorted(kinds))}), model.base_scaling is "
            f"{base_scaling}; wanted keep, the choice it was trained with"
        )
    rope = made[""] if "" in made else {**config.rope_parameters, **made}
    override: Override = {"rope_parameters": rope}
    server_override = json.loads(json.dumps(override))
    types = {part["rope_type"] for part in made.values()}
    longest = max(context_length, base_context_length)
    if "longrope" in types:
        # vLLM and SGLang do not multiply longrope's length, and know the attention factor by other names.
        override[LENGTH] = server_override[LENGTH] = context_length
        servers = server_override["rope_parameters"]
        for part in [servers] if "" in made else [servers[key] for key in made]:
            part["short_mscale"] = part["long_mscale"] = part["attention_factor"]
    elif types & {"yarn", "default"}:
        override[LENGTH] = server_override[LENGTH] = longest
    elif "" not in made:
        # Neither vLLM (Gemma3) nor SGLang (any model with a rope per layer type) multiplies the length here.
        server_override[LENGTH] = longest
    else:
        factor = max(part.get("factor", 1.0) for part in parts.values())
        reached = max(base_context_length, context_length / scale)  # what the server multiplies by the scale
        multiplied = math.ceil(reached / factor)
        if multiplied != config.max_position_embeddings:
            server_override[LENGTH] = multiplied
    return Profile(context_length, scale, override, server_override)


def _parts(config: PreTrainedConfig) -> dict[str, Rope]:
    """Return the rope parameters that a scale acts on by layer type, "" where all layers share them."""
    rope = config.rope_parameters
    if "rope_type" in rope:
        return {"": rope}
    return {key: part for key, part in rope.items() if isinstance(part, dict) and key != LOCAL_LAYER_TYPE}


def _scaled(
    config: PreTrainedConfig,
    layer_type: str,
    part: Rope,
    scale: float,
    base_context_length: int,
    context_length: int,
    method: FrequencyMethod,
) -> Rope:
    """Return rope parameters whose angles are those of `part` under a scale; all keys written out.

    What other layers read in them stays as it was in training.
    """
    kind, plain = part["rope_type"], isinstance(method, Linear)
    if plain and kind in (*DIVIDED, "proportional"):
        rope = method.to_transformers(part, torch.empty(0), float(part.get("factor", 1.0)) * scale, base_context_length)
        rope |= other_keys(part) | ({"rope_type": kind} if kind == "proportional" else {})
        if kind == "proportional" or _takes(config, layer_type, rope):
            return rope
    if kind not in (*DIVIDED, *PER_PAIR):
        if kind == "proportional":
            raise SettingsError(
                f"export: rope type proportional can be served under method linear alone, got {method.label}; choose "
                "that one, or another checkpoint"
            )
        raise SettingsError(
            f"export: the frequencies of a {kind} scaling change with the length of the text, so nothing can be put "
            "on top of it; train with model.base_scaling: replace"
        )
    inv_freq, attention_factor = _frequencies(config, layer_type, part)
    if kind == "default":
        rope = method.to_transformers(part, inv_freq, scale, base_context_length) | other_keys(part)
        # vLLM serves a yarn up to its scale times the original length, whatever max_position_embeddings says.
        too_short = rope["rope_type"] == "yarn" and scale * base_context_length < context_length
        if too_short or not _takes(config, layer_type, rope):
            rope = method.to_longrope(part, inv_freq, scale, base_context_length) | other_keys(part)
        return rope
    return _per_pair(part, inv_freq, attention_factor, scale, base_context_length, method)


def _per_pair(
    part: Rope,
    inv_freq: Float[Tensor, " pairs"],
    attention_factor: float,
    scale: float,
    base_context_length: int,
    method: FrequencyMethod,
) -> Rope:
    """Return a `longrope` of a method on top of frequencies that a kept scaling makes."""
    longrope = method.to_longrope(part, inv_freq, scale, base_context_length)  # refuses pairs that do not rotate
    # Readers compute the powers in float32: with the same roundings here, they cancel.
    powers = float(part["rope_theta"]) ** (torch.arange(len(inv_freq), dtype=torch.float32) / len(inv_freq))
    kept = powers.double() * inv_freq.double()  # what the base's own scaling multiplies
    if isinstance(method, Linear):
        factors = (scale / kept).tolist()
    else:
        factors = (torch.tensor(longrope["long_factor"], dtype=torch.float64) / kept).tolist()
    softmax = {key: part[key] for key in ("mscale_all_dim",) if part.get(key)}  # of DeepSeek's layers, with the factor
    return longrope | {
        "factor": float(part["factor"]) if softmax else scale,
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": float(attention_factor) * longrope["attention_factor"],
        **softmax,
        **other_keys(part),
    }


def _frequencies(config: PreTrainedConfig, layer_type: str, part: Rope) -> tuple[Float[Tensor, " pairs"], float]:
    """Return the inverse frequencies of rope parameters in float32, and their attention factor."""
    kind = part["rope_type"]
    if kind == "default":  # transformers keeps no function of it; linear by 1 is the same
        config, kind = copy.deepcopy(config), "linear"
        rope = {**part, "rope_type": kind, "factor": 1.0}
        config.rope_parameters = {**config.rope_parameters, layer_type: rope} if layer_type else rope
    result: tuple[Tensor, float] = ROPE_INIT_FUNCTIONS[kind](config, "cpu", layer_type=layer_type or None)
    return result


def _takes(config: PreTrainedConfig, layer_type: str, rope: Rope) -> bool:
    """Return whether a config's class takes rope parameters of this type; Phi-3's knows longrope alone."""
    parameters = {**config.rope_parameters, layer_type: dict(rope)} if layer_type else dict(rope)
    try:
        read = type(config).from_dict({**config.to_dict(), "rope_parameters": parameters}).rope_parameters
    except (KeyError, ValueError, StrictDataclassError):
        return False
    part = read[layer_type] if layer_type else read
    return bool(part["rope_type"] == rope["rope_type"])  # Phi-3 renames some


def commands(profile: Profile, *, model: str, name: str) -> dict[str, str]:
    """Return the command lines that serve a profile: a Python snippet, and one shell line per server.

    For llama.cpp, whose GGUF files are written by its own converter, these are options for such a file, or a line that
    says why there are none.

    Args:
        profile: What to serve.
        model: Folder or hub id, as the user types it.
        name: Name the servers answer to.
    """
    length = str(profile.context_length)
    keywords = "".join(f"\n    {key}={value!r}," for key, value in profile.override.items())
    return {
        "transformers": (
            "from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer\n\n"
            f"folder = {model!r}\n"
            f"config = AutoConfig.from_pretrained(\n    folder,{keywords}\n)\n"
            "model = AutoModelForCausalLM.from_pretrained(folder, config=config)\n"
            "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        ),
        "vllm": shlex.join(
            [
                *("vllm", "serve", model, "--served-model-name", name),
                *("--hf-overrides", json.dumps(profile.server_override), "--max-model-len", length),
            ]
        ),
        "sglang": shlex.join(
            [
                *("python", "-m", "sglang.launch_server", "--model-path", model, "--served-model-name", name),
                *("--json-model-override-args", json.dumps(_of_sglang(profile)), "--context-length", length),
            ]
        ),
        "llama.cpp": _of_llama_cpp(profile, name),
    }


def _usual_attention(rope: Rope) -> float:
    """Return the attention factor that programs give a yarn by default: 0.1 ln(factor) + 1."""
    return 0.1 * math.log(rope["factor"]) + 1


def _of_sglang(profile: Profile) -> Override:
    """Return what SGLang reads: it multiplies yarn's usual attention factor by `attn_factor` and ignores ours."""
    override: Override = json.loads(json.dumps(profile.server_override))
    rope = override["rope_parameters"]
    for part in [rope] if "rope_type" in rope else [each for each in rope.values() if isinstance(each, dict)]:
        if part.get("rope_type") == "yarn":
            part["attn_factor"] = part["attention_factor"] / _usual_attention(part)
    return override


def _of_llama_cpp(profile: Profile, name: str) -> str:
    """Return the options of llama-server, or why it cannot serve the profile."""
    rope, length = profile.override["rope_parameters"], str(profile.context_length)
    start = ["llama-server", "--model", f"{name}.gguf", "--ctx-size", length]
    match rope.get("rope_type"):
        case "linear":
            return shlex.join([*start, "--rope-scaling", "linear", "--rope-scale", f"{rope['factor']:.9g}"])
        case "default":
            return shlex.join([*start, "--rope-scaling", "none", "--rope-freq-base", f"{rope['rope_theta']:.9g}"])
        case "yarn":
            ramp = ["--yarn-beta-fast", f"{rope['beta_fast']:g}", "--yarn-beta-slow", f"{rope['beta_slow']:g}"]
            factor = rope["attention_factor"] / _usual_attention(rope)
            return shlex.join(
                [
                    *(*start, "--rope-scaling", "yarn", "--rope-scale", f"{rope['factor']:.9g}", "--yarn-orig-ctx"),
                    *(str(rope["original_max_position_embeddings"]), *ramp, "--yarn-attn-factor", f"{factor:.9g}"),
                ]
            )
    why = "a factor per pair" if rope.get("rope_type") == "longrope" else "rope parameters per layer type"
    return f"cannot: llama.cpp takes {why} from a GGUF file alone, not from its command line"
