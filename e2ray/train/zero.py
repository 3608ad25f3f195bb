"""DeepSpeed's settings, as they follow from ours and from the size of the model; DeepSpeed itself is not imported.

DeepSpeed's own defaults add up micro batches in bf16 and, in the stages 1 and 2, reduce gradients after the backward
pass and in buckets of half a billion numbers, whatever the model. Here micro batches are added up in fp32, a bucket is
an eighth of the model, within bounds, and where several GPUs share a batch the stages 2 and 3 reduce beside the
backward pass. The form is DeepSpeed 0.19's: stage 3 sends each gradient to the one rank that keeps it
(reduce-scatter); stage 2 sends all to all, since its way of one rank at a time waits for the GPU at every bucket when
it runs beside the backward pass; stage 1 in bf16 sends all to all once, behind the last micro batch. `train.deepspeed`
adds to this, or overrides what is no setting of ours.
"""

from collections.abc import Mapping

import torch

from e2ray.config.base import Plain
from e2ray.config.train import TrainSettings

BUCKETS = 8  # of a model's gradients: one is reduced while the next is computed
SMALLEST_BUCKET, LARGEST_BUCKET = 2**24, 2 * 10**8  # numbers: below latency counts, above memory


def micro_batch(settings: TrainSettings, num_workers: int) -> tuple[int, int]:
    """Return (examples of one forward, forwards of one update) on each worker; their product is the worker's share."""
    share = settings.batch_sequences // num_workers
    micro = max(n for n in range(1, min(share, settings.micro_batch_sequences) + 1) if share % n == 0)
    return micro, share // micro


def bucket_numbers(num_parameters: int, *, largest: int = 0) -> int:
    """Return how many gradients are reduced at a time; even, as DeepSpeed demands.

    Where reduction runs beside the backward pass that is at least `largest`, the numbers of the largest tensor:
    DeepSpeed does not copy one that is larger than a bucket, and its memory is used again before it has been read.
    """
    wanted = min(max(num_parameters // BUCKETS, SMALLEST_BUCKET), LARGEST_BUCKET)
    return max(2, min(max(wanted, largest + largest % 2), num_parameters + num_parameters % 2) // 2 * 2)


def deepspeed_settings(
    settings: TrainSettings, *, num_workers: int, dtype: torch.dtype, num_parameters: int, largest: int, on_gpu: bool
) -> Plain:
    """Return DeepSpeed's own settings for ours.

    Args:
        settings: Those of the training.
        num_workers: Workers that share a batch.
        dtype: Of the weights in a forward.
        num_parameters: Trained numbers of the model.
        largest: Those of its largest trained tensor.
        on_gpu: Whether the engine runs on GPUs.
    """
    micro, accumulation = micro_batch(settings, num_workers)
    overlapped = on_gpu and num_workers > 1
    bucket = bucket_numbers(num_parameters, largest=largest if overlapped else 0)
    zero: Plain = {
        "stage": settings.zero_stage,
        "overlap_comm": overlapped,
        "use_multi_rank_bucket_allreduce": overlapped,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if settings.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    ours: Plain = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": zero,
        "gradient_clipping": settings.clip_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if dtype == torch.bfloat16:
        ours |= {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": settings.reduce_dtype}
    return _merged(ours, settings.deepspeed)


def _merged(ours: Mapping[str, object], further: Mapping[str, object]) -> Plain:
    """Return nested settings with further ones put over them."""
    result: dict[str, object] = dict(ours)
    for key, value in further.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return result  # type: ignore[return-value]
