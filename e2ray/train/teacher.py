"""The teacher of a self-distillation: the base, as it was before the training, at scale 1 without a shift.

Where adapters alone are trained they are switched off for it, so that it costs no memory. Else a copy of the base is
kept: on each GPU in bf16; on CPUs once per machine, in an unlinked file that all its workers map.
"""

import copy
import os
import shutil
import tempfile
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn

from e2ray.config.base import SettingsError
from e2ray.files import naming
from e2ray.train.checkpoint import together
from e2ray.train.objectives import Forward

ADAPTERS = ("lora_", "modules_to_save.")  # what peft switches off
_OTHERWISE = "train adapters (model.lora), which are switched off for it, or set distill to 0"


def adapters_alone(model: nn.Module) -> bool:
    """Return whether all that is trained can be switched off, which leaves the base."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return isinstance(model, PeftModel) and all(any(part in name for part in ADAPTERS) for name in trained)


def frozen(model: nn.Module, *, device: torch.device, copied: bool) -> Forward:
    """Return the forward of a base that stays as it is, without a gradient; every rank must call this.

    The model is the base before the training, on the CPU, unhooked; its values are not changed. `copied` says that it
    will be trained, so that the teacher has to be a copy. The teacher reads on `device`.

    Raises:
        SettingsError: If there is no memory for it.
    """
    if device.type == "cuda":
        _refuse_too_large(model, device=device, dtype=torch.bfloat16)
        model = copy.deepcopy(model)
        for parameter in model.parameters():  # model.to(dtype) would round the frequencies too
            parameter.data = parameter.data.to(torch.bfloat16)
    elif copied:
        model = once_per_machine(model)
    teacher = model.to(device).eval()

    @torch.no_grad()
    def read(input_ids: Tensor, **given: Tensor | int) -> Tensor:
        logits: Tensor = teacher(input_ids=input_ids, use_cache=False, **given).logits
        return logits

    return read


def once_per_machine(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the CPU whose parameters are in this machine's memory once, for all its workers."""
    local_rank = int(os.environ["LOCAL_RANK"])
    named = dict(model.named_parameters())

    kept: list[Path] = []  # the folder of the first worker, until all have it

    def write() -> Path | None:
        if local_rank:
            return None
        needed, scratch = _refuse_too_large(model, device=torch.device("cpu")), tempfile.gettempdir()
        if needed > (free := shutil.disk_usage(scratch).free):
            raise SettingsError(
                f"train.objective.distill: a teacher needs {_gib(needed)} of {scratch} until all workers have it, "
                f"{_gib(free)} are free; set TMPDIR to a folder with more, {_OTHERWISE}"
            )
        kept.append(Path(tempfile.mkdtemp(prefix="e2ray-teacher-")))
        with naming(kept[0] / "weights.pt"):
            torch.save({name: parameter.data for name, parameter in named.items()}, kept[0] / "weights.pt")
        return kept[0] / "weights.pt"

    memo: dict[int, object] = {}
    try:
        path = together(write, doing="keeping a teacher")[dist.get_rank() - local_rank]
        assert path is not None, "the ranks of a machine follow each other"

        def take() -> None:
            for name, data in torch.load(path, mmap=True, weights_only=True).items():
                memo[id(named[name])] = nn.Parameter(data, requires_grad=False)

        together(take, doing="taking a teacher")
    finally:
        for folder in kept:
            shutil.rmtree(folder, ignore_errors=True)  # what is mapped stays until the last worker ends
    return copy.deepcopy(model, memo)


def _refuse_too_large(model: nn.Module, *, device: torch.device, dtype: torch.dtype | None = None) -> int:
    """Return the bytes that a copy of a model needs; raise SettingsError where they are not free."""
    needed = sum(each.numel() * (dtype or each.dtype).itemsize for each in model.parameters())
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise SettingsError(
            f"train.objective.distill: a teacher needs {_gib(needed)} beside the model, {_gib(free)} are free; "
            f"{_OTHERWISE}"
        )
    return needed


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
