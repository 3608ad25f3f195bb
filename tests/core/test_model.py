"""Loading, building and proving models; every bad input gives one line."""

import json

import huggingface_hub.constants
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    LlamaForCausalLM,
    T5GemmaConfig,
)

from e2ray.config.base import SettingsError
from e2ray.config.model import LlamaModel, LoraSettings, PretrainedModel
from e2ray.core import attention as attention_module
from e2ray.core import model as model_module
from e2ray.core.attention import resolve_attention
from e2ray.core.base import base_facts
from e2ray.core.model import build_model, merged, model_class
from e2ray.testing.models import FAMILIES, SCALED, SIZES, VOCAB_SIZE, logits, random_tokens, tiny_config, tiny_model

BUILT = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}


def saved(folder, family="llama", **changes):
    """Save a tiny checkpoint and return its path."""
    tiny_model(family, **changes).save_pretrained(folder)
    return str(folder)


def built(**changes):
    return LlamaModel(**BUILT | changes)


def one_line(caught):
    return "\n" not in str(caught.value)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


# Facts of the base


def test_facts_of_a_plain_checkpoint_come_from_its_config(tmp_path):
    tiny_config("llama").save_pretrained(tmp_path)
    facts = base_facts(PretrainedModel(path=str(tmp_path)))
    assert facts.base_context_length == 64
    assert facts.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}
    assert (facts.scaling, facts.base_scaling) == (None, None)
    assert facts.trained_rope_parameters == facts.rope_parameters
    assert base_facts(PretrainedModel(path=str(tmp_path), base_context_length=48)).base_context_length == 48


def test_facts_of_a_built_model_come_from_its_settings():
    facts = base_facts(built(base_context_length=128, base_frequency=500.0))
    assert facts.base_context_length == 128
    assert facts.rope_parameters == {"rope_type": "default", "rope_theta": 500.0}


@pytest.mark.parametrize("kind", sorted(SCALED))
def test_a_carried_scaling_demands_a_choice(kind, tmp_path):
    tiny_config("llama", rope_parameters=SCALED[kind]).save_pretrained(tmp_path)
    wanted = rf"base_scaling: {tmp_path} already carries a rope scaling \({kind}, factor .*\).*keep .* replace "
    with pytest.raises(SettingsError, match=wanted) as caught:
        base_facts(PretrainedModel(path=str(tmp_path)))
    assert one_line(caught)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_keep_counts_the_extended_context_as_the_base(kind, tmp_path):
    tiny_config("llama", rope_parameters=SCALED[kind]).save_pretrained(tmp_path)
    facts = base_facts(PretrainedModel(path=str(tmp_path), base_scaling="keep"))
    assert (facts.base_context_length, facts.scaling, facts.base_scaling) == (64, kind, "keep")
    assert facts.trained_rope_parameters == facts.rope_parameters == SCALED[kind]


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_keep_is_impossible_where_frequencies_change_with_the_length(kind, tmp_path):
    tiny_config("llama", rope_parameters=SCALED[kind]).save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match=rf"keep is impossible .* {kind} scaling change with the length .* replace"):
        base_facts(PretrainedModel(path=str(tmp_path), base_scaling="keep"))


@pytest.mark.parametrize("kind", ["llama3", "yarn", "longrope"])
def test_replace_goes_back_to_the_original_context(kind, tmp_path):
    tiny_config("llama", rope_parameters=SCALED[kind]).save_pretrained(tmp_path)
    facts = base_facts(PretrainedModel(path=str(tmp_path), base_scaling="replace"))
    assert (facts.base_context_length, facts.base_scaling) == (16, "replace")
    assert facts.rope_parameters == SCALED[kind]
    assert facts.trained_rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}


def test_replace_asks_for_a_base_context_length_the_config_does_not_say(tmp_path):
    tiny_config("llama", rope_parameters=SCALED["linear"]).save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match=r"model.base_context_length: .* does not say .*; set it"):
        base_facts(PretrainedModel(path=str(tmp_path), base_scaling="replace"))
    chosen = PretrainedModel(path=str(tmp_path), base_scaling="replace", base_context_length=16)
    assert base_facts(chosen).base_context_length == 16


def test_a_choice_without_a_scaling_is_told_as_without_effect(tmp_path):
    tiny_config("llama").save_pretrained(tmp_path)
    facts = base_facts(PretrainedModel(path=str(tmp_path), base_scaling="keep"))
    assert facts.base_scaling is None
    wanted = f"model.base_scaling: keep is without effect, since {tmp_path} carries no rope scaling"
    assert facts.ignored == (wanted,)


def test_scalings_per_layer_type_are_seen_and_replaced_for_global_layers_only(tmp_path):
    tiny_config("gemma3", factor=8.0).save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match=r"carries a rope scaling \(linear, factor 8.0\)"):
        base_facts(PretrainedModel(path=str(tmp_path)))
    plain = {"rope_type": "default", "rope_theta": 10_000.0}
    facts = base_facts(PretrainedModel(path=str(tmp_path), base_scaling="replace", base_context_length=8))
    assert facts.trained_rope_parameters == {"full_attention": plain, "sliding_attention": plain}


def write(text):
    return lambda folder: (folder / "config.json").write_text(text)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "holds no config.json; name the folder of a Hugging Face checkpoint"),
        (write("{not json"), r"its config.json cannot be used \(.*not a valid JSON"),
        (write("{}"), r"its config.json cannot be used \(Unrecognized model"),
        (write('{"model_type": "nonesuch"}'), r"its config.json cannot be used \(.*nonesuch"),
        (write(json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "x.Y"}})), "remote code, which is never run"),
        (lambda folder: GPT2Config().save_pretrained(folder), "gpt2 has no rotary positions"),
        (lambda folder: Gemma3Config().save_pretrained(folder), "gemma3 is a model of several modalities"),
    ],
)
def test_an_unusable_config_is_one_line(prepare, message, tmp_path):
    prepare(tmp_path)
    with pytest.raises(SettingsError, match=rf"^model.path {tmp_path}: .*{message}") as caught:
        base_facts(PretrainedModel(path=str(tmp_path)))
    assert one_line(caught)


def test_a_missing_folder_is_one_line(tmp_path):
    path = str(tmp_path / "nothing")
    for attempt in (base_facts, lambda settings: build_model(settings, dtype=torch.float32)):
        with pytest.raises(SettingsError, match=rf"^model.path {path}: no such folder; name a folder"):
            attempt(PretrainedModel(path=path))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("path", ["someone/nothing-here", "no such id"])
def test_a_hub_id_that_cannot_be_reached_is_one_line(path):
    with pytest.raises(SettingsError, match=rf"^model.path {path}: cannot be fetched from the hub .*; check") as caught:
        base_facts(PretrainedModel(path=path))
    assert one_line(caught)


# Models


def test_a_built_model_depends_on_its_seed_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = build_model(built(), dtype=torch.float32, vocab_size=VOCAB_SIZE, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    same = build_model(built(), dtype=torch.float32, vocab_size=VOCAB_SIZE, seed=1)
    other = build_model(built(), dtype=torch.float32, vocab_size=VOCAB_SIZE, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_a_built_model_has_the_sizes_asked_for():
    chosen = built(base_context_length=32, base_frequency=500.0, tie_embeddings=False)
    config = build_model(chosen, dtype=torch.float32, vocab_size=VOCAB_SIZE).config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 2, 4)
    assert (config.num_key_value_heads, config.intermediate_size, config.vocab_size) == (2, 96, VOCAB_SIZE)
    assert (config.max_position_embeddings, config.tie_word_embeddings) == (32, False)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500.0}


def test_random_weights_have_the_spread_asked_for():
    model = build_model(built(initializer_range=0.1), dtype=torch.float32, vocab_size=VOCAB_SIZE)
    assert model.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.1, rel=0.05)


def test_a_built_model_needs_the_size_of_the_vocabulary():
    with pytest.raises(ValueError, match="needs vocab_size, got None"):
        build_model(built(), dtype=torch.float32)


@pytest.mark.parametrize("source", ["built", "checkpoint"])
def test_frequencies_stay_float32_in_a_bf16_model(source, tmp_path):
    chosen = built() if source == "built" else PretrainedModel(path=saved(tmp_path))
    half = build_model(chosen, dtype=torch.bfloat16, vocab_size=VOCAB_SIZE)
    full = build_model(chosen, dtype=torch.float32, vocab_size=VOCAB_SIZE)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.model.rotary_emb.inv_freq, full.model.rotary_emb.inv_freq)
    assert half.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_loaded_as_it_was_saved(family, tmp_path):
    tokens = random_tokens(1, 40)
    loaded = build_model(PretrainedModel(path=saved(tmp_path, family)), dtype=torch.float32, vocab_size=VOCAB_SIZE)
    torch.testing.assert_close(logits(loaded.eval(), tokens), logits(tiny_model(family), tokens), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_keep_loads_the_scaled_model_and_replace_the_plain_one(family, tmp_path):
    tokens, path = random_tokens(1, 40), saved(tmp_path, family, factor=4.0)
    for choice, factor, length in (("keep", 4.0, 64), ("replace", None, 16)):
        chosen = PretrainedModel(path=path, base_scaling=choice, base_context_length=16)
        loaded = build_model(chosen, dtype=torch.float32).eval()
        assert loaded.config.max_position_embeddings == length
        wanted = logits(tiny_model(family, factor=factor), tokens)
        torch.testing.assert_close(logits(loaded, tokens), wanted, rtol=0, atol=0)


def test_a_checkpoint_without_weights_is_one_line(tmp_path):
    tiny_config("llama").save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match=rf"model.path {tmp_path}: its weights cannot be loaded") as caught:
        build_model(PretrainedModel(path=str(tmp_path)), dtype=torch.float32)
    assert one_line(caught)


def test_damaged_weights_are_one_line(tmp_path):
    path = saved(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SettingsError, match=rf"model.path {tmp_path}: its weights cannot be loaded") as caught:
        build_model(PretrainedModel(path=path), dtype=torch.float32)
    assert one_line(caught)


def test_a_tokenizer_larger_than_the_embeddings_is_one_line(tmp_path):
    with pytest.raises(SettingsError, match=f"has {VOCAB_SIZE} token embeddings, the tokenizer 500 tokens"):
        build_model(PretrainedModel(path=saved(tmp_path)), dtype=torch.float32, vocab_size=500)


def test_gradient_checkpointing_recomputes_every_layer():
    model = build_model(built(checkpoint_share=1.0), dtype=torch.float32, vocab_size=VOCAB_SIZE).train()
    calls = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    model(random_tokens(1, 8)).logits.sum().backward()
    assert len(calls) == 2
    assert model.config.use_cache is False


@pytest.mark.parametrize(
    ("share", "wanted"),
    [
        (0.01, [5]), (0.16, [5]), (0.2, [2, 5]), (0.5, [1, 3, 5]), (0.6, [1, 2, 4, 5]), (0.99, range(6)), (1, range(6)),
    ],
)  # fmt: skip
def test_a_share_of_the_layers_recomputes_spread_evenly_and_rounded_up(share, wanted):
    model = build_model(built(num_layers=6, checkpoint_share=share), dtype=torch.float32, vocab_size=VOCAB_SIZE)
    model.train()
    calls = []
    for number, layer in enumerate(model.model.layers):
        layer.input_layernorm.register_forward_hook(lambda *_, number=number: calls.append(number))
    model(random_tokens(1, 8)).logits.sum().backward()
    assert sorted(set(calls)) == list(range(6)) and sorted(calls) == sorted([*range(6), *wanted])


def test_the_setting_of_older_recipes_is_read_and_not_beside_the_new_one():
    for old, new in ((True, 1.0), (False, 0.0)):
        assert LlamaModel.model_validate({"gradient_checkpointing": old}) == LlamaModel(checkpoint_share=new)
    with pytest.raises(ValueError, match="gradient_checkpointing is the old name of checkpoint_share; leave it out"):
        LlamaModel.model_validate({"gradient_checkpointing": True, "checkpoint_share": 0.5})
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        LlamaModel.model_validate({"gradient_checkpointing": "half"})


# Attention


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss"])
def test_a_checkpoint_is_loaded_with_an_attention_its_class_has(family, tmp_path):
    sizes = {key: value for key, value in SIZES.items() if key != "max_position_embeddings"}
    kind, own = {
        "llama": (LlamaConfig, {}),
        "gemma2": (Gemma2Config, {"head_dim": 16}),
        "gpt-oss": (GptOssConfig, {"head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1}),
    }[family]
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    AutoModelForCausalLM.from_config(kind(**sizes | own | {"rope_parameters": rope})).save_pretrained(tmp_path)
    loaded = build_model(PretrainedModel(path=str(tmp_path)), dtype=torch.float32)
    assert loaded.config._attn_implementation == ("sdpa" if family == "llama" else "eager")


def test_a_class_that_is_no_causal_language_model_is_one_line(tmp_path):
    T5GemmaConfig().encoder.save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="transformers has no causal language model for t5_gemma_module; choose a"):
        model_class(PretrainedModel(path=str(tmp_path)))


# LoRA


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_start_as_the_base_train_alone_and_merge_into_a_plain_model(tied):
    tokens = random_tokens(2, 16)
    lora = LoraSettings(rank=4, targets=("q_proj", "down_proj"), trainable=("embed_tokens",))
    base = build_model(built(tie_embeddings=tied), dtype=torch.float32, vocab_size=VOCAB_SIZE, seed=3).eval()
    chosen = built(tie_embeddings=tied, lora=lora, checkpoint_share=1.0)
    model = build_model(chosen, dtype=torch.float32, vocab_size=VOCAB_SIZE, seed=3)
    torch.testing.assert_close(logits(model.eval(), tokens), logits(base, tokens), rtol=0, atol=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "embed_tokens" in name or (tied and "lm_head" in name) for name in trained)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    wanted = logits(model.eval(), tokens)
    assert (wanted - logits(base, tokens)).abs().max() > 1e-3
    plain = merged(model)
    assert type(plain) is LlamaForCausalLM
    assert plain.config.use_cache is True
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == tied
    torch.testing.assert_close(logits(plain, tokens), wanted, rtol=0, atol=1e-5)  # BA is added before, not after


def test_a_merged_model_is_saved_and_loaded_as_it_is(tmp_path):
    tokens = random_tokens(1, 16)
    lora = LoraSettings(rank=4, trainable=("embed_tokens",))
    model = build_model(built(lora=lora), dtype=torch.float32, vocab_size=VOCAB_SIZE)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    plain = merged(model).eval()
    plain.save_pretrained(tmp_path)
    loaded = build_model(PretrainedModel(path=str(tmp_path)), dtype=torch.float32).eval()
    torch.testing.assert_close(logits(loaded, tokens), logits(plain, tokens), rtol=0, atol=0)


def test_adapters_depend_on_the_seed_and_keep_the_dtype():
    chosen = built(lora=LoraSettings(rank=4))
    one, same, other = (
        build_model(chosen, dtype=torch.bfloat16, vocab_size=VOCAB_SIZE, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    name = next(name for name in one if "q_proj.lora_A" in name)
    assert one[name].dtype == torch.bfloat16
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize("key", ["targets", "trainable"])
def test_a_module_that_is_not_there_is_one_line(key):
    chosen = built(lora=LoraSettings(**{key: ("o_proj", "nonesuch")}))
    wanted = rf"model.lora.{key}: LlamaForCausalLM has no module 'nonesuch'; its linear modules are down_proj, "
    with pytest.raises(SettingsError, match=wanted) as caught:
        build_model(chosen, dtype=torch.float32, vocab_size=VOCAB_SIZE)
    assert one_line(caught)


def test_merging_a_plain_model_allows_the_cache_again():
    model = build_model(built(checkpoint_share=1.0), dtype=torch.float32, vocab_size=VOCAB_SIZE)
    assert merged(model) is model
    assert model.config.use_cache is True


@pytest.mark.parametrize(("runs_on", "wanted"), [(None, "sdpa"), ("cpu", "sdpa"), ("cuda", "flash_attention_2")])
def test_attention_is_chosen_for_the_device_that_runs_not_the_one_that_loads(monkeypatch, runs_on, wanted):
    monkeypatch.setattr(attention_module, "is_flash_attn_2_available", lambda: True)
    asked = []
    real = model_module._build_llama

    def build(settings, *, attention, **options):
        asked.append(attention)
        return real(settings, attention="sdpa", **options)  # flash attention itself is not installed

    monkeypatch.setattr(model_module, "_build_llama", build)
    build_model(built(), dtype=torch.bfloat16, vocab_size=VOCAB_SIZE, device="cpu", runs_on=runs_on)
    assert asked == [wanted]


def test_flash_attention_that_was_asked_for_loads_on_the_cpu_of_a_machine_that_trains_on_a_gpu(monkeypatch):
    monkeypatch.setattr(attention_module, "is_flash_attn_2_available", lambda: True)
    settings = built(attention="flash_attention_2")
    assert resolve_attention(settings, "cuda", dtype=torch.bfloat16) == "flash_attention_2"
    with pytest.raises(SettingsError, match="needs a GPU"):
        build_model(settings, dtype=torch.bfloat16, vocab_size=VOCAB_SIZE, device="cpu", runs_on="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_weights_that_are_no_numbers_are_told_where_they_are_read(tmp_path, value):
    """In a row of the embeddings that no text asks for, too."""
    model = tiny_model("llama")
    model.model.embed_tokens.weight.data[5, 3] = min(value, 3e38) if value == 1e39 else value
    model.save_pretrained(tmp_path)
    settings, dtype = PretrainedModel(path=str(tmp_path)), torch.float16 if value == 1e39 else torch.float32
    with pytest.raises(SettingsError, match=r"model\.embed_tokens\.weight holds numbers that are not finite in float"):
        build_model(settings, dtype=dtype)
