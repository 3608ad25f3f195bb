"""Which traits of a base make its context hard to extend.

OlmPool (arXiv:2608.10296) pretrained 26 models of 7B alike but for four choices: how attention is normalised, grouped
queries, the pretraining window and sliding windows. One of them costs little, three or more together up to 47 % of the
scores on long text, and nothing on short text tells.
"""

from torch import nn

from e2ray.core.flops import config_of

SHORT = 8192  # tokens of a pretraining window below which it counts as short
MANY = 3  # traits from which on a base extends badly


def hard_traits(model: nn.Module, base_context_length: int) -> list[str]:
    """Return the traits of a model that make it hard to extend; `MANY` of them are a warning.

    Args:
        model: Its modules and config; weights are not looked at.
        base_context_length: L in tokens.
    """
    config = config_of(model)
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    kinds = getattr(config, "layer_types", None) or ()
    sliding = any("sliding" in kind for kind in kinds) if kinds else bool(getattr(config, "sliding_window", None))
    found = {
        "queries and keys are normalised": bool(names & {"q_norm", "k_norm", "q_layernorm", "k_layernorm", "qk_norm"}),
        f"{heads} query heads share {groups} key heads": groups is not None and groups < heads,
        f"pretrained on {base_context_length:,} tokens": base_context_length < SHORT,
        "layers with a sliding window": sliding,
    }
    return [trait for trait, has in found.items() if has]
