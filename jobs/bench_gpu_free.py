"""What can be known of training on GPUs without one: are sums exact, plans right, and compiled layers one graph?

- sums: gradients in bf16 against a sum in float64, on two and four ranks; losses on one, two and four ranks; bytes and
  seconds of a reduction in fp32 and in bf16.
- plan: what a step takes by plan against the peak of a process. Memory that the C library keeps after it was freed is
  no part of a plan, so that it is told to keep none; what it keeps otherwise stands beside.
- compile: graphs, breaks and recompilations over draws of three methods, and time against layers as they are.
- step: an update, against the same of an earlier checkout, in processes of their own, A B B A.

    python jobs/bench_gpu_free.py --before ../earlier --check
    python jobs/bench_gpu_free.py --only sums plan compile
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if "--tree" not in sys.argv:  # a child may run the code of another checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist

PARTS = ("sums", "plan", "compile", "step")
CPU = torch.device("cpu")
STAGES: list[dict[str, Any]] = [
    {"zero_stage": 1}, {"zero_stage": 1, "offload": "optimizer"}, {"zero_stage": 2},
    {"zero_stage": 2, "offload": "optimizer"}, {"zero_stage": 3}, {"zero_stage": 3, "offload": "all"},
]  # fmt: skip
PLANNED: list[dict[str, Any]] = [
    {"zero_stage": 0}, {"zero_stage": 2}, {"zero_stage": 3},
    {"zero_stage": 1, "precision": "bf16"}, {"zero_stage": 2, "precision": "bf16"},
    {"zero_stage": 3, "precision": "bf16", "offload": "all", "rows": 1},
    {"zero_stage": 2, "precision": "bf16", "offload": "optimizer", "rows": 1},
    {"zero_stage": 0, "rows": 16, "checkpoint_share": 1.0}, {"zero_stage": 0, "rows": 16, "checkpoint_share": 0.5},
    {"zero_stage": 2, "precision": "bf16", "lora": {"rank": 8}}, {"zero_stage": 0, "attention": "eager"},
]  # fmt: skip
SUM_ERROR, LOSS_ERROR, PLAN_ERROR, STEP_RATIO = 1e-6, 1e-5, 0.15, 1.02
KEEPS_NOTHING = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes from which glibc gives memory back at once


# ---- children ---------------------------------------------------------------------------------------------------


def llama(**changes: Any) -> Any:
    from e2ray.config.model import LlamaModel

    sizes = {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "num_key_value_heads": 2, "intermediate_size": 352}
    return LlamaModel(**(sizes | changes))


def settings_of(**changes: Any) -> Any:
    from e2ray.config.train import TrainSettings

    return TrainSettings(**({"steps": 1, "log_every": 1, "checkpoint_every": 1} | changes))


def engine_of(model: Any, settings: Any, vocab_size: int, method: Any = None) -> Any:
    from e2ray.core.model import build_model
    from e2ray.train.engine import Engine
    from e2ray.train.parameters import precision_of

    dtype = precision_of(settings, CPU)
    built = build_model(model, dtype=dtype, vocab_size=vocab_size, seed=1).train()
    length = model.base_context_length
    return Engine(built, settings, device=CPU, dtype=dtype, method=method, base_context_length=length)


def plain_batch(tokens: torch.Tensor) -> Any:
    from e2ray.core.positions import Draw
    from e2ray.train.batch import Batch

    return Batch(tokens, Draw(torch.ones(len(tokens)), torch.zeros_like(tokens)))


def rows_of(step: int, rows: int, window: int, vocab_size: int) -> torch.Tensor:
    return torch.randint(vocab_size, (rows, window), generator=torch.Generator().manual_seed(step))


def gradient_error(stage: dict[str, Any]) -> float:
    """Return how far one update's gradient is, relatively, from the sum of its rows' own in float64."""
    from e2ray.core.losses import next_token_nll
    from e2ray.core.model import build_model

    rows, vocab = rows_of(0, 32, 64, 500), 500
    settings = settings_of(**stage, precision="bf16", batch_sequences=32, micro_batch_sequences=1, clip_norm=0.0)
    engine = engine_of(llama(), settings, vocab)
    alone = build_model(llama(), dtype=torch.bfloat16, vocab_size=vocab, seed=1).train()
    wanted = {name: torch.zeros(each.shape, dtype=torch.float64) for name, each in alone.named_parameters()}
    for row in rows.split(1):
        alone.zero_grad()
        next_token_nll(alone(input_ids=row, use_cache=False).logits, row).mean().backward()
        for name, parameter in alone.named_parameters():
            assert parameter.grad is not None
            wanted[name] += parameter.grad.double() / len(rows)
    engine.update(plain_batch(rows.chunk(engine.num_workers)[engine.rank]), lr=1e-5)
    found = {state.name: state.exp_avg.double() / (1 - settings.betas[0]) for state in engine.states()}
    apart = torch.nn.utils.get_total_norm([found[name] - wanted[name] for name in wanted])
    return float(apart / torch.nn.utils.get_total_norm(list(wanted.values())))


def losses(stage: dict[str, Any]) -> list[float]:
    """Return the losses of 20 updates of 16 rows, four in a forward."""
    settings = settings_of(**stage, precision="bf16", batch_sequences=16, micro_batch_sequences=4)
    engine = engine_of(llama(), settings, 500)
    found = []
    for step in range(20):
        rows = (rows_of(0, 16, 64, 500) + step % 4).remainder(500)  # text that can be learnt
        nll = engine.update(plain_batch(rows.chunk(engine.num_workers)[engine.rank]), lr=1e-3)
        found.append(float(engine.total(nll.double().sum())) / 16)
    return found


@contextmanager
def counted_bytes() -> Iterator[list[int]]:
    """Count the bytes that a rank hands to all-reduce, reduce and reduce-scatter within the block."""
    counts = [0]
    names = ("all_reduce", "reduce", "reduce_scatter_tensor", "reduce_scatter")
    before = {name: getattr(dist, name) for name in names}

    def counting(function: Any) -> Any:
        def call(*arguments: Any, **given: Any) -> Any:
            first = arguments[0] if arguments else given.get("tensor", given.get("output"))
            told = given.get("input", first)
            counts[0] += told.numel() * told.element_size() if isinstance(told, torch.Tensor) else 0
            return function(*arguments, **given)

        return call

    for name in names:
        setattr(dist, name, counting(before[name]))
    try:
        yield counts
    finally:
        for name, function in before.items():
            setattr(dist, name, function)


def reduction() -> dict[str, Any]:
    """Return bytes and seconds of an update of two micro batches whose gradients are reduced in fp32 and in bf16."""
    model = llama(hidden_size=512, num_layers=6, num_heads=8, intermediate_size=1408, base_context_length=64)
    engines = {}
    for dtype in ("fp32", "bf16"):
        settings = settings_of(
            zero_stage=2, precision="bf16", reduce_dtype=dtype, batch_sequences=8, micro_batch_sequences=2
        )
        engines[dtype] = engine_of(model, settings, 2000)
    rows = plain_batch(rows_of(0, 8, 64, 2000).chunk(engines["fp32"].num_workers)[engines["fp32"].rank])
    found: dict[str, Any] = {"trained": sum(p.numel() for _, p in engines["fp32"].parameters())}
    for dtype, engine in engines.items():
        engine.update(rows, lr=1e-5)
        with counted_bytes() as counts:
            engine.update(rows, lr=1e-5)
        found[f"{dtype}_bytes"] = counts[0]
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for pair in range(10):
        for dtype in ("fp32", "bf16") if pair % 2 == 0 else ("bf16", "fp32"):
            dist.barrier()
            began = time.perf_counter()
            engines[dtype].update(rows, lr=1e-5)
            dist.barrier()
            seconds[dtype].append(time.perf_counter() - began)
    return found | {f"{dtype}_s": values for dtype, values in seconds.items()}


def on_rank(rank: int, num_ranks: int, out: str) -> None:
    """Do what the part `sums` asks of one rank; the first writes what was found."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    dist.init_process_group("gloo", init_method=f"file://{out}.meeting", rank=rank, world_size=num_ranks)
    torch.set_num_threads(1)
    names = [json.dumps(stage) for stage in STAGES]
    found: dict[str, Any] = {"gradients": dict(zip(names, map(gradient_error, STAGES), strict=True))}
    found["losses"] = {json.dumps({"zero_stage": stage}): losses({"zero_stage": stage}) for stage in (1, 2, 3)}
    if num_ranks == 2:
        found["reduction"] = reduction()
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


def alone() -> None:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def status(name: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peak(case: dict[str, Any]) -> dict[str, Any]:
    """Return the peak of two updates in this process, and what was planned for it."""
    from e2ray.core.model import build_model
    from e2ray.train import activations
    from e2ray.train.memory import Sizes, memory_of
    from e2ray.train.parameters import precision_of

    rows, window, vocab, case = case.pop("rows", 4), 512, 8192, dict(case)
    parts = {name: case.pop(name) for name in ("checkpoint_share", "attention", "lora") if name in case}
    model = llama(
        hidden_size=512, num_layers=8, num_heads=8, num_key_value_heads=4, intermediate_size=1536,
        base_context_length=window, **parts,
    )  # fmt: skip
    settings = settings_of(batch_sequences=2 * rows, micro_batch_sequences=rows, **case)
    dtype = precision_of(settings, CPU)
    attention = "eager" if model.attention == "eager" else activations.MASKLESS
    planned = activations.activations(model, activations.Step(rows, window, dtype, attention, vocab))
    small = llama(hidden_size=64, num_layers=1, intermediate_size=64)
    warm = build_model(small, dtype=dtype, vocab_size=64).train()
    warm(input_ids=torch.zeros(2, window, dtype=torch.int64), use_cache=False).logits.float().sum().backward()
    del warm
    gc.collect()
    before = status("VmRSS")
    engine = engine_of(model, settings, vocab)
    every = [each.numel() for each in engine.ds.module.parameters()]
    trained = [getattr(each, "ds_numel", each.numel()) for _, each in engine.parameters()]
    total = sum(
        getattr(each, "ds_numel", count) for each, count in zip(engine.ds.module.parameters(), every, strict=True)
    )
    batch = plain_batch(rows_of(0, 2 * rows, window, vocab))
    engine.update(batch, lr=1e-5)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    engine.update(batch, lr=1e-5)
    engine.update(batch, lr=1e-5)
    found = status("VmHWM") - before
    sizes = Sizes(total, sum(trained), max(trained))
    need = memory_of(settings, sizes, planned, num_workers=1, dtype=dtype, on_gpu=False)
    return {"peak": found, "planned": need.on_device, "parts": dict(need.device)}


def compiled() -> dict[str, Any]:
    """Return what compiling does over 50 draws of three methods, and the seconds of updates with and without it."""
    from torch._dynamo.utils import counters

    from e2ray.config.positions import PositionSettings
    from e2ray.core.methods.registry import method_of
    from e2ray.core.positions import draw
    from e2ray.train.batch import Batch

    rows, window, vocab = 4, 256, 2000
    found: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {"compiled": [], "plain": []}
    for share in (0.0, 1.0):
        for kind in ("linear", "yarn", "ramp_power"):
            positions = PositionSettings.model_validate({"preset": "pose", "max_scale": 8, "method": {"kind": kind}})
            model = llama(hidden_size=256, num_layers=4, base_context_length=window, checkpoint_share=share)
            engines = {}
            for name in seconds:
                settings = settings_of(batch_sequences=rows, micro_batch_sequences=rows, compile=name == "compiled")
                engines[name] = engine_of(model, settings, vocab, method_of(positions.method))
            counters.clear()
            apart = 0.0
            for step in range(50):
                drawn = draw(
                    positions, seed=0, step=step, indices=range(rows), window=window, base_context_length=window
                )
                batch = Batch(rows_of(step, rows, window, vocab), drawn)
                nll = {}
                for name in seconds if step % 2 else reversed(seconds):
                    began = time.perf_counter()
                    nll[name] = engines[name].update(batch, lr=1e-4)
                    if step > 1 and not share:
                        seconds[name].append(time.perf_counter() - began)
                apart = max(apart, float((nll["compiled"] - nll["plain"]).abs().max()))
            found[f"{kind}, {share:.0%} recomputed"] = {
                "graphs": counters["stats"]["unique_graphs"],
                "breaks": sum(counters["graph_break"].values()),
                "recompilations": sum(counters["recompiles"].values()),
                "nll_apart": apart,
            }
            for engine in engines.values():
                engine.hook.remove()
                engine.ds.destroy()
        torch._dynamo.reset()
    return {"counts": found, **{f"{name}_s": values for name, values in seconds.items()}}


def steps() -> list[float]:
    """Return the seconds of 40 updates, those of the first five left out."""
    from e2ray.config.positions import PositionSettings
    from e2ray.core.positions import draw
    from e2ray.train.batch import Batch

    rows, window, vocab = 8, 256, 4096
    model = llama(hidden_size=192, num_layers=4, num_heads=6, num_key_value_heads=6, intermediate_size=512)
    engine = engine_of(model, settings_of(batch_sequences=rows, micro_batch_sequences=rows, zero_stage=2), vocab)
    positions = PositionSettings.model_validate({"preset": "e2llm", "max_scale": 20})
    seconds = []
    for step in range(45):
        began = time.perf_counter()
        drawn = draw(positions, seed=0, step=step, indices=range(rows), window=window, base_context_length=window)
        engine.update(Batch(rows_of(step, rows, window, vocab), drawn), lr=1e-4).mean().item()
        seconds.append(time.perf_counter() - began)
    return seconds[5:]


def child(part: str, told: str, out: str) -> None:
    """Do one part in this process and write what was found."""
    if part == "sums":
        from e2ray.train import engine  # noqa: F401 - loaded once, before the ranks part

        torch.multiprocessing.start_processes(on_rank, (int(told), out), nprocs=int(told), start_method="fork")
        return
    alone()
    torch.set_num_threads(2)
    found = {"plan": lambda: peak(json.loads(told)), "compile": compiled, "step": steps}[part]()
    Path(out).write_text(json.dumps(found))


# ---- parts ------------------------------------------------------------------------------------------------------


def ask(part: str, told: str, *, tree: Path | None = None, environment: dict[str, str] | None = None) -> Any:
    """Do one part in a process of its own, with the code of a checkout, and return what was found."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        root = tree or Path(__file__).resolve().parents[1]
        command = [sys.executable, str(Path(__file__).resolve()), "--tree", part, told, str(out)]
        known = os.environ | {"PYTHONPATH": str(root)} | (environment or {})
        done = subprocess.run(command, env=known, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{part} {told}: {done.stdout[-1000:]}{done.stderr[-3000:]}")
        return json.loads(out.read_text())


def ask_sums(before: Path | None) -> tuple[Any, list[dict[str, Any]]]:
    found = {ranks: ask("sums", str(ranks)) for ranks in (1, 2, 4)}
    error = max(error for ranks in (2, 4) for error in found[ranks]["gradients"].values())
    one = found[1]["losses"]
    apart = max(
        abs(mine - its) / its
        for ranks in (2, 4)
        for stage, values in found[ranks]["losses"].items()
        for mine, its in zip(values, one[stage], strict=True)
    )
    price = found[2]["reduction"]
    medians = {dtype: statistics.median(price[f"{dtype}_s"]) for dtype in ("fp32", "bf16")}
    print(
        f"reduction: {price['fp32_bytes']:,} bytes in fp32, {price['bf16_bytes']:,} in bf16; seconds "
        f"{medians['fp32']:.3f} and {medians['bf16']:.3f}, {medians['fp32'] / medians['bf16']:.2f} times"
    )
    return found, [
        goal("gradients in bf16 on 2 and 4 ranks against a float64 sum, relative", error, at_most=SUM_ERROR),
        goal("losses of 20 steps in bf16 on 2 and 4 ranks against 1, relative", apart, at_most=LOSS_ERROR),
    ]


def ask_plan(before: Path | None) -> tuple[Any, list[dict[str, Any]]]:
    found = []
    for case in PLANNED:
        told = json.dumps(case)
        entry = ask("plan", told, environment=KEEPS_NOTHING)
        entry |= {"case": case, "peak_as_the_library_keeps": ask("plan", told)["peak"]}
        found.append(entry)
        print(f"{told}: planned / peak {entry['planned'] / entry['peak']:.3f}")
    worst = max(abs(entry["planned"] / entry["peak"] - 1) for entry in found)
    return found, [goal(f"planned against peak memory, {len(found)} settings, worst", worst, at_most=PLAN_ERROR)]


def ask_compile(before: Path | None) -> tuple[Any, list[dict[str, Any]]]:
    found = ask("compile", "")
    counts = found["counts"].values()
    medians = {name: statistics.median(found[f"{name}_s"]) for name in ("compiled", "plain")}
    print(f"a compiled step takes {medians['compiled'] / medians['plain']:.3f} of one that is not")
    first = next(iter(counts))
    return found, [
        goal("graphs of the first method", first["graphs"], at_most=1),
        goal("graphs of further methods", max(each["graphs"] for each in list(counts)[1:3]), at_most=0),
        goal("graph breaks", sum(each["breaks"] for each in counts), at_most=0),
        goal("recompilations", sum(each["recompilations"] for each in counts), at_most=0),
    ]


def ask_step(before: Path | None) -> tuple[Any, list[dict[str, Any]]]:
    if before is None:
        raise SystemExit("--before: name a checkout to compare a step with, or leave the part step out with --only")
    here = Path(__file__).resolve().parents[1]
    seconds: dict[str, list[list[float]]] = {"now": [], "before": []}
    for pair in range(6):
        for name in ("now", "before") if pair % 2 == 0 else ("before", "now"):
            seconds[name].append(ask("step", "", tree=here if name == "now" else before))
    commit = subprocess.run(
        ["git", "-C", str(before), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    medians = {name: statistics.median(each for run in runs for each in run) for name, runs in seconds.items()}
    ratio = medians["now"] / medians["before"]
    return {"commit_before": commit, **seconds}, [
        goal("a step against one of before, medians", ratio, at_most=STEP_RATIO)
    ]


def main() -> int:
    if sys.argv[1:2] == ["--tree"]:
        child(*sys.argv[2:5])
        return 0
    arguments = parser(__doc__)
    arguments.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to do")
    arguments.add_argument("--before", type=Path, help="an earlier checkout, for the part step")
    parsed = arguments.parse_args()
    runs, goals = {}, []
    for part in parsed.only:
        runs[part], met = globals()[f"ask_{part}"](parsed.before and parsed.before.absolute())
        goals += met
    return finish("gpu-free", config={"parts": parsed.only}, runs=runs, goals=goals, check=parsed.check)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    if sys.argv[1:2] != ["--tree"]:
        from benchmarking import finish, goal, parser
    sys.exit(main())
