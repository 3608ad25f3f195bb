"""Liger's kernels for norms and feed-forward layers (arXiv:2410.10989), put into a loaded model on a GPU."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from e2ray.config.base import SettingsError

try:
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance
except ImportError:  # extra gpu; it needs Triton
    MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance = {}, None

# Positions of rows are ours, and so is the loss, of each row.
USED = {"rms_norm": True, "swiglu": True, "rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}


def refuse_liger(device: torch.device | str, model_type: str | None = None) -> None:
    """Raise SettingsError if Liger's kernels cannot run on a device, or there are none for a type of models."""
    why = None
    if torch.device(device).type != "cuda":
        why = f"needs a GPU, the device is {torch.device(device).type}"
    elif _apply_liger_kernel_to_instance is None:
        why = "liger-kernel is not installed (pip install e2ray[gpu])"
    elif model_type is not None and model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        why = f"Liger has no kernels for {model_type}"
    if why:
        raise SettingsError(f"model.liger: {why}; leave it out")


def use_liger(model: PreTrainedModel | PeftModel, *, device: torch.device | str) -> None:
    """Put Liger's kernels into a model, in place; its weights stay as they are.

    Raises:
        SettingsError: If they cannot run on `device`, where the model will be.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    refuse_liger(device, plain.config.model_type)
    _apply_liger_kernel_to_instance(model=plain, **USED)
