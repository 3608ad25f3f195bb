"""A base whose training could not be served is told so before it, from its config alone."""

import json
from functools import partial

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    PhimoeConfig,
)

from e2ray.config.base import SettingsError
from e2ray.config.load import validate
from e2ray.config.model import PretrainedModel
from e2ray.core.base import base_facts, trained_config
from e2ray.core.model import build_model
from e2ray.core.rope import RotaryHook
from e2ray.serve import twin
from e2ray.serve.card import RunFacts
from e2ray.serve.export import export
from e2ray.serve.twin import EXPORTED, check_base, cut_down
from e2ray.stages import compare as comparing
from e2ray.stages import pipeline
from e2ray.stages import tune as tuning
from e2ray.stages.check import check
from e2ray.testing.models import SIZES
from e2ray.testing.served import save_tokenizer

TINY = SIZES | {"max_position_embeddings": 512, "vocab_size": 256}
YARN = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": 64,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
DEEPSEEK = {
    "moe_intermediate_size": 16, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
    "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
SCALED = {  # whose rope parameters other layers read, and those whose class has no SDPA
    "deepseek-v3": (DeepseekV3Config, DEEPSEEK, YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}),
    "deepseek-v3, other mscales": (DeepseekV3Config, DEEPSEEK, YARN | {"mscale": 0.7, "mscale_all_dim": 0.4}),
    "ministral3": (Ministral3Config, {"sliding_window": None, "head_dim": 16}, YARN | {"llama_4_scaling_beta": 0.1}),
    "ministral3, other beta": (Ministral3Config, {"sliding_window": None}, YARN | {"llama_4_scaling_beta": 0.4}),
    "gpt-oss": (GptOssConfig, EXPERTS | {"sliding_window": 32}, YARN | {"truncate": False}),
    "llama": (LlamaConfig, {}, YARN),
}


def saved(folder, kind, changes, rope):
    """Save a config without weights and return its folder."""
    kind(**TINY | changes | {"rope_parameters": rope}).save_pretrained(folder)
    return str(folder)


def lengths(base):
    return {EXPORTED: [base, 2 * base, 3 * base, 16 * base]}


@pytest.mark.parametrize("choice", ["keep", "replace"])
@pytest.mark.parametrize("name", SCALED)
def test_what_other_layers_read_is_kept_and_the_export_equals_what_is_trained(name, choice, tmp_path):
    """On the model itself, at a scale that is no power of two, and where Ministral's queries have grown."""
    kind, changes, rope = SCALED[name]
    path = saved(tmp_path / "base", kind, changes, rope)
    settings = PretrainedModel(path=path, base_scaling=choice)
    base = base_facts(settings).base_context_length
    assert base == {"keep": 512, "replace": 64}[choice]
    check_base(settings, lengths(base), base_context_length=base)

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path)).save_pretrained(path)
    save_tokenizer(path, eos_token="!")
    trained = build_model(settings, dtype=torch.float32).eval()
    trained.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model", eos_token="!")
    out = tmp_path / "out"
    options = {"base_scaling": choice, "evaluation": None, "run": RunFacts("demo")}
    export(tmp_path / "model", out, base_context_length=base, context_lengths=(3 * base,), **options)
    override = json.loads((out / "serving" / str(3 * base) / "config_override.json").read_text())
    config = AutoConfig.from_pretrained(out, **override)
    served = AutoModelForCausalLM.from_pretrained(out, config=config).eval()
    tokens = torch.randint(256, (1, 150), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = trained(tokens).logits
        with RotaryHook(trained).applied(3.0):
            wanted = trained(tokens).logits
        found = served(tokens).logits
    assert (wanted - plain).abs().median() > 1e-3
    assert (found - wanted).abs().median() < 1e-4  # a router may send single tokens elsewhere


def test_a_scaling_that_is_removed_takes_its_own_keys_along_and_no_others(tmp_path):
    rope = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
    path = saved(tmp_path, Ministral3Config, {"sliding_window": None}, rope)
    plain = base_facts(PretrainedModel(path=path, base_scaling="replace")).trained_rope_parameters
    assert plain == {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": 64,  # what the key beside it is measured by
    }


def test_a_base_whose_layers_need_a_key_that_no_profile_holds_is_refused_with_the_next_move(tmp_path):
    """PhiMoE's rotary module asks every scaling for a length that `linear` does not have."""
    path = saved(tmp_path, PhimoeConfig, EXPERTS, {"rope_type": "default", "rope_theta": 10_000.0})
    wanted = (
        rf"^model.path {tmp_path}: its training could not be served, as a small model of its class shows: .*"
        r"KeyError: .*; choose another checkpoint, or export: null to train without$"
    )
    with pytest.raises(SettingsError, match=wanted) as caught:
        check_base(PretrainedModel(path=path), lengths(512), base_context_length=512)
    assert "\n" not in str(caught.value)
    assert check_base(PretrainedModel(path=path), {"positions": [1024]}, base_context_length=512) == []


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_a_linear_scaling_that_deepseek_scores_read_is_refused_where_it_is_kept(factor, tmp_path):
    """Its softmax scale grows with the factor that a profile multiplies; removed, nothing is left to read."""
    rope = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0 * factor, "mscale_all_dim": 1.0}
    path = saved(tmp_path, DeepseekV3Config, DEEPSEEK, rope)
    keep = PretrainedModel(path=path, base_scaling="keep")
    with pytest.raises(SettingsError, match=r"logits differ .*; refused; set model.base_scaling to replace, choose"):
        check_base(keep, lengths(512), base_context_length=512)
    replaced = keep.model_copy(update={"base_scaling": "replace", "base_context_length": 128})
    assert check_base(replaced, lengths(128), base_context_length=128) == []


@pytest.mark.parametrize(
    ("attention", "kind", "changes", "message"),
    [
        (
            "sdpa",
            Gemma2Config,
            {},
            "sdpa is none that Gemma2ForCausalLM can compute, wanted one of flash_attention_3, ",
        ),
        (
            "sdpa",
            GptOssConfig,
            EXPERTS,
            "sdpa is none that GptOssForCausalLM can compute, wanted one of flex, eager; ",
        ),
        ("flash_attention_2", GptOssConfig, EXPERTS, "flash_attention_2 is none that GptOssForCausalLM can compute"),
    ],
)
def test_an_attention_that_the_class_cannot_compute_is_refused(attention, kind, changes, message, tmp_path):
    path = saved(tmp_path, kind, changes, {"rope_type": "default", "rope_theta": 10_000.0})
    with pytest.raises(SettingsError, match=rf"^model.attention: {message}.*to auto or eager$"):
        check_base(PretrainedModel(path=path, attention=attention), {"positions": [32]}, base_context_length=512)
    assert check_base(PretrainedModel(path=path), {"positions": [32]}, base_context_length=512) == []


def test_a_config_of_which_no_model_can_be_made_is_one_line(tmp_path):
    path = saved(tmp_path, LlamaConfig, {}, YARN)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "nonesuch"}))
    settings = PretrainedModel(path=path, base_scaling="replace")
    with pytest.raises(SettingsError, match=r"no model can be built from its config.json \(KeyError: 'nonesuch'\)"):
        check_base(settings, lengths(64), base_context_length=64)


def test_a_twin_is_small_and_has_one_layer_of_each_kind(tmp_path):
    types = (["sliding_attention"] * 5 + ["full_attention"]) * 4
    sizes = {
        "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 200_000,
        "intermediate_size": 8192, "num_hidden_layers": 24, "layer_types": types,
    }  # fmt: skip
    Gemma3TextConfig(**sizes).save_pretrained(tmp_path)
    config = trained_config(PretrainedModel(path=str(tmp_path)))
    small = cut_down(config, twin._skeleton(config))
    assert small.layer_types == ["sliding_attention", "full_attention"]
    assert small.rope_parameters == config.rope_parameters
    assert small.head_dim == 64
    model = AutoModelForCausalLM.from_config(small)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1e6


def test_a_class_that_cannot_be_made_small_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(twin, "cut_down", lambda config, whole: None)
    path = saved(tmp_path, LlamaConfig, {}, {"rope_type": "default", "rope_theta": 10_000.0})
    (line,) = check_base(PretrainedModel(path=path), lengths(512), base_context_length=512)
    assert "no small twin can be made of llama, so its serving profiles are proven after" in line


def recipe_of(small, path, **model):
    """Return a recipe that tunes the checkpoint in a folder, its tokenizer beside it."""
    recipe = {key: value for key, value in small.items() if key != "pretrain"}
    save_tokenizer(path, eos_token="!")
    train = {"steps": 4, "batch_sequences": 4, "lr": 1e-3}
    return recipe | {"model": {"kind": "pretrained", "path": str(path), **model}, "train": train}


def test_check_and_a_run_say_what_a_base_cannot_before_anything_else(small, tmp_path, capsys):
    saved(tmp_path / "base", MistralConfig, {"sliding_window": 32}, {"rope_type": "default", "rope_theta": 10_000.0})
    recipe = recipe_of(small, tmp_path / "base", base_context_length=64)
    del recipe["data"]["tokenizer"]
    several = {
        "search": {"trials": 12, "early_stopping": None, "baselines": ["e2llm"]},
        "compare": {"lanes": ["e2llm"]},
    }
    stages = (check, pipeline.execute, partial(tuning.tune, resume=False), comparing.compare)
    for number, stage in enumerate(stages):
        with pytest.raises(SettingsError, match=r"so nothing beyond 63 tokens can change its logits"):
            stage(validate(recipe | several | {"name": f"small-{number}"}, source="test"))
    saved(tmp_path / "base", Gemma2Config, {"head_dim": 16, "sliding_window": 32}, {"rope_type": "default"})
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "base")).save_pretrained(tmp_path / "base")
    check(validate(recipe, source="test"))
    told, sound = capsys.readouterr().out.splitlines()[-2:]
    assert "1 of its 2 layers see the nearest 32 tokens only" in told
    assert ": sound. " in sound
