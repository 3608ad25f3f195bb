"""Which attention runs where, and how one without a mask is told where documents begin."""

import pytest
import torch
from transformers import Gemma2ForCausalLM, GptOssForCausalLM, LlamaForCausalLM

from e2ray.config.base import SettingsError
from e2ray.config.model import LlamaModel
from e2ray.core import attention as attention_module
from e2ray.core.attention import IMPLEMENTATIONS, document_lengths, is_flash, resolve_attention, word_of
from e2ray.testing.models import tiny_model


def built(**changes):
    return LlamaModel(num_layers=2, **changes)


def test_attention_is_sdpa_where_flash_cannot_run_and_flash_where_it_can(monkeypatch):
    assert resolve_attention(built(), "cpu") == "sdpa"
    assert resolve_attention(built(attention="eager"), "cpu") == "eager"
    monkeypatch.setattr(attention_module, "is_flash_attn_2_available", lambda: True)
    assert resolve_attention(built(), "cuda", dtype=torch.bfloat16) == "flash_attention_2"
    assert resolve_attention(built(), "cuda", dtype=torch.float32) == "sdpa"
    assert resolve_attention(built(), "cpu") == "sdpa"
    monkeypatch.setattr(attention_module, "is_flash_attn_2_available", lambda: False)
    assert resolve_attention(built(), "cuda:0") == "sdpa"


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "message"),
    [
        ("cpu", torch.bfloat16, True, "needs a GPU, the device is cpu"),
        ("cuda", torch.float32, True, "needs bf16 weights, train.precision is fp32"),
        ("cuda", torch.bfloat16, False, r"is not installed \(pip install e2ray\[gpu\]\)"),
    ],
)
def test_flash_attention_that_cannot_run_is_refused(device, dtype, installed, message, monkeypatch):
    monkeypatch.setattr(attention_module, "is_flash_attn_2_available", lambda: installed)
    with pytest.raises(SettingsError, match=rf"model.attention: flash_attention_2 {message}; set it to auto or sdpa"):
        resolve_attention(built(attention="flash_attention_2"), device, dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "on_cpu", "on_gpu"),
    [
        (LlamaForCausalLM, "sdpa", "flash_attention_2"),
        (Gemma2ForCausalLM, "eager", "flash_attention_2"),  # soft caps are no part of SDPA
        (GptOssForCausalLM, "eager", "eager"),  # sinks: neither SDPA nor flash_attention_2
    ],
)
def test_auto_takes_what_the_class_can_compute(kind, on_cpu, on_gpu, monkeypatch):
    monkeypatch.setattr(attention_module, "is_flash_attn_2_available", lambda: True)
    assert resolve_attention(built(), "cpu", kind=kind) == on_cpu
    assert resolve_attention(built(), "cuda", dtype=torch.bfloat16, kind=kind) == on_gpu
    assert resolve_attention(built(attention="eager"), "cuda", kind=kind) == "eager"


@pytest.mark.parametrize(
    ("attention", "kind", "message"),
    [
        (
            "sdpa",
            Gemma2ForCausalLM,
            "wanted one of flash_attention_3, flash_attention_2, kernels, flex, eager; set it to auto or eager",
        ),
        ("sdpa", GptOssForCausalLM, "wanted one of flex, eager; set it to auto or eager"),
        ("flash_attention_2", GptOssForCausalLM, "wanted one of flex, eager; set it to auto or eager"),
    ],
)
def test_an_attention_that_the_class_cannot_compute_is_refused_on_any_device(attention, kind, message):
    for device in ("cpu", "cuda"):
        with pytest.raises(
            SettingsError, match=rf"^model.attention: {attention} is none that {kind.__name__} can compute, {message}$"
        ):
            resolve_attention(built(attention=attention), device, dtype=torch.bfloat16, kind=kind)


@pytest.mark.parametrize(
    ("attention", "dtype", "message"),
    [
        ("flash_attention_3", torch.bfloat16, r"flash_attention_3 is not installed \(build the folder hopper of flash"),
        ("flash_attention_3", torch.float32, "flash_attention_3 needs bf16 weights"),
        ("kernels", torch.bfloat16, r"kernels is not installed \(pip install kernels\)"),
        ("kernels", torch.float32, "kernels needs bf16 weights"),
    ],
)
def test_another_attention_that_cannot_run_on_a_gpu_is_refused(attention, dtype, message):
    with pytest.raises(SettingsError, match=rf"^model.attention: {message}.*; set it to auto or sdpa$"):
        resolve_attention(built(attention=attention), "cuda", dtype=dtype)


@pytest.mark.parametrize("attention", ["flash_attention_3", "kernels", "flex"])
def test_an_attention_of_gpus_is_refused_on_a_cpu(attention):
    with pytest.raises(SettingsError, match=f"{attention} needs a GPU, the device is cpu; set it to auto or sdpa"):
        resolve_attention(built(attention=attention), "cpu", dtype=torch.bfloat16)


def test_auto_prefers_the_newer_flash_attention_and_takes_neither_kernels_nor_flex(monkeypatch):
    for name in ("is_flash_attn_2_available", "is_flash_attn_3_available", "is_kernels_available"):
        monkeypatch.setattr(attention_module, name, lambda: True)
    assert resolve_attention(built(), "cuda", dtype=torch.bfloat16) == "flash_attention_3"
    assert resolve_attention(built(), "cuda", dtype=torch.float32) == "sdpa"
    assert resolve_attention(built(attention="flex"), "cuda", dtype=torch.float32) == "flex_attention"


def test_a_kernel_of_the_hub_is_fetched_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(attention_module, "is_kernels_available", lambda: True)
    asked = built(attention="kernels")
    with pytest.raises(SettingsError, match=r"cannot fetch kernels-community/flash-attn2 \(.*\); set it to auto"):
        resolve_attention(asked, "cuda", dtype=torch.bfloat16)  # none is installed here
    fetched = []
    monkeypatch.setattr(attention_module, "load_and_register_attn_kernel", fetched.append)
    assert resolve_attention(asked, "cuda", dtype=torch.bfloat16) == "kernels-community/flash-attn2"
    assert fetched == ["kernels-community/flash-attn2"]


@pytest.mark.parametrize(("capability", "wanted"), [((7, 5), "sdpa"), ((8, 0), "flash_attention_2")])
def test_flash_attention_is_not_chosen_for_a_card_that_is_too_old(capability, wanted, monkeypatch):
    monkeypatch.setattr(attention_module, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_attention(built(), "cuda", dtype=torch.bfloat16) == wanted
    if wanted == "sdpa":
        with pytest.raises(SettingsError, match=r"needs a GPU of compute capability 8\.0 or later, this one has 7\.5"):
            resolve_attention(built(attention="flash_attention_2"), "cuda", dtype=torch.bfloat16)


def test_every_word_of_the_setting_has_one_implementation():
    assert [word_of(each) for each in IMPLEMENTATIONS.values()] == list(IMPLEMENTATIONS)


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ([[0, 1, 2, 3]], [0, 4]),
        ([[0, 1, 2, 3], [0, 1, 2, 3]], [0, 4, 8]),
        ([[0, 1, 0, 1], [0, 0, 0, 1]], [0, 2, 4, 5, 6, 8]),
        ([[5, 6, 0, 1], [2, 3, 4, 5]], [0, 2, 4, 8]),  # rows that begin within a document
    ],
)
def test_document_lengths_hold_the_first_token_of_every_document(ids, wanted):
    lengths = document_lengths(torch.tensor(ids))
    for key in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert lengths[key].dtype == torch.int32 and lengths[key].tolist() == wanted
    assert lengths["max_length_q"] == lengths["max_length_k"] == 4


def test_flash_attention_is_known_by_its_name_under_any_wrapper():
    model = tiny_model("llama")
    assert not is_flash(model)
    model.config._attn_implementation = IMPLEMENTATIONS["kernels"]
    assert is_flash(torch.nn.Sequential(model))
