"""How much arithmetic training takes, against torch's own count of what a model does."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from e2ray.config.gpus import GPUS
from e2ray.config.model import LlamaModel, LoraSettings
from e2ray.core.flops import gpu_of, utilisation, work_of
from e2ray.core.model import build_model

WINDOW = 64


def counted(model):
    """Return operations for each token of a forward and a backward pass; attention as if every token saw all."""
    tokens = torch.zeros(2, WINDOW, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, use_cache=False).logits.sum().backward()
    return counter.get_total_flops() / tokens.numel()


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_work_is_what_torch_counts_less_the_masked_half_of_attention(lora, share):
    settings = LlamaModel(
        hidden_size=64, num_layers=3, num_heads=4, num_key_value_heads=2, intermediate_size=96, attention="eager",
        lora=lora, checkpoint_share=share,
    )  # fmt: skip
    model = build_model(settings, dtype=torch.float32, vocab_size=100)
    work, found = work_of(model), counted(model.train())
    attention = work.flops(WINDOW) - work.products
    # Under adapters the first layer passes nothing back, which counts here.
    if share:
        assert work.flops(WINDOW) < found - attention  # what is computed again does not count
    else:
        assert work.flops(WINDOW) + attention == pytest.approx(found, rel=0.05 if lora else 1e-6)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4), ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA L4", 121.0),
        ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA L40S", 362.0), ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA A10", 125.0), ("NVIDIA A10G", 70.0), ("NVIDIA GH200 480GB", 989.4), ("NVIDIA L400", None),
        ("NVIDIA RTX A1000", None), ("Tesla V100", None),
    ],
)  # fmt: skip
def test_a_gpu_is_known_by_whole_words_of_its_name(name, peak):
    found = gpu_of(name)
    assert (found and found.tflops) == peak


def test_every_gpu_of_the_table_is_found_by_its_own_words():
    assert all(gpu_of(f"NVIDIA {words}") == gpu for words, gpu in GPUS.items())


def test_a_cpu_has_no_utilisation():
    assert utilisation(1e12, torch.device("cpu")) is None
