"""How much arithmetic a training step needs, and how much a GPU can do: together the share of it that is used (MFU).

Counted are matrix products alone, what a step needs and not what it happens to do, so that recomputed activations count
once, as by PaLM (arXiv:2204.02311, appendix B); other than there, attention counts as the half that a causal mask
leaves.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from e2ray.config.gpus import GPUS, Gpu


def gpu_of(name: str, table: Mapping[str, Gpu] = GPUS) -> Gpu | None:
    """Return what is known of a GPU by the name that torch gives it, None of one that is not known."""
    return next((gpu for words, gpu in table.items() if re.search(rf"\b{words}\b", name, re.IGNORECASE)), None)


@dataclass(frozen=True)
class Work:
    """What training takes for each token.

    Attributes:
        products: Operations in linear layers.
        width: Width of all heads of all layers, which attention goes over twice.
    """

    products: float
    width: int

    def flops(self, window: int) -> float:
        """Return the operations for each token of a row of `window` tokens; a token sees half of them, on average."""
        return self.products + 6.0 * self.width * window


def work_of(model: nn.Module) -> Work:
    """Return what training a model takes; whole, that is before ZeRO has taken its weights apart.

    Each weight of a linear layer takes part in one product of the forward pass and in one or, where it is trained, two
    of the backward pass.
    """
    products = sum(
        module.weight.numel() * (6.0 if module.weight.requires_grad else 4.0)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    )
    config = config_of(model)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Work(products, int(config.num_hidden_layers * config.num_attention_heads * size))


def config_of(model: nn.Module) -> PreTrainedConfig:
    """Return the config of the text model within a module."""
    return next(each.config.get_text_config() for each in model.modules() if isinstance(each, PreTrainedModel))


def utilisation(flops_per_second: float, device: torch.device) -> float | None:
    """Return the share of a GPU's bf16 operations that are used; None on a CPU or a GPU of unknown peak."""
    if device.type != "cuda":
        return None
    gpu = gpu_of(torch.cuda.get_device_name(device))
    return None if gpu is None else flops_per_second / (gpu.tflops * 1e12)
