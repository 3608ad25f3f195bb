"""What training steps on rows of one length take: one line of JSON.

python jobs/bench_compare_step.py 2048 8192

The arguments are the tokens of a row and of a step. `bench_compare.py` runs it once for each pair, since the peak
memory of a process is that of its largest step. Rows of the base context length carry the draws of E2-LLM, longer ones
those of position interpolation; the model is that of compare-cpu.yaml.
"""

import json
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a source tree too

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from e2ray.config.positions import PositionSettings
from e2ray.core.losses import next_token_nll
from e2ray.core.positions import draw
from e2ray.core.rope import RotaryHook
from e2ray.train.environment import peak_memory_mib

L, STEPS = 128, 4
SIZES = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 344}


def main() -> None:
    """Measure and print."""
    window, tokens = int(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(2)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=512, num_key_value_heads=4, attn_implementation="sdpa", **SIZES)
    ).train()
    hook, optimizer = RotaryHook(model), torch.optim.AdamW(model.parameters(), lr=1e-3)
    preset = {"preset": "e2llm" if window == L else "pi", "max_scale": max(16, window // L)}
    positions = PositionSettings.model_validate(preset)
    rows = torch.randint(512, (tokens // window, window))
    before, seconds = psutil.Process().memory_info().rss / 2**20, []
    for step in range(STEPS):
        began = time.perf_counter()
        drawn = draw(positions, seed=0, step=step, indices=range(len(rows)), window=window, base_context_length=L)
        with hook.applied(drawn.scale, drawn.offsets):
            next_token_nll(model(input_ids=rows, use_cache=False).logits, rows).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    mib = (peak_memory_mib(model.device) or math.nan) - before
    print(json.dumps({"window": window, "tokens": tokens, "seconds": seconds, "mib": mib}))


if __name__ == "__main__":
    main()
