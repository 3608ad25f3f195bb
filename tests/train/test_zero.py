"""What DeepSpeed is told, and what that does to gradients: sums in fp32, over micro batches and over ranks."""

import pytest
import torch

from e2ray.config.train import TrainSettings
from e2ray.train.zero import LARGEST_BUCKET, SMALLEST_BUCKET, bucket_numbers, deepspeed_settings, micro_batch

STAGES = [
    {"stage": 1}, {"stage": 1, "offload": "optimizer"}, {"stage": 2}, {"stage": 2, "offload": "optimizer"},
    {"stage": 3}, {"stage": 3, "offload": "all"},
]  # fmt: skip


def told(*, num_workers=1, dtype=torch.bfloat16, num_parameters=10**9, largest=10**7, on_gpu=False, **settings):
    made = TrainSettings(steps=1, **settings)
    sizes = {"num_parameters": num_parameters, "largest": largest}
    return deepspeed_settings(made, num_workers=num_workers, dtype=dtype, on_gpu=on_gpu, **sizes)


@pytest.fixture(scope="module")
def errors(train_on_ranks):
    """How far gradients are from a sum in fp32: in every stage on two and on four ranks, then reduced in bf16."""
    asked = {"precision": "bf16", "micro": 1, "clip": 0.0, "gradient": True}
    phases = [stage | asked for stage in STAGES]
    of_two, of_four = train_on_ranks((2, [*phases, {"stage": 2, "reduced": "bf16"} | asked]), (4, phases))
    return of_two[:-1], of_four, of_two[-1]


def test_gradients_are_those_of_a_sum_in_fp32_in_every_stage(errors):
    assert len(errors[0]) == len(errors[1]) == len(STAGES)
    assert max(errors[0]) <= 1e-6 and max(errors[1]) <= 1e-6


def test_a_sum_over_ranks_in_bf16_is_another(errors):
    assert errors[2] > 5e-4


@pytest.mark.parametrize(("settings", "num_workers", "wanted"), [
    ({"batch_sequences": 16, "micro_batch_sequences": 16}, 1, (16, 1)),
    ({"batch_sequences": 16, "micro_batch_sequences": 3}, 1, (2, 8)),
    ({"batch_sequences": 24, "micro_batch_sequences": 5}, 4, (3, 2)),
    ({"batch_sequences": 14, "micro_batch_sequences": 4}, 2, (1, 7)),
])  # fmt: skip
def test_a_micro_batch_is_the_largest_that_divides_the_share(settings, num_workers, wanted):
    assert micro_batch(TrainSettings(steps=1, **settings), num_workers) == wanted
    made = told(num_workers=num_workers, **settings)
    assert (made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]) == wanted


@pytest.mark.parametrize("num_parameters", [1, 7, 1000, 10**7, 1_235_814_400, 8_030_261_248, 7 * 10**10])
def test_a_bucket_is_an_eighth_of_the_model_within_bounds_and_even(num_parameters):
    found = bucket_numbers(num_parameters)
    assert found % 2 == 0 and 2 <= found <= max(2, num_parameters + 1)
    if 8 * SMALLEST_BUCKET <= num_parameters <= 8 * LARGEST_BUCKET:
        assert found == pytest.approx(num_parameters / 8, abs=2)
    elif num_parameters > 8 * LARGEST_BUCKET:
        assert found == LARGEST_BUCKET


@pytest.mark.parametrize("largest", [10, 525_336_576, 622_329_857])
def test_beside_the_backward_pass_no_tensor_is_larger_than_a_bucket(largest):
    sizes = {"num_parameters": 8 * 10**9, "largest": largest}
    beside, behind = (
        told(num_workers=workers, on_gpu=True, **sizes)["zero_optimization"]["reduce_bucket_size"] for workers in (2, 1)
    )
    assert behind == LARGEST_BUCKET and beside % 2 == 0
    assert beside == max(LARGEST_BUCKET, largest + largest % 2)


def test_gradients_are_added_up_and_reduced_in_fp32_unless_asked_otherwise():
    assert told()["data_types"] == {"grad_accum_dtype": "fp32"} and told()["communication_data_type"] == "fp32"
    assert told(reduce_dtype="bf16")["communication_data_type"] == "bf16"
    assert "data_types" not in told(dtype=torch.float32, reduce_dtype="bf16", zero_stage=0)


@pytest.mark.parametrize(("on_gpu", "num_workers", "overlapped"), [
    (False, 1, False), (False, 4, False), (True, 1, False), (True, 2, True),
])  # fmt: skip
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_reduction_runs_beside_the_backward_pass_where_gpus_share_a_batch(on_gpu, num_workers, overlapped, stage):
    zero = told(on_gpu=on_gpu, num_workers=num_workers, zero_stage=stage)["zero_optimization"]
    assert zero["stage"] == stage and zero["overlap_comm"] is overlapped
    assert zero["use_multi_rank_bucket_allreduce"] is overlapped  # else each bucket would wait for the GPU


def test_what_is_passed_on_is_put_over_ours_and_leaves_the_rest():
    passed = {"zero_optimization": {"reduce_bucket_size": 10**6, "round_robin_gradients": True}, "log_level": "info"}
    made, plain = told(deepspeed=passed), told()
    assert made["log_level"] == "info"
    assert made["zero_optimization"] == plain["zero_optimization"] | passed["zero_optimization"]
    assert {key: value for key, value in made.items() if key not in passed} == {
        key: value for key, value in plain.items() if key != "zero_optimization"
    }


@pytest.mark.parametrize(("offload", "stage", "sections"), [
    ("none", 3, []), ("optimizer", 2, ["offload_optimizer"]), ("all", 3, ["offload_optimizer", "offload_param"]),
])  # fmt: skip
def test_offload_puts_into_pinned_memory_of_the_cpu_beside_gpus(offload, stage, sections):
    for on_gpu in (False, True):
        zero = told(offload=offload, zero_stage=stage, on_gpu=on_gpu)["zero_optimization"]
        assert [key for key in zero if key.startswith("offload")] == sections
        assert all(zero[key] == {"device": "cpu", "pin_memory": on_gpu} for key in sections)
