"""The hook under frequency methods: each row reads as a model does whose config asks for its scale."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import AutoModelForCausalLM, PhimoeConfig

from e2ray.config.base import SettingsError
from e2ray.config.methods import (
    UNTRAINED,
    FactorsMethod,
    LinearMethod,
    NtkMethod,
    RampPowerMethod,
    TruncatedMethod,
    YarnMethod,
)
from e2ray.core.methods.registry import method_of
from e2ray.core.rope import RotaryHook, find_rotary_modules, frequency_buffers, refuse_scaled
from e2ray.testing.models import FAMILIES, SIZES, logits, random_tokens, tiny_config, tiny_model

L, THETA = 64, 10_000.0
METHODS = [
    NtkMethod(),
    YarnMethod(),
    YarnMethod(fast=6, slow=0.5),
    RampPowerMethod(fast=8, slow=0.5),
    FactorsMethod(factors=tuple(1 + 0.7 * n for n in range(8)), max_scale=8),
    TruncatedMethod(),
]
IDS = [f"{each.kind}-{place}" for place, each in enumerate(METHODS)]


def hooked(model, method):
    return RotaryHook(model, method_of(method), base_context_length=L)


def served_yarn(family, scale):
    """Return the model with transformers' own yarn in its config, for the layers that see far."""
    rope = {"rope_type": "yarn", "rope_theta": THETA, "factor": scale, "original_max_position_embeddings": L}
    if family == "gemma3":
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": THETA}}
    return tiny_model(family, rope_parameters=rope)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [1.0, 3.0, 16.0])
def test_yarn_reads_as_transformers_yarn(family, scale):
    model = tiny_model(family)
    tokens = random_tokens(2, 48)
    with hooked(model, YarnMethod()).applied(scale):
        found = logits(model, tokens)
    torch.testing.assert_close(found, logits(served_yarn(family, scale), tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_each_row_has_its_own_scale_and_shift_and_scale_1_is_the_base(family, method):
    model = tiny_model(family)
    tokens = random_tokens(3, 40)
    untouched = logits(model, tokens)
    scale = torch.tensor([1.0, 2.5, 8.0])
    offsets = torch.zeros(3, 40, dtype=torch.int64)
    offsets[:, 4:] = torch.tensor([0, 30, 90])[:, None]
    hook = hooked(model, method)
    with hook.applied(scale, offsets):
        together = logits(model, tokens)
    for row in range(3):
        with hook.applied(float(scale[row]), offsets[row : row + 1]):
            alone = logits(model, tokens[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=2e-5)
    torch.testing.assert_close(together[0], untouched[0], rtol=0, atol=2e-5)
    assert (together[2] - untouched[2]).abs().max() > 0.01
    torch.testing.assert_close(logits(model, tokens), untouched, rtol=0, atol=0)


def test_linear_as_a_method_is_the_hook_as_it_was():
    model = tiny_model("llama")
    tokens = random_tokens(2, 40)
    scale = torch.tensor([3.0, 7.0])
    with RotaryHook(model).applied(scale):
        wanted = logits(model, tokens)
    found = RotaryHook(model, method_of(LinearMethod()), base_context_length=L)
    with found.applied(scale):
        assert torch.equal(logits(model, tokens), wanted)


def test_local_layers_keep_their_frequencies():
    model = tiny_model("gemma3")
    (module,) = find_rotary_modules(model)
    hook = hooked(model, YarnMethod())
    ids, hidden = torch.arange(9)[None], torch.zeros(2, 1, 1)
    before = module(hidden, ids, layer_type="sliding_attention")
    with hook.applied(torch.tensor([4.0, 8.0])):
        found = module(hidden, ids, layer_type="sliding_attention")
        moved = module(hidden, ids, layer_type="full_attention")[0]
    assert all(torch.equal(one, other) for one, other in zip(found, before, strict=True))
    assert moved.shape[0] == 2 and not torch.equal(moved[0], moved[1])


def test_a_call_that_fails_leaves_the_modules_frequencies():
    model = tiny_model("llama")
    (module,) = find_rotary_modules(model)
    before = {name: buffer.clone() for name, buffer in frequency_buffers(module).items()}
    with hooked(model, YarnMethod()).applied(torch.tensor([2.0, 4.0])), pytest.raises(RuntimeError):
        module(torch.zeros(2, 1, 1), torch.arange(6).reshape(3, 2))  # three rows of ids for two of scales
    assert all(torch.equal(buffer, before[name]) for name, buffer in frequency_buffers(module).items())
    assert module.attention_scaling == 1.0


def test_a_module_that_computes_its_frequencies_anew_is_refused():
    sizes = {"num_local_experts": 2, "rope_parameters": {"rope_type": "default", "rope_theta": THETA}}
    model = AutoModelForCausalLM.from_config(PhimoeConfig(**SIZES | sizes)).eval()
    RotaryHook(model).remove()
    with pytest.raises(SettingsError, match="PhimoeRotaryEmbedding computes its frequencies anew in each call"):
        hooked(model, YarnMethod())


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_methods_want_plain_layers_that_see_far(family):
    refuse_scaled(tiny_model(family), "yarn")
    with pytest.raises(SettingsError, match="untrained yarn: the model's rope is linear, wanted plain RoPE"):
        refuse_scaled(tiny_model(family, factor=2.0), "yarn")


def test_a_kept_scaling_is_slowed_down_further():
    rope = {"rope_type": "yarn", "rope_theta": THETA, "factor": 4.0, "original_max_position_embeddings": 16}
    model = tiny_model("llama", rope_parameters=rope)
    tokens = random_tokens(1, 40)
    untouched = logits(model, tokens)
    hook = hooked(model, YarnMethod())
    with hook.applied(1.0):
        torch.testing.assert_close(logits(model, tokens), untouched, rtol=0, atol=1e-5)
    with hook.applied(4.0):
        assert (logits(model, tokens) - untouched).abs().max() > 0.01
    assert find_rotary_modules(model)[0].attention_scaling == pytest.approx(1.1386, abs=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_rows_alone(checkpointing):
    model = tiny_model("qwen3").train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    tokens = random_tokens(2, 24)
    hook = hooked(model, YarnMethod())

    def gradients(rows, scale):
        model.zero_grad()
        with hook.applied(scale):
            model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
        return torch.cat([each.grad.flatten() for each in model.parameters()])

    both = gradients(tokens, torch.tensor([2.0, 8.0]))
    apart = [gradients(tokens[row : row + 1], scale) for row, scale in ((0, 2.0), (1, 8.0))]
    torch.testing.assert_close(both, (apart[0] + apart[1]) / 2, rtol=1e-4, atol=1e-5)


def test_the_config_of_tiny_models_is_plain():
    """The reference of these tests stands on it."""
    assert tiny_config("llama").rope_parameters["rope_type"] == "default"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch itself
@pytest.mark.parametrize("method", ["linear", "yarn", "ntk", "ramp_power"])
def test_compiled_layers_keep_one_graph_over_scales_and_read_the_same(method):
    """Layers are compiled one by one, as DeepSpeed and transformers do; angles are made outside of them."""
    model, tokens = tiny_model("llama").train(), random_tokens(2, 16)
    counter = CompileCounter()
    hook = RotaryHook(model, method_of(UNTRAINED[method]), base_context_length=16)
    draws = [torch.tensor(scales) for scales in ([1.0, 4.0], [2.0, 7.5], [16.0, 1.0])]
    wanted = []
    for scale in draws:
        hook.set(scale)
        wanted.append(model(tokens, use_cache=False).logits.detach())
    for layer in model.model.layers:
        layer.compile(fullgraph=True, backend=counter)
    for scale, plain in zip(draws, wanted, strict=True):
        hook.set(scale)
        logits = model(tokens, use_cache=False).logits
        logits.sum().backward()
        torch.testing.assert_close(logits.detach(), plain, rtol=1e-5, atol=1e-5)
    assert 0 < counter.frame_count <= len(model.model.layers)
    torch._dynamo.reset()
