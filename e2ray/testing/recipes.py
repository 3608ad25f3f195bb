"""The recipe of a run in miniature, as plain data: a Llama of two layers on windows of 32 tokens."""

from copy import deepcopy
from pathlib import Path

L = 32  # base context length and training window, tokens
LLAMA = {
    "kind": "llama",
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "base_context_length": L,
}
PRETRAIN = {  # what makes a base of it
    "steps": 8,
    "batch_sequences": 8,
    "micro_batch_sequences": 4,
    "lr": 1e-2,
    "log_every": 1,
    "checkpoint_every": 4,
}


def recipe(storage: str | Path, *, texts: str = "/texts/*.txt", **sections: object) -> dict[str, object]:
    """Return storage, model, data and draws of a run, a copy that the caller may change.

    Args:
        storage: Folder of runs.
        texts: Which text files it trains on.
        sections: Further sections, and those that replace its own.
    """
    made: dict[str, object] = {
        "name": "small",
        "storage": str(storage),
        "model": LLAMA,
        "data": {
            "corpus": [{"kind": "text", "paths": [texts]}],
            "tokenizer": {"kind": "byte_level_bpe", "vocab_size": 320},
            "window": L,
        },
        "positions": {"preset": "e2llm", "max_scale": 4},
    }
    return deepcopy(made | sections)
