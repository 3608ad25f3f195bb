"""What does one GPU do with e2ray: right first, then how fast, against the same loop of plain transformers?

Parts in order of worth, each written as soon as it is done, into `results/gpu_<name>_<date>.json` or `--out`:

- attention: every implementation that can run here: which kernels the profiler sees, the proofs on it, and its loss
  against a CPU in float32.
- stages: ZeRO stages 1 to 3 in bf16: updates, a skipped one, a checkpoint written and read.
- layers: layers of 8B width with random weights: tokens/s, MFU, peak memory and idle share of a step, as it is, with
  half of the layers recomputed, compiled, with Liger's kernels, with the loss in the head, other attentions, two rows,
  draws; and the same loop of plain transformers.
- loss: one with logits and one with the head in it, at vocabularies of 128k and 152k.
- checkpoint: GB/s of writing and reading one.
- reading: a forward of 131k, 262k and 524k tokens.

DeepSpeed, flash-attn and Liger are used where they are; where not, a part says so. On a CPU, or with `--small`, the
same parts run in miniature, which shows that they run and nothing of speed.

    python jobs/bench_gpu.py --budget-s 480
    python jobs/bench_gpu.py --only attention layers --out /somewhere/gpu.json
"""

import argparse
import copy
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a source tree too

import os

import torch
import torch.distributed as dist
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from e2ray.config.base import SettingsError
from e2ray.config.model import LlamaModel
from e2ray.config.positions import PositionSettings
from e2ray.config.train import TrainSettings
from e2ray.core.attention import IMPLEMENTATIONS, document_lengths, is_flash, resolve_attention
from e2ray.core.flops import Work, gpu_of, utilisation, work_of
from e2ray.core.losses import head_nll, next_token_nll, token_nll
from e2ray.core.model import build_model, recompute
from e2ray.core.positions import draw
from e2ray.core.proof import prove, prove_apart
from e2ray.core.rope import RotaryHook

Found = dict[str, Any]
BF16 = torch.bfloat16
LARGE = {  # Llama-3-8B's width
    "hidden_size": 4096, "num_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "tie_embeddings": False, "base_frequency": 500_000.0, "base_context_length": 8192,
}  # fmt: skip
SMALL = {
    "hidden_size": 64, "num_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160, "base_context_length": 64,
}  # fmt: skip
ATTENTION_KERNELS = ("flash", "fmha", "attention", "cudnn", "efficient", "sdp")


class Bench:
    """What all parts share: the device, the sizes and the time that is left."""

    def __init__(self, *, small: bool, budget_s: float) -> None:
        """Measure on the GPU of this machine, where there is one; `small` in miniature."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.small = small or self.device.type == "cpu"
        self.ends = time.monotonic() + budget_s
        self.vocab_size = 1000 if self.small else 128_256
        self.window = 64 if self.small else 8192
        self.layers = 2 if self.small else 8
        self.steps = 3 if self.small else 6
        self.keep: Callable[[Found], object] = lambda found: None  # writes what a part has found so far
        self._made: dict[tuple[str, torch.dtype], Any] = {}

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self.ends - time.monotonic()

    def sizes(self, **changes: object) -> LlamaModel:
        """Return a model's sizes."""
        return LlamaModel.model_validate({**(SMALL if self.small else LARGE), "num_layers": self.layers, **changes})

    def built(self, settings: LlamaModel, dtype: torch.dtype = BF16, device: torch.device | None = None) -> Any:
        """Return a model with random weights; those of one size are made once, which on a CPU takes long."""
        where = device or self.device
        key = (settings.model_copy(update={"checkpoint_share": 0.0, "attention": "auto"}).model_dump_json(), dtype)
        if key not in self._made:
            plain = LlamaModel.model_validate_json(key[0])
            self._made = {key: build_model(plain, dtype=dtype, vocab_size=self.vocab_size, seed=1)}
        model = copy.deepcopy(self._made[key]).to(where)
        model.set_attn_implementation(resolve_attention(settings, where, dtype=dtype))
        if settings.checkpoint_share:
            recompute(model, settings.checkpoint_share)
        return model

    def tokens(self, rows: int, window: int | None = None, seed: int = 0) -> torch.Tensor:
        """Return random rows."""
        shape = (rows, window or self.window)
        return torch.randint(self.vocab_size, shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Give memory back and begin a new peak."""
        torch._dynamo.reset()
        gc.collect()  # engines hold themselves
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        """Return the most memory that tensors took, in GB of 10^9 bytes; None on a CPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None

    def seconds(self, work: Callable[[], object], times: int) -> list[float]:
        """Return the seconds of each of `times` calls, after one that is not counted."""
        work()
        found = []
        for _ in range(times):
            self.synchronize()
            began = time.perf_counter()
            work()
            self.synchronize()
            found.append(time.perf_counter() - began)
        return found


@contextmanager
def one_process() -> Iterator[None]:
    """Be the only rank of a group."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def tried(work: Callable[[], Found]) -> Found:
    """Return what was found, or why there is nothing; one variant that fails leaves the others."""
    try:
        return work()
    except SettingsError as error:
        return {"not there": str(error)}
    except ImportError as error:
        return {"not there": f"{error}"}
    except Exception as error:  # of a GPU, of a library, of a version: each its own
        return {"failed": f"{type(error).__name__}: {str(error)[:500]}"}


def kernels_of(bench: Bench, work: Callable[[], object]) -> tuple[list[str], float | None]:
    """Return the names of attention kernels that ran, and the share of the time that the GPU was idle."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])
    bench.synchronize()
    began = time.perf_counter()
    with profile(activities=activities) as found:
        work()
        bench.synchronize()
    wall = time.perf_counter() - began
    names, busy = set(), 0.0
    for event in found.key_averages():
        if any(word in event.key.lower() for word in ATTENTION_KERNELS):
            names.add(event.key[:120])
        if event.device_type == DeviceType.CUDA:  # else a kernel counts for its call, too
            busy += event.self_device_time_total / 1e6
    return sorted(names), (max(0.0, 1 - busy / wall) if bench.device.type == "cuda" else None)


# ---- attention --------------------------------------------------------------------------------------------------


def attention(bench: Bench) -> Found:
    """Try every implementation."""
    window = min(bench.window, 2048)
    tokens = bench.tokens(2, window)
    exact = bench.built(bench.sizes(num_layers=2, attention="eager"), torch.float32, torch.device("cpu"))
    with torch.no_grad():
        wanted = next_token_nll(exact(input_ids=tokens.cpu()[:, :256], use_cache=False).logits, tokens.cpu()[:, :256])
    found: Found = {"auto": resolve_attention(LlamaModel(), bench.device, dtype=BF16)}
    for name in IMPLEMENTATIONS:
        found[name] = tried(lambda name=name: _attention(bench, name, tokens, float(wanted.mean())))
        bench.forget()
    return found


def _attention(bench: Bench, name: str, tokens: torch.Tensor, wanted: float) -> Found:
    model = bench.built(bench.sizes(num_layers=2, attention=name)).train()
    flash = is_flash(model)
    hook = RotaryHook(model)

    def forward(ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        given: Found = {}
        if position_ids is not None:
            told = document_lengths(position_ids.cpu()) if flash else {}
            given = {k: v.to(bench.device) if isinstance(v, torch.Tensor) else v for k, v in told.items()}
            given["position_ids"] = position_ids
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False, **given).logits

    prove(forward, hook, model, vocab_size=bench.vocab_size, device=bench.device)
    prove_apart(forward, hook, model, vocab_size=bench.vocab_size, device=bench.device)
    short = tokens[:, :256]
    loss = float(next_token_nll(forward(short), short).mean())

    def step() -> None:
        logits = model(input_ids=tokens, use_cache=False).logits
        next_token_nll(logits, tokens).mean().backward()

    times = bench.seconds(step, 2)
    names, _ = kernels_of(bench, step)
    return {
        "proven": True,
        "loss": loss,
        "loss_on_cpu_fp32": wanted,
        "relative": abs(loss - wanted) / wanted,
        "step_s": times,
        "kernels": names,
    }


# ---- stages -----------------------------------------------------------------------------------------------------


def engine_of(bench: Bench, model: Any, **changes: object) -> Any:
    """Return an engine of a model; DeepSpeed has to be there."""
    from e2ray.train.engine import Engine

    options = {"steps": 100, "log_every": 1, "checkpoint_every": 1, "precision": "bf16", "zero_stage": 2, "lr": 1e-5}
    settings = TrainSettings.model_validate({**options, **changes})
    return Engine(model, settings, device=bench.device, dtype=BF16)


def rows_of(bench: Bench, rows: int, step: int = 0) -> Any:
    """Return rows with a draw each."""
    from e2ray.train.batch import Batch

    positions = PositionSettings.model_validate({"preset": "e2llm", "max_scale": 8})
    length = {"window": bench.window, "base_context_length": bench.window}
    drawn = draw(positions, seed=0, step=step, indices=range(rows), **length)
    return Batch(bench.tokens(rows, seed=step).cpu(), drawn)


def stages(bench: Bench) -> Found:
    """Train, skip, save and load in every stage."""
    return {f"stage {stage}": tried(lambda stage=stage: _stage(bench, stage)) for stage in (1, 2, 3)}


def _stage(bench: Bench, stage: int) -> Found:
    from e2ray.train import checkpoint

    changes = {"zero_stage": stage, "batch_sequences": 2, "micro_batch_sequences": 1}
    narrow = {} if bench.small else {"hidden_size": 2048, "num_heads": 16, "intermediate_size": 7168}  # quick to save
    built = bench.built(bench.sizes(num_layers=2, **narrow), device=torch.device("cpu")).train()
    engine = engine_of(bench, built, **changes)
    losses = [float(engine.update(rows_of(bench, 2, step), lr=1e-5).mean()) for step in range(2)]
    weight = next(parameter for _, parameter in engine.parameters())
    handle = weight.register_hook(lambda gradient: gradient * torch.inf)
    engine.update(rows_of(bench, 2, 2), lr=1e-5)
    handle.remove()
    skipped = engine.skipped
    with tempfile.TemporaryDirectory() as folder:
        facts = {"tokens": 0, "dtype": "bfloat16", "identity": {}, "skipped_steps": 1, "skipped_in_a_row": 0}
        saved = checkpoint.save(engine, Path(folder), step=3, facts=facts, keep=1)
        before = float(engine.update(rows_of(bench, 2, 3), lr=1e-5).mean())
        after_save = float(engine.update(rows_of(bench, 2, 4), lr=1e-5).mean())
        checkpoint.load(engine, saved, identity={})
    again = float(engine.update(rows_of(bench, 2, 3), lr=1e-5).mean())
    and_on = float(engine.update(rows_of(bench, 2, 4), lr=1e-5).mean())
    peak = bench.peak_gb()
    engine.hook.remove()
    engine.ds.destroy()
    bench.forget()
    return {
        "losses": losses,
        "a bad step is skipped": bool(skipped),
        "continued": [before, after_save],
        "loaded and continued": [again, and_on],
        "peak_gb": peak,
    }


# ---- layers -----------------------------------------------------------------------------------------------------


def layers(bench: Bench) -> Found:
    """Measure a step of several settings, the plain loop first and last."""
    flash = "flash_attention_2"
    variants: dict[str, tuple[Found, Found]] = {
        "as it is": ({}, {}),
        "half recomputed": ({"checkpoint_share": 0.5}, {}),
        "all recomputed": ({"checkpoint_share": 1.0}, {}),
        "compiled": ({}, {"compile": True}),
        "compiled, half recomputed": ({"checkpoint_share": 0.5}, {"compile": True}),
        "loss in the head": ({}, {"fused_loss": True}),
        "compiled, loss in the head": ({}, {"compile": True, "fused_loss": True}),
        "liger": ({"liger": True}, {}),
        flash: ({"attention": flash}, {}),
        "compiled, " + flash: ({"attention": flash}, {"compile": True}),
        "two rows": ({}, {"micro_batch_sequences": 2}),
        "compiled, two rows, loss in the head": ({}, {"compile": True, "fused_loss": True, "micro_batch_sequences": 2}),
    }
    found: Found = {"plain transformers": tried(lambda: _plain(bench))}
    for name, (model, train) in variants.items():
        if bench.left_s < 30:
            found[name] = {"not there": "no time left"}
            continue
        found[name] = tried(lambda model=model, train=train: _ours(bench, model, train))
        bench.forget()
        bench.keep(found)
    found["draws and methods"] = tried(lambda: _draws(bench))
    found["plain transformers, again"] = tried(lambda: _plain(bench))
    return found


def _figures(bench: Bench, step: Callable[[], object], tokens: int, work: Work) -> Found:
    """Return the figures of a step of so many tokens."""
    seconds = bench.seconds(step, bench.steps)
    names, idle = kernels_of(bench, step)
    speed = tokens / statistics.median(seconds)
    return {
        "step_s": seconds,
        "tokens_per_second": speed,
        "mfu": utilisation(speed * work.flops(bench.window), bench.device),
        "peak_gb": bench.peak_gb(),
        "idle_share": idle,
        "attention": names,
    }


def _ours(bench: Bench, model: Found, train: Found) -> Found:
    from e2ray.core.liger import use_liger

    bench.forget()
    attention = resolve_attention(LlamaModel(attention=model.get("attention", "auto")), bench.device, dtype=BF16)
    plain = {"checkpoint_share": model.get("checkpoint_share", 0.0)}
    built = bench.built(bench.sizes(**plain), device=torch.device("cpu")).train()
    built.set_attn_implementation(attention)  # it was built where no GPU is
    if model.get("liger"):
        use_liger(built, device=bench.device)
    rows = int(train.get("micro_batch_sequences", 1))
    work = work_of(built)
    engine = engine_of(bench, built, batch_sequences=rows, **{"micro_batch_sequences": rows, **train})
    batches = [rows_of(bench, rows, step) for step in range(bench.steps)]
    count = iter(range(10**9))

    def step() -> None:
        engine.update(batches[next(count) % len(batches)], lr=1e-5)

    found = _figures(bench, step, rows * bench.window, work)
    engine.hook.remove()
    engine.ds.destroy()
    return found


def _plain(bench: Bench) -> Found:
    """Return the figures of the loop that a user of transformers would write: bf16 weights, its own loss, AdamW."""
    bench.forget()
    model = bench.built(bench.sizes()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=bench.device.type == "cuda")
    tokens = bench.tokens(1)

    def step() -> None:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return _figures(bench, step, tokens.numel(), work_of(model))


def _draws(bench: Bench) -> Found:
    """Return the seconds of a step under each method against scale 1 without one, in turn."""
    from e2ray.core.methods.registry import method_of
    from e2ray.train.batch import Batch

    bench.forget()
    built = bench.built(bench.sizes(), device=torch.device("cpu")).train()
    engine = engine_of(bench, built, batch_sequences=1, micro_batch_sequences=1)
    plain = Batch(bench.tokens(1).cpu(), rows_of(bench, 1).draw)
    still = torch.zeros_like(plain.draw.offsets)
    hooks = {"none": engine.hook}
    for kind in ("linear", "yarn", "ntk"):
        positions = PositionSettings.model_validate({"preset": "e2llm", "max_scale": 8, "method": {"kind": kind}})
        hooks[kind] = RotaryHook(engine.ds.module, method_of(positions.method), base_context_length=bench.window)
    seconds: dict[str, list[float]] = {name: [] for name in hooks}
    engine.update(plain, lr=1e-5)
    for number in range(bench.steps):
        for name in list(hooks) if number % 2 else list(hooks)[::-1]:
            engine.hook = hooks[name]
            batch = rows_of(bench, 1, number)
            if name == "none":
                batch = Batch(batch.tokens, type(batch.draw)(torch.ones(1), still))
            bench.synchronize()
            began = time.perf_counter()
            engine.update(batch, lr=1e-5)
            bench.synchronize()
            seconds[name].append(time.perf_counter() - began)
            hooks[name].clear()
    engine.ds.destroy()
    for hook in hooks.values():
        hook.remove()
    middle = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    return {"step_s": seconds, "against_none": {name: value / middle["none"] for name, value in middle.items()}}


# ---- loss, checkpoint, reading ----------------------------------------------------------------------------------


def loss(bench: Bench) -> Found:
    """Measure the loss alone, its backward pass included."""
    ways: dict[str, Callable[..., torch.Tensor]] = {
        "logits": lambda hidden, weight, tokens: token_nll(hidden @ weight.t(), tokens),
        "in the head": lambda hidden, weight, tokens: head_nll(hidden, weight, None, tokens),
        "torch, float32": lambda hidden, weight, tokens: torch.nn.functional.cross_entropy(
            (hidden @ weight.t())[0, :-1].float(), tokens[0, 1:], reduction="none"
        ),
    }
    return {
        f"{name}, {vocab_size}": tried(lambda way=way, vocab_size=vocab_size: _loss(bench, way, vocab_size))
        for vocab_size in ((1000, 1500) if bench.small else (128_256, 151_936))
        for name, way in ways.items()
    }


def _loss(bench: Bench, way: Callable[..., torch.Tensor], vocab_size: int) -> Found:
    bench.forget()
    width, rows = (64, 64) if bench.small else (4096, 8192)
    hidden = torch.randn(1, rows, width, device=bench.device, dtype=BF16, requires_grad=True)
    weight = (torch.randn(vocab_size, width, device=bench.device) * 0.02).to(BF16).requires_grad_()
    tokens = torch.randint(vocab_size, (1, rows), device=bench.device)

    def step() -> None:
        hidden.grad = weight.grad = None
        way(hidden, weight, tokens).mean().backward()

    return {"step_s": bench.seconds(step, bench.steps), "peak_gb": bench.peak_gb()}


def saving(bench: Bench) -> Found:
    """Measure how fast a checkpoint is written and read."""
    return {"of two layers": tried(lambda: _saving(bench))}


def _saving(bench: Bench) -> Found:
    from e2ray.train import checkpoint

    bench.forget()
    built = bench.built(bench.sizes(num_layers=2), device=torch.device("cpu")).train()
    engine = engine_of(bench, built, batch_sequences=1, micro_batch_sequences=1)
    engine.update(rows_of(bench, 1), lr=1e-5)
    with tempfile.TemporaryDirectory() as folder:
        facts = {"tokens": 0, "dtype": "bfloat16", "identity": {}, "skipped_steps": 0, "skipped_in_a_row": 0}
        began = time.perf_counter()
        saved = checkpoint.save(engine, Path(folder), step=1, facts=facts, keep=1)
        written = time.perf_counter() - began
        size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
        began = time.perf_counter()
        checkpoint.load(engine, saved, identity={})
        read = time.perf_counter() - began
    engine.hook.remove()
    engine.ds.destroy()
    return {"bytes": size, "write_gb_s": size / written / 1e9, "read_gb_s": size / read / 1e9}


def reading(bench: Bench) -> Found:
    """Measure a forward of long texts, without a gradient, logits of the last tokens alone."""
    found: Found = {}
    model = bench.built(bench.sizes()).eval()
    for window in (64, 128, 256) if bench.small else (131_072, 262_144, 524_288):
        bench.forget()
        tokens = bench.tokens(1, window)

        def step(tokens: torch.Tensor = tokens) -> None:
            with torch.no_grad():
                model(input_ids=tokens, use_cache=False, logits_to_keep=256)

        found[str(window)] = tried(lambda step=step: {"seconds": bench.seconds(step, 1), "peak_gb": bench.peak_gb()})
    return found


PARTS: dict[str, Callable[[Bench], Found]] = {
    "attention": attention,
    "stages": stages,
    "layers": layers,
    "loss": loss,
    "checkpoint": saving,
    "reading": reading,
}


# ---- the whole --------------------------------------------------------------------------------------------------


def facts(bench: Bench) -> Found:
    """Return what this was measured on."""
    from e2ray.train.environment import environment

    found = environment().model_dump(mode="json")
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else "cpu"
    known = gpu_of(name)
    return {
        "commit": found["commit"],
        "hardware": found["hardware"],
        "versions": found["versions"] | {"python": found["python"], "cuda": torch.version.cuda},
        "device": name,
        "peak_tflops": known and known.tflops,
    }


def summary(runs: Found) -> Iterator[str]:
    """Yield a line for each figure that matters."""
    for part, found in runs.items():
        for name, entry in found.items():
            if not isinstance(entry, dict):
                yield f"{part:11} {name}: {_told(entry)}"
            elif why := entry.get("not there") or entry.get("failed"):
                yield f"{part:11} {name}: {'FAILED' if 'failed' in entry else 'not there'}: {why}"
            else:
                told = [f"{key} {text}" for key, value in entry.items() if (text := _told(value))]
                yield f"{part:11} {name}: {', '.join(told)}"


def _told(value: object) -> str:
    """Return a figure in words, the median of a list; nothing where there is none."""
    match value:
        case float():
            return f"{value:.4g}"
        case [float(), *_]:
            return f"{statistics.median(value):.4g}"
        case dict():
            return " ".join(f"{key} {_told(each)}" for key, each in value.items())
        case None | []:
            return ""
        case list():
            return "; ".join(map(str, value))
    return str(value)


def goals(runs: Found) -> list[Found]:
    """Return what was wanted of a card and what was found, for the parts that were done."""
    done = runs.get("layers", {})
    speeds = {name: entry["tokens_per_second"] for name, entry in done.items() if "tokens_per_second" in entry}
    shares = [entry["mfu"] for entry in done.values() if entry.get("mfu") is not None]
    plain = [speed for name, speed in speeds.items() if name.startswith("plain")]
    ours = [speed for name, speed in speeds.items() if not name.startswith("plain")]
    found: list[Found] = []

    def add(name: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
        met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        wanted = f">= {at_least}" if at_least is not None else f"<= {at_most}"
        found.append({"name": name, "value": value, "goal": wanted, "met": met})

    if plain and ours:
        add("tokens/s, our best / plain transformers", max(ours) / max(plain), at_least=1.25)
    if shares:
        add("MFU at 8B width, best", max(shares), at_least=0.4)
    if ratios := done.get("draws and methods", {}).get("against_none"):
        add("a step with draws and methods / without", max(ratios.values()), at_most=1.005)
    return found


def main() -> int:
    """Measure and write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--budget-s", type=float, default=480, help="seconds in all (480)")
    arguments.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to do")
    arguments.add_argument("--small", action="store_true", help="in miniature, as on a CPU")
    arguments.add_argument("--out", type=Path, help="file; default: results/gpu_<name>_<date>.json")
    parsed = arguments.parse_args()
    bench = Bench(small=parsed.small, budget_s=parsed.budget_s)
    known = facts(bench)
    name = str(known["device"]).replace(" ", "-").lower()
    out = parsed.out or ROOT / "jobs" / "results" / f"gpu_{name}_{datetime.now(UTC):%Y-%m-%d}.json"
    command = " ".join(["python", "jobs/bench_gpu.py", *sys.argv[1:]])
    config = {"parts": parsed.only, "small": bench.small, "layers": bench.layers, "window": bench.window}
    runs: Found = {}
    reached: list[Found] = []
    if bench.small:  # what is compiled is traced, and no code is made of it, which takes longer than all the rest
        torch.compile = partial(torch.compile, backend="aot_eager")

    def write(part: str, found: Found) -> None:
        runs[part] = found
        reached[:] = [] if bench.small else goals(runs)
        result = known | {"command": command, "config": config, "runs": runs, "goals": reached}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1))

    with one_process():
        for part in parsed.only:
            if bench.left_s < 10:
                runs[part] = {"": {"not there": "no time left"}}
            else:
                began = time.perf_counter()
                bench.keep = partial(write, part)
                runs[part] = PARTS[part](bench)
                print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)
            bench.forget()
            write(part, runs[part])
    print("\n".join(summary(runs)))
    for entry in reached:
        print(f"{'met   ' if entry['met'] else 'MISSED'}  {entry['name']}: {entry['value']:.4g} ({entry['goal']})")
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
