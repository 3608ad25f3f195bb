"""Does the hook read as transformers does under every frequency method, and what does a row of its own cost a step?

Tiny random models of twelve architectures read the same tokens twice: hooked, at a scale, and unhooked with the rope
parameters of the same method at the same factor in their config. The largest difference of the logits is kept for each
architecture, method and scale, in fp32, beside what a scale 5 % larger would have made. Then training steps of a small
Llama are timed in turn, without a hook and with each row under its own frequencies.

    python jobs/bench_methods.py --check
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a source tree too

from benchmarking import finish, goal, parser

L, THETA, TOKENS, SCALES = 64, 10_000.0, 192, (1.0, 3.0, 8.0)
SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
RANGES = {"as the classes initialise": 0.02, "sharp attention": 0.1}  # of the weights; the second magnifies rounding
ONLY_LONGROPE = ("Phi-3",)  # whose config refuses other types
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {}),
    "Qwen2": ("Qwen2Config", {}),
    "Qwen3": ("Qwen3Config", {"head_dim": 16}),
    "Mistral": ("MistralConfig", {"sliding_window": None}),
    "Gemma": ("GemmaConfig", {"head_dim": 16}),
    "Gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "Phi-3": ("Phi3Config", {}),
    "OLMo2": ("Olmo2Config", {}),
    "GPT-NeoX": ("GPTNeoXConfig", {"rotary_pct": 0.5}),
    "SmolLM3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "Granite": ("GraniteConfig", {}),
    "Cohere": ("CohereConfig", {}),
}
STEP = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
ROWS, WINDOW, PAIRS, WARM = 8, 128, 30, 3


def methods(pairs: int = 8) -> dict[str, Any]:
    """Return the settings of each method by its name here, for so many pairs of a head's dimensions."""
    from e2ray.config.methods import UNTRAINED, FactorsMethod, YarnMethod

    listed = FactorsMethod(factors=tuple(1 + 0.9 * place for place in range(pairs)), max_scale=8)
    return {
        **UNTRAINED,
        "yarn 8 to 0.5": YarnMethod(fast=8, slow=0.5),
        "factors": listed,
    }


def config_of(name: str, rope: dict[str, Any], spread: float) -> Any:
    """Return an architecture's config with rope parameters for the layers that see far."""
    import transformers

    kind, own = ARCHITECTURES[name]
    told = {"rope_theta": THETA, "rope_type": "default"} | rope
    if name == "Gemma3":
        told = {"full_attention": told, "sliding_attention": {"rope_theta": THETA, "rope_type": "default"}}
    return getattr(transformers, kind)(**SIZES | own | {"rope_parameters": told, "initializer_range": spread})


def compared(name: str, title: str, scale: float, spread: float) -> dict[str, Any]:
    """Return the largest difference of the logits, and how large they are; or why transformers cannot say a method."""
    import torch
    from transformers import AutoModelForCausalLM

    from e2ray.config.base import SettingsError
    from e2ray.core.methods.ntk import DynamicNtk
    from e2ray.core.methods.registry import method_of
    from e2ray.core.rope import RotaryHook, find_rotary_modules, frequency_buffers

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name, {}, spread), attn_implementation="eager").eval()
    base = next(iter(frequency_buffers(find_rotary_modules(model)[0]).values()))
    method = method_of(methods(len(base))[title])
    share = {"partial_rotary_factor": 0.5} if name == "GPT-NeoX" else {}
    read_at = DynamicNtk.scale_of(scale, TOKENS, L) if method.needs_length else scale
    try:
        if name in ONLY_LONGROPE:
            rope = method.to_longrope({"rope_theta": THETA}, base, read_at, L)
        else:
            rope = method.to_transformers({"rope_theta": THETA} | share, base, scale, L)
    except SettingsError as error:
        return {"cannot": str(error)}
    served = config_of(name, rope, spread)
    if rope["rope_type"] == "dynamic":
        served.max_position_embeddings = L
    unhooked = AutoModelForCausalLM.from_config(served, attn_implementation="eager").eval()
    unhooked.load_state_dict(model.state_dict())
    tokens = torch.randint(1, SIZES["vocab_size"], (1, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = unhooked(tokens, use_cache=False).logits
        with RotaryHook(model, method, base_context_length=L).applied(read_at):
            found = model(tokens, use_cache=False).logits
        with RotaryHook(model, method, base_context_length=L).applied(1.05 * read_at):
            other = model(tokens, use_cache=False).logits
    return {
        "difference": float((found - wanted).abs().max()),
        "of_another_scale": float((other - wanted).abs().max()),  # 5 % larger: what a wrong one would show
        "largest_logit": float(wanted.abs().max()),
    }


def step_seconds() -> dict[str, list[float]]:
    """Return seconds of training steps, in turn without a hook, with linear draws, and with YaRN's row by row."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from e2ray.config.methods import LinearMethod, YarnMethod
    from e2ray.core.methods.registry import method_of
    from e2ray.core.rope import RotaryHook

    torch.manual_seed(0)
    sizes = SIZES | STEP
    model = LlamaForCausalLM(LlamaConfig(**sizes)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(1, sizes["vocab_size"], (ROWS, WINDOW))
    offsets = torch.zeros(ROWS, WINDOW, dtype=torch.int64)
    found: dict[str, list[float]] = {"plain": [], "linear": [], "yarn": []}
    for turn in range(PAIRS + WARM):
        for name in found if turn % 2 else reversed(found):
            kind = {"linear": LinearMethod(), "yarn": YarnMethod()}.get(name)
            hook = RotaryHook(model, method_of(kind), base_context_length=WINDOW) if kind else None
            began = time.perf_counter()
            if hook is not None:
                hook.set(1 + 15 * torch.rand(ROWS), offsets)
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            took = time.perf_counter() - began
            if hook is not None:
                hook.remove()
            if turn >= WARM:
                found[name].append(took)
    return found


def main() -> int:
    """Measure and write the result."""
    import torch

    parsed = parser(__doc__).parse_args()
    torch.set_num_threads(2)
    differences = {
        spread: {
            name: {title: {str(scale): compared(name, title, scale, width) for scale in SCALES} for title in methods()}
            for name in ARCHITECTURES
        }
        for spread, width in RANGES.items()
    }
    largest = {}
    for spread, found in differences.items():
        for name, by_method in found.items():
            cells = [cell for each in by_method.values() for cell in each.values() if "difference" in cell]
            largest[spread, name] = max(cell["difference"] for cell in cells)
            print(f"{spread}, {name}: at most {largest[spread, name]:.1e}", flush=True)
    plain = next(iter(RANGES))
    largest_plain = max(value for (spread, _), value in largest.items() if spread == plain)
    seconds = step_seconds()
    ratios = {
        name: statistics.median(one / other for one, other in zip(seconds[name], seconds["plain"], strict=True))
        for name in ("linear", "yarn")
    }
    goals = [
        goal("largest difference of fp32 logits", largest_plain, at_most=1e-5),
        goal("architectures", len(ARCHITECTURES), at_least=12),
        goal("a step with frequencies by row, of a plain one", ratios["yarn"], at_most=1.03),
    ]
    config = {
        "base_context_length": L,
        "tokens": TOKENS,
        "scales": SCALES,
        "sizes": SIZES,
        "step": STEP,
        "ranges": RANGES,
    }
    config |= {"rows": ROWS, "window": WINDOW, "methods": {name: each.model_dump() for name, each in methods().items()}}
    runs = {"differences": differences, "step_seconds": seconds, "step_ratios": ratios}
    return finish("methods", config=config, runs=runs, goals=goals, check=parsed.check)


if __name__ == "__main__":
    sys.exit(main())
