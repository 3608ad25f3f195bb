"""What do per-sequence position draws cost a training step?

The same model, optimizer and data, in one process, A B B A: (A) e2ray's engine with a fresh draw for every row,
drawing included, against (B) plain transformers + DeepSpeed without any hook.

    python jobs/bench_step.py --check
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a source tree too

import deepspeed
import torch
import torch.distributed as dist
from benchmarking import alternate, finish, goal, parser
from transformers import LlamaConfig, LlamaForCausalLM

from e2ray.config.positions import PositionSettings
from e2ray.config.train import TrainSettings
from e2ray.core.losses import next_token_nll
from e2ray.core.positions import draw
from e2ray.train.adam import parameter_groups
from e2ray.train.batch import Batch
from e2ray.train.engine import Engine
from e2ray.train.parameters import precision_of
from e2ray.train.zero import deepspeed_settings

RATIO_AT_MOST = 1.02
SIZES = {
    "cpu": {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 512},
    "cuda": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
}
SHAPES = {
    "cpu": {"window": 256, "batch_sequences": 8, "vocab_size": 4096},
    "cuda": {"window": 4096, "batch_sequences": 8, "vocab_size": 32_000},
}


def model_for(device: torch.device, dtype: torch.dtype, vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = SIZES[device.type]
    config = LlamaConfig(vocab_size=vocab_size, num_key_value_heads=sizes["num_attention_heads"], **sizes)
    config._attn_implementation = "sdpa"
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.train()


def plain_step(device: torch.device, dtype: torch.dtype, settings: TrainSettings, tokens: torch.Tensor):
    model = model_for(device, dtype, SHAPES[device.type]["vocab_size"])
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay),
        lr=settings.lr,
        betas=settings.betas,
        fused=device.type == "cuda",
    )
    engine, *_ = deepspeed.initialize(
        model=model.to(device),
        optimizer=optimizer,
        config=deepspeed_settings(
            settings,
            num_workers=1,
            dtype=dtype,
            num_parameters=model.num_parameters(),
            largest=max(each.numel() for each in model.parameters()),
            on_gpu=device.type == "cuda",
        ),
        dist_init_required=False,
    )

    def step() -> None:
        loss = next_token_nll(engine(input_ids=tokens, use_cache=False).logits, tokens).mean()
        engine.backward(loss)
        engine.step()
        loss.item()

    return step


def drawn_step(device: torch.device, dtype: torch.dtype, settings: TrainSettings, tokens: torch.Tensor):
    shape = SHAPES[device.type]
    engine = Engine(model_for(device, dtype, shape["vocab_size"]), settings, device=device, dtype=dtype)
    positions = PositionSettings.model_validate({"preset": "e2llm", "max_scale": 20})
    made = iter(range(10**9))

    def step() -> None:
        drawn = draw(
            positions,
            seed=0,
            step=next(made),
            indices=range(len(tokens)),
            window=shape["window"],
            base_context_length=shape["window"],
        )
        engine.update(Batch(tokens, drawn), lr=settings.lr).mean().item()

    return step


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--pairs", type=int, default=60, help="pairs that are measured")
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parsed = arguments.parse_args()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    dist.init_process_group("nccl" if parsed.device == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    device, shape = torch.device(parsed.device), SHAPES[parsed.device]
    settings = TrainSettings(
        steps=1,
        batch_sequences=shape["batch_sequences"],
        micro_batch_sequences=shape["batch_sequences"],
        lr=1e-4,
        zero_stage=2,
    )
    dtype = precision_of(settings, device)
    tokens = torch.randint(0, shape["vocab_size"], (shape["batch_sequences"], shape["window"]), device=device)
    runs = alternate(
        drawn_step(device, dtype, settings, tokens),
        plain_step(device, dtype, settings, tokens),
        pairs=parsed.pairs,
        warmup=5,
    )
    goals = [
        goal("step with per-sequence draws / plain step, medians", runs["ratio_of_medians"], at_most=RATIO_AT_MOST)
    ]
    config = {
        "model": SIZES[parsed.device] | {"vocab_size": shape["vocab_size"]},
        "settings": settings.model_dump(mode="json"),
        "window": shape["window"],
        "dtype": str(dtype),
        "a": "e2ray engine, preset e2llm, max_scale 20, a fresh draw per row",
        "b": "transformers + DeepSpeed, no hook",
        "warmup": 5,
        "pairs": parsed.pairs,
        "threads": torch.get_num_threads(),
    }
    return finish("step", config=config, runs=runs, goals=goals, check=parsed.check)


if __name__ == "__main__":
    sys.exit(main())
