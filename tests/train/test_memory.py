"""What a training holds, by ZeRO stage, workers and offload."""

import pytest
import torch

from e2ray.config.train import TrainSettings
from e2ray.train.memory import Memory, Sizes, memory_of
from e2ray.train.zero import bucket_numbers

SIZES = Sizes(total=8 * 10**9, trained=8 * 10**9, largest=5 * 10**8)
BF16, FP32 = torch.bfloat16, torch.float32


def held(stage, *, num_workers=8, dtype=BF16, on_gpu=True, activations=0, sizes=SIZES, **changes):
    precision = "bf16" if dtype == BF16 else "fp32"
    train = TrainSettings(steps=1, zero_stage=stage, precision=precision, **changes)
    return memory_of(train, sizes, activations, num_workers=num_workers, dtype=dtype, on_gpu=on_gpu)


@pytest.mark.parametrize(
    ("stage", "dtype", "weights", "gradients", "optimizer"),
    [
        (0, FP32, 4, 4, 8), (1, FP32, 4, 4, 12 / 8), (2, FP32, 4, 4 / 8, 12 / 8), (3, FP32, 4 / 8, 4 / 8, 12 / 8),
        (1, BF16, 2, 6, 12 / 8), (2, BF16, 2, 4 / 8, 12 / 8), (3, BF16, 2 / 8, 4 / 8, 12 / 8),
    ],
)  # fmt: skip
def test_bytes_of_a_number_on_eight_workers(stage, dtype, weights, gradients, optimizer):
    device = held(stage, dtype=dtype).device
    found = [device[name] / SIZES.total for name in ("weights", "gradients", "optimizer")]
    assert found == pytest.approx([weights, gradients, optimizer])


@pytest.mark.parametrize(
    ("stage", "offload"), [(stage, offload) for stage in (1, 2, 3) for offload in ("none", "optimizer")] + [(3, "all")]
)
def test_more_workers_need_less_each_and_nothing_gets_lost(stage, offload):
    needs = [held(stage, num_workers=number, offload=offload) for number in (2, 4, 8, 64)]
    assert sorted(needs, key=lambda need: -need.on_device) == needs
    assert all({"optimizer", "weights"} <= {*need.device, *need.host} for need in needs)


@pytest.mark.parametrize(("offload", "moved"), [("optimizer", {"optimizer"}), ("all", {"optimizer", "weights"})])
def test_offload_moves_to_the_process(offload, moved):
    before, after = held(3, offload="none"), held(3, offload=offload)
    assert set(before.device) - set(after.device) - {"update"} == moved | {"gradients"} <= set(after.host)
    assert all(after.host[name] == before.device[name] for name in moved)
    assert after.host["gradients"] == 2 * before.device["gradients"]
    assert {"gradients"} < set(held(2, offload="optimizer").device)  # stage 2 keeps them


def test_without_a_gpu_all_is_in_the_process():
    need = held(2, on_gpu=False, offload="optimizer")
    assert need.host == {} and need.on_host == 0 and need.device["optimizer"] > 0


def test_frozen_weights_have_no_gradient_and_no_moments():
    device = held(2, sizes=Sizes(total=8 * 10**9, trained=10**7, largest=10**5)).device
    assert device["weights"] == 16 * 10**9 and device["gradients"] + device["optimizer"] == 16 * 10**7 / 8


@pytest.mark.parametrize(("activations", "worst"), [(10**10, "activations"), (10**7, "update")])
def test_the_worst_moment_is_the_backward_pass_or_the_update(activations, worst):
    device = held(2, dtype=FP32, on_gpu=False, num_workers=1, activations=activations, sizes=Sizes(10**8, 10**8, 10**6))
    assert {"activations", "update"} & set(device.device) == {worst}


def test_buckets_are_doubled_where_reduction_runs_beside_and_follow_what_is_passed_on():
    assert held(2, num_workers=1).device["buckets"] == 2 * bucket_numbers(SIZES.trained)
    assert held(2, num_workers=2).device["buckets"] == 2 * 2 * SIZES.largest
    passed = {"zero_optimization": {"reduce_bucket_size": 1000}}
    assert held(2, num_workers=1, deepspeed=passed).device["buckets"] == 2000


def test_sums_are_of_all_parts():
    assert (Memory({"a": 1, "b": 2}, {"c": 4}).on_device, Memory({"a": 1}, {"c": 4}).on_host) == (3, 4)
