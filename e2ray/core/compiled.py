"""Decoder layers compiled for the steps of a training (torch.compile), and for nothing else.

The rotary hook acts outside the layers, which are given cosines and sines: so all layers are one graph, whatever the
draw, the method and the checkpointing. What else reads the model (proofs, looks, evaluations) comes in other shapes and
without a gradient; it runs the layers as they are.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils._triton import has_triton
from transformers.modeling_layers import GradientCheckpointingLayer

from e2ray.config.base import SettingsError


def decoder_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the layers of a model that can recompute their activations and be compiled, in order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def refuse_compile(device: torch.device | str) -> None:
    """Raise SettingsError if nothing can be compiled for a device here."""
    if torch.device(device).type == "cuda":
        missing = None if has_triton() else "Triton, which builds kernels for GPUs, is not installed or cannot run"
    else:
        compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
        missing = None if any(map(shutil.which, compilers)) else f"there is no C++ compiler ({', '.join(compilers)})"
    if missing:
        raise SettingsError(f"train.compile: {missing}; install it or leave train.compile out")


class CompiledLayers:
    """A model's decoder layers, which run compiled within `used` alone."""

    def __init__(self, model: nn.Module) -> None:
        """Prepare the layers; the first forward within `used` compiles.

        Raises:
            SettingsError: If the model has no layers that can be compiled one by one.
        """
        self._layers = []
        for layer in decoder_layers(model):
            layer.compile(fullgraph=True)
            self._layers.append((layer, layer._compiled_call_impl))
            layer._compiled_call_impl = None
        if not self._layers:
            raise SettingsError(
                f"train.compile: {type(model).__name__} has no decoder layers that can be compiled alone; leave it out"
            )

    @contextmanager
    def used(self, compiled: bool) -> Iterator[None]:
        """Run the layers compiled, or as they are, within the block."""
        before = [layer._compiled_call_impl for layer, _ in self._layers]
        for layer, call in self._layers:
            layer._compiled_call_impl = call if compiled else None
        try:
            yield
        finally:
            for (layer, _), call in zip(self._layers, before, strict=True):
                layer._compiled_call_impl = call
