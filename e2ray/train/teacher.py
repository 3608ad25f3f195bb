"""The teacher of a self-distillation: the base, as it was before the training, reading a row as it stands.

Where adapters alone are trained they are switched off for it, so that it costs no memory. Else a copy of the base is
kept on each worker, in bf16 beside a GPU.
"""

import copy
from typing import Any

import psutil
import torch
from peft import PeftModel
from torch import Tensor, nn

from e2ray.config.base import SettingsError
from e2ray.train.objectives import Forward

ADAPTERS = ("lora_", "modules_to_save.")  # what peft switches off


def adapters_alone(model: nn.Module) -> bool:
    """Return whether all that is trained can be switched off, which leaves the base."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return isinstance(model, PeftModel) and all(any(part in name for part in ADAPTERS) for name in trained)


def frozen(model: nn.Module, *, device: torch.device, copied: bool) -> Forward:
    """Return the forward of a base that stays as it is, without a gradient.

    Args:
        model: The base before the training, on the CPU, unhooked; nothing of it is changed.
        device: Where the teacher reads.
        copied: Whether to copy it, since it will be trained.

    Raises:
        SettingsError: If there is no memory for it.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else None
    if copied or device.type == "cuda":
        _refuse_too_large(model, device=device, dtype=dtype)
        model = copy.deepcopy(model)
    for parameter in model.parameters() if dtype is not None else ():  # model.to(dtype) would round the frequencies too
        parameter.data = parameter.data.to(dtype)
    teacher: Any = model.to(device).eval()

    @torch.no_grad()
    def read(input_ids: Tensor, **given: Tensor) -> Tensor:
        logits: Tensor = teacher(input_ids=input_ids, use_cache=False, **given).logits
        return logits

    return read


def _refuse_too_large(model: nn.Module, *, device: torch.device, dtype: torch.dtype | None) -> None:
    needed = sum(each.numel() * (dtype or each.dtype).itemsize for each in model.parameters())
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise SettingsError(
            f"train.objective.distill: a teacher needs {needed / 2**30:.3g} GiB beside the model, "
            f"{free / 2**30:.3g} GiB are free; train adapters (model.lora), which are switched off for it, or set "
            "distill to 0"
        )
