"""Which of DeepSpeed's own settings a recipe may pass on, and which follow from its other settings."""

from collections.abc import Iterator, Mapping

from pydantic import JsonValue

# DeepSpeed's settings that follow from ours, by their path, and what decides each of them.
OWNED = {
    "train_batch_size": "train.batch_sequences",
    "train_micro_batch_size_per_gpu": "train.micro_batch_sequences",
    "gradient_accumulation_steps": "train.micro_batch_sequences",
    "managed_gradient_accumulation": "train.micro_batch_sequences",
    "gradient_allreduce_op": "train.objective",
    "gradient_clipping": "train.clip_norm",
    "optimizer": "train.lr, betas, eps and weight_decay",
    "scheduler": "train.schedule",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "data_types": "train.precision",
    "communication_data_type": "train.reduce_dtype",
    "compile": "train.compile",
    "activation_checkpointing": "model.checkpoint_share",
    "checkpoint": "train.checkpoint_every",
    "tensorboard": "trackers",
    "wandb": "trackers",
    "csv_monitor": "trackers",
    "comet": "trackers",
    "zero_allow_untested_optimizer": "train.offload",
    "zero_force_ds_cpu_optimizer": "train.offload",
    "zero_optimization.stage": "train.zero_stage",
    "zero_optimization.offload_optimizer": "train.offload",
    "zero_optimization.offload_param": "train.offload",
    "zero_optimization.cpu_offload": "train.offload",
    "zero_optimization.cpu_offload_param": "train.offload",
    "zero_optimization.compute_grad_norm": "train.clip_norm",
}
# What can be passed on: what DeepSpeed 0.19 reads, less the above and less what would change what is trained
# (pipelines, elastic batches, compression, its own data path).
PASSED = frozenset(
    "zero_optimization prescale_gradients gradient_predivide_factor disable_allgather dump_state disable_python_gc "
    "wall_clock_breakdown memory_breakdown steps_per_print log_level flops_profiler comms_logger aio timers".split()
)
PASSED_ZERO = frozenset(
    "allgather_bucket_size allgather_partitions allgather_sequential contiguous_gradients elastic_checkpoint "
    "enable_sanity_checks ignore_unused_parameters leaf_module log_trace_cache_warnings max_live_parameters "
    "max_reuse_distance memory_efficient_linear model_persistence_threshold module_granularity_threshold overlap_comm "
    "override_module_apply param_persistence_threshold parameter_alignment prefetch_bucket_size reduce_bucket_size "
    "reduce_scatter round_robin_gradients sub_group_size use_all_reduce_for_fetch_params "
    "use_multi_rank_bucket_allreduce zero_hpz_partition_size zero_quantized_gradients "
    "zero_quantized_nontrainable_weights zero_quantized_weights".split()
)
_SECTIONS = {"": PASSED, "zero_optimization.": PASSED_ZERO}


def refuse_not_passed(settings: Mapping[str, JsonValue]) -> None:
    """Raise ValueError if settings for DeepSpeed follow from ours, or are none that can be passed on."""
    for path, section in _keys(settings):
        if path in OWNED:
            raise ValueError(f"{path} follows from {OWNED[path]}; leave it out and set that")
        name = path.removeprefix(section)
        if name not in _SECTIONS[section]:
            raise ValueError(f"{path} cannot be passed on, wanted one of {', '.join(sorted(_SECTIONS[section]))}")


def _keys(settings: Mapping[str, JsonValue]) -> Iterator[tuple[str, str]]:
    """Yield the path of each setting that is judged by its name, and the front that it shares with its section."""
    for key, value in settings.items():
        yield key, ""
        if f"{key}." not in _SECTIONS:
            continue
        if not isinstance(value, dict):
            raise ValueError(f"{key} is a section, got {value}")
        for name in value:
            yield f"{key}.{name}", f"{key}."
