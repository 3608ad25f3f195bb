"""How attention is computed: which implementation of transformers a model can run where, and where documents begin.

Flash attention knows no mask. Of packed rows it has to be told where each document begins, else documents of several
rows see each other; of a single row it would look for them in the position ids, layer by layer, and wait for the
device each time. So it is always told (`document_lengths`), and `core/proof.py` proves on the loaded model that
documents and rows are apart.
"""

from collections.abc import Mapping
from typing import get_args

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.integrations.hub_kernels import load_and_register_attn_kernel
from transformers.modeling_flash_attention_utils import (
    FLASH_ATTENTION_COMPATIBILITY_MATRIX,
    FLASH_ATTN_KERNEL_FALLBACK,
)
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available, is_kernels_available

from e2ray.config.base import SettingsError
from e2ray.config.model import Attention, ModelSettings
from e2ray.core.weights import first_line

Lengths = Mapping[str, Tensor | int]  # arguments of a forward that say where documents begin

# What transformers calls each of them. The hub's kernel is the one that transformers falls back to by itself.
IMPLEMENTATIONS: dict[str, str] = {
    "flash_attention_3": "flash_attention_3",
    "flash_attention_2": "flash_attention_2",
    "kernels": FLASH_ATTN_KERNEL_FALLBACK["flash_attention_2"],
    "flex": "flex_attention",
    "sdpa": "sdpa",
    "eager": "eager",
}
NEEDS_HALF = ("flash_attention_3", "flash_attention_2", "kernels")
CHOSEN = ("flash_attention_3", "flash_attention_2", "sdpa", "eager")  # what `auto` takes, the first that can run
HOW_TO_GET = {
    "flash_attention_3": "build the folder hopper of flash-attention",
    "flash_attention_2": "pip install e2ray[gpu]",
    "kernels": "pip install kernels",
}
LEAST_CAPABILITY = 8  # major number of the oldest GPU that the other flash implementations were written for


def document_lengths(position_ids: Int[Tensor, "rows tokens"]) -> Lengths:
    """Return where documents begin, in transformers' words for flash attention of variable lengths.

    Args:
        position_ids: Plain ids that rise by 1 within a document. Each row begins a document of its own, and so does
            every id that does not follow the one before. On the CPU: on a GPU their number has to be waited for.

    Returns:
        `cu_seq_lens_q`, `cu_seq_lens_k`: int32 [documents + 1], the first token of each document in all rows one after
        the other, then the number of tokens; `max_length_q`, `max_length_k`: tokens of a row, which no document is
        longer than, so that the number is the same in every step.
    """
    rows, tokens = position_ids.shape
    begins = torch.ones_like(position_ids, dtype=torch.bool)
    begins[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    starts = begins.flatten().nonzero().flatten()
    ends = torch.cat([starts, starts.new_tensor([rows * tokens])]).to(torch.int32)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": tokens, "max_length_k": tokens}


def is_flash(model: nn.Module) -> bool:
    """Return whether a model's attention is one that has to be told where documents begin."""
    return any(
        "flash" in (module.config.get_text_config()._attn_implementation or "")
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
    )


def word_of(implementation: str) -> str | None:
    """Return the setting's word for an implementation of transformers, None for one that has none."""
    return next((name for name, each in IMPLEMENTATIONS.items() if each == implementation), None)


def check_attention(settings: ModelSettings, kind: type[PreTrainedModel]) -> None:
    """Raise SettingsError if a class of models cannot compute the attention that is asked for."""
    able = _attentions(kind)
    if settings.attention != "auto" and settings.attention not in able:
        raise SettingsError(
            f"model.attention: {settings.attention} is none that {kind.__name__} can compute, wanted one of "
            f"{', '.join(able)}; set it to auto or {able[-1]}"
        )


def resolve_attention(
    settings: ModelSettings,
    device: str | torch.device,
    *,
    dtype: torch.dtype | None = None,
    kind: type[PreTrainedModel] = LlamaForCausalLM,
) -> str:
    """Return transformers' name of the attention that runs: what is asked for, or the fastest installed one.

    Args:
        settings: `attention: auto` leaves the choice to this function. It takes neither the hub's kernels, whose code
            comes over the network, nor flex attention, which nobody measured here.
        device: Where the model will run.
        dtype: Of its parameters; flash attention does not take float32. None means a half precision.
        kind: Class of the model; not every class can compute every attention.

    Raises:
        SettingsError: If an attention is asked for and cannot run.
    """
    check_attention(settings, kind)
    where = torch.device(device)
    able = [name for name in CHOSEN if name in _attentions(kind)]
    running = next(name for name in able if _obstacle(name, where, dtype) is None)
    if settings.attention == "auto":
        return IMPLEMENTATIONS[running]
    obstacle = _obstacle(settings.attention, where, dtype)
    if obstacle is None and settings.attention == "kernels":
        obstacle = _not_fetched(IMPLEMENTATIONS["kernels"])
    if obstacle:
        raise SettingsError(f"model.attention: {settings.attention} {obstacle}; set it to auto or {running}")
    return IMPLEMENTATIONS[settings.attention]


def _not_fetched(kernel: str) -> str | None:
    """Fetch a kernel of the hub, or find it on this machine; return why there is none, None where there is."""
    try:
        load_and_register_attn_kernel(kernel)
    except Exception as error:  # no network, no build for this torch or GPU: each its own exception
        return f"cannot fetch {kernel} ({first_line(error)})"
    return None


def _obstacle(name: str, device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Return why an attention cannot run on a device, None where it can."""
    if name in ("sdpa", "eager"):
        return None
    if device.type != "cuda":
        return f"needs a GPU, the device is {device.type}"
    if name in NEEDS_HALF and dtype == torch.float32:
        return "needs bf16 weights, train.precision is fp32"
    there = {
        "flash_attention_3": is_flash_attn_3_available,
        "flash_attention_2": is_flash_attn_2_available,
        "kernels": is_kernels_available,
    }
    if name in there and not there[name]():
        return f"is not installed ({HOW_TO_GET[name]})"
    if name in there and torch.cuda.is_available():
        versions = FLASH_ATTENTION_COMPATIBILITY_MATRIX.get(3 if name == "flash_attention_3" else 2, {})
        least = versions.get("cuda_min_major_version", LEAST_CAPABILITY)
        major, minor = torch.cuda.get_device_capability(device)
        if major < least:
            return f"needs a GPU of compute capability {least}.0 or later, this one has {major}.{minor}"
    return None


def _attentions(kind: type[PreTrainedModel]) -> list[str]:
    """Return the attentions a class of models can compute, in the order of the setting's words.

    Where a class lists its flash implementations without one of ours, transformers takes another of them, so it counts
    as not having ours.
    """
    listed = getattr(kind, "_compatible_flash_implementations", None)
    able = {name: kind._supports_flash_attn for name in NEEDS_HALF}
    able = {name: can and (listed is None or IMPLEMENTATIONS[name] in listed) for name, can in able.items()}
    able |= {"flex": kind._supports_flex_attn, "sdpa": kind._supports_sdpa, "eager": True}
    return [name for name in get_args(Attention) if able.get(name)]
