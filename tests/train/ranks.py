"""Training on several ranks for tests, in a process of its own that loads the libraries for all of them.

Arguments: a JSON list of worlds, one after the other, each [ranks, phases], and a folder for the results. A phase
builds a new engine, loads a checkpoint if it names one, makes updates and saves if it is told to. `spoiled` names
steps that go wrong on one rank: {step: [rank, how]}, and `without` steps that are left out. Rank 0 of the n-th world
writes the losses of each phase to n.json; of a phase with `gradient` how far the first one is from the sum in float32.
"""

import faulthandler
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from spoiling import spoiled
from transformers import LlamaConfig, LlamaForCausalLM

from e2ray.config.model import LoraSettings
from e2ray.config.positions import PositionSettings
from e2ray.config.train import TrainSettings
from e2ray.core.adapters import with_adapters
from e2ray.core.losses import next_token_nll
from e2ray.core.model import prove
from e2ray.core.positions import Draw, draw
from e2ray.train import checkpoint
from e2ray.train.batch import Batch
from e2ray.train.engine import Engine
from e2ray.train.loop import Skips
from e2ray.train.parameters import precision_of
from e2ray.train.schedule import learning_rate

WINDOW, BATCH, VOCABULARY = 32, 8, 101
CPU = torch.device("cpu")
IDENTITY = {"seed": 0}


def model_for(phase, dtype):
    # Odd sizes: under ZeRO-3 no parameter divides evenly by the ranks.
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        intermediate_size=77,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=phase.get("tied", True),
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    if phase.get("lora"):
        model = with_adapters(model, LoraSettings(rank=3))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.train()


def engine_for(phase):
    settings = TrainSettings(
        steps=8,
        batch_sequences=BATCH,
        micro_batch_sequences=phase.get("micro", 2),
        lr=1e-2,
        weight_decay=0.1,
        zero_stage=phase["stage"],
        offload=phase.get("offload", "none"),
        precision=phase.get("precision", "fp32"),
        reduce_dtype=phase.get("reduced", "fp32"),
        clip_norm=phase.get("clip", 1.0),
        warmup_steps=2,
        log_every=1,
        checkpoint_every=1,
    )
    dtype = precision_of(settings, CPU)
    return Engine(model_for(phase, dtype), settings, device=CPU, dtype=dtype), settings


def gradient_error(engine, phase):
    """Make one update and return how far its gradient is, relatively, from the sum of the rows' own in float64."""
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, WINDOW)))
    alone = model_for(phase, precision_of(engine.settings, CPU))
    wanted = dict.fromkeys(engine.names.values(), 0.0)
    for row in rows.split(1):
        alone.zero_grad()
        next_token_nll(alone(input_ids=row, use_cache=False).logits, row).mean().backward()
        for name, parameter in alone.named_parameters():
            wanted[name] = wanted[name] + parameter.grad.double() / BATCH
    mine = rows.chunk(engine.num_workers)[engine.rank]
    engine.update(Batch(mine, Draw(torch.ones(len(mine)), torch.zeros_like(mine))), lr=1e-5)
    found = {state.name: state.exp_avg.double() / (1 - engine.settings.betas[0]) for state in engine.states()}
    assert found.keys() == wanted.keys()
    apart = torch.nn.utils.get_total_norm([found[name] - wanted[name] for name in wanted])
    return float(apart / torch.nn.utils.get_total_norm(list(wanted.values())))


def updates(engine, settings, phase):
    positions = PositionSettings.model_validate({"preset": "e2llm", "max_scale": 8})
    share = BATCH // engine.num_workers
    mine = range(engine.rank * share, (engine.rank + 1) * share)
    losses = []
    bad = phase.get("spoiled", {})
    skips = Skips(*phase.get("skipped", ()))
    for step in range(phase["start"], phase["stop"]):
        if step in phase.get("without", ()):
            continue
        rows = np.random.default_rng(step).integers(0, VOCABULARY, (BATCH, WINDOW))[mine.start : mine.stop]
        drawn = draw(positions, seed=0, step=step, indices=mine, window=WINDOW, base_context_length=WINDOW)
        rank, how = bad.get(str(step), (None, None))
        with spoiled(engine.ds.module, how) if rank == engine.rank else nullcontext():
            nll = engine.update(Batch(torch.from_numpy(rows), drawn), lr=learning_rate(settings, step))
        loss = engine.total(nll.double().sum()).item() / BATCH
        skips.count(engine.skipped)
        losses.append("skipped" if engine.skipped else [loss, engine.grad_norm])
    return losses, skips


def train(rank, num_ranks, phases, results):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    meeting = f"file://{results.with_suffix('.meeting')}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_ranks)
    torch.set_num_threads(1)
    found = []
    for phase in phases:
        engine, settings = engine_for(phase)
        prove(engine.logits, engine.hook, engine.ds.module, vocab_size=VOCABULARY, device=CPU, tokens=24)
        if "load" in phase:
            assert checkpoint.load(engine, Path(phase["load"]), identity=IDENTITY).step == phase["start"]
        if "gradient" in phase:
            found.append(gradient_error(engine, phase))
            continue
        losses, skips = updates(engine, settings, phase)
        if "save" in phase:
            folder = Path(phase["save"])
            facts = {"tokens": 0, "dtype": "float32", "skipped_steps": skips.total, "identity": IDENTITY}
            checkpoint.save(engine, folder, step=phase["stop"], facts=facts, keep=2)
        found.append(losses)
    if rank == 0:
        results.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    faulthandler.enable()
    for number, (num_ranks, phases) in enumerate(json.loads(sys.argv[1])):
        told = num_ranks, phases, Path(sys.argv[2], f"{number}.json")
        torch.multiprocessing.start_processes(train, told, nprocs=num_ranks, start_method="fork")
