"""What a training holds in memory, by what it is for; from sizes alone, DeepSpeed 0.19 having been read and measured.

P are the trained numbers, T all of them, N the workers. AdamW keeps two moments in fp32, ZeRO a copy of the weights in
fp32 beside them; gradients of bf16 weights are added up in fp32.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from e2ray.config.train import TrainSettings
from e2ray.train.zero import bucket_numbers

FP32 = 4  # bytes
LIVE_NUMBERS = 10**9  # weights that stage 3 keeps gathered (max_live_parameters, max_reuse_distance)


@dataclass(frozen=True)
class Sizes:
    """Numbers of a model: all, those that are trained, and those of its largest trained tensor."""

    total: int
    trained: int
    largest: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker.

    Attributes:
        device: On its GPU, or in its process where there is none, by purpose.
        host: In its process beside a GPU.
    """

    device: Mapping[str, int]
    host: Mapping[str, int] = field(default_factory=dict)

    @property
    def on_device(self) -> int:
        """All on the device."""
        return sum(self.device.values())

    @property
    def on_host(self) -> int:
        """All in the process."""
        return sum(self.host.values())


def memory_of(
    train: TrainSettings, sizes: Sizes, activations: int, *, num_workers: int, dtype: torch.dtype, on_gpu: bool
) -> Memory:
    """Return what one worker holds at the worst moment of a step.

    Args:
        train: Stage, offload and what is passed on to DeepSpeed.
        sizes: Of the model.
        activations: Bytes, as `train.activations` finds them.
        num_workers: N.
        dtype: Of the weights in a forward.
        on_gpu: Whether there are GPUs; else all is in the worker's process.
    """
    held = _held(train, sizes, num_workers, dtype)
    held["buckets"] = _buckets(train, sizes, num_workers, dtype, on_gpu=on_gpu)
    update = _update(train, sizes, num_workers, dtype, fused=on_gpu)
    worst = {"activations": activations} if activations >= update else {"update": update}
    if train.offload != "none" and train.zero_stage < 3:
        # Gradients in fp32 on their way to the optimizer, and new weights on their way back.
        held["offload"] = (FP32 + dtype.itemsize) * sizes.trained // num_workers
    if not on_gpu:
        return Memory(held | worst)
    moved = {"none": (), "optimizer": ("optimizer", "offload"), "all": ("optimizer", "offload", "weights")}
    host = {"checkpoint while it is loaded": sizes.total * dtype.itemsize}
    host |= {name: held.pop(name) for name in moved[train.offload] if name in held}
    if train.offload != "none" and train.zero_stage == 3:  # gradients go there too, and once more to the optimizer
        host["gradients"] = 2 * held.pop("gradients")
        worst = {"activations": activations}
    return Memory(held | worst, host)


def _held(train: TrainSettings, sizes: Sizes, num_workers: int, dtype: torch.dtype) -> dict[str, int]:
    """Return what is held all the time, gradients included."""
    width, stage = dtype.itemsize, train.zero_stage
    share = sizes.trained / num_workers
    weights = sizes.total * width
    optimizer = 3 * FP32 * share
    if stage == 0:
        gradients, optimizer = FP32 * sizes.trained, 2 * FP32 * sizes.trained
    elif stage == 1:
        gradients = FP32 * sizes.trained if width == FP32 else (FP32 + width) * sizes.trained
    else:
        gradients = FP32 * sizes.trained // num_workers
    parts = {"weights": weights, "gradients": gradients, "optimizer": optimizer}
    if stage == 3:
        parts["weights"] = weights / num_workers
        parts["gathered weights"] = width * min(sizes.total, LIVE_NUMBERS)
    return {name: int(size) for name, size in parts.items()}


def _buckets(train: TrainSettings, sizes: Sizes, num_workers: int, dtype: torch.dtype, *, on_gpu: bool) -> int:
    """Return what reduces gradients."""
    zero = train.deepspeed.get("zero_optimization", {})
    overlapped = on_gpu and num_workers > 1
    ours = bucket_numbers(sizes.trained, largest=sizes.largest if overlapped else 0)
    numbers = zero.get("reduce_bucket_size", ours) if isinstance(zero, dict) else 0
    if train.zero_stage == 0:
        return 0 if num_workers == 1 else 2 * FP32 * min(sizes.trained, 5 * 10**8)
    copies = 2 if overlapped else 1
    return int(numbers) * dtype.itemsize * copies  # type: ignore[arg-type]


def _update(train: TrainSettings, sizes: Sizes, num_workers: int, dtype: torch.dtype, *, fused: bool) -> int:
    """Return what an update needs for itself: a flat copy of the gradients, and AdamW's own scratch unless fused."""
    share = sizes.largest if train.zero_stage == 0 else sizes.trained // num_workers
    copied = train.zero_stage == 3 or (train.zero_stage > 0 and dtype == torch.float32)
    return FP32 * share * copied + (0 if fused else 2 * FP32 * share)
