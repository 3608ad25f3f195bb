"""What a recipe will take: memory of each worker, disk, hours and price, without a GPU and without weights."""

from collections.abc import Iterator

import psutil
import torch

from e2ray.config.base import SettingsError
from e2ray.config.data import ByteLevelBpe, DataSettings
from e2ray.config.gpus import Gpu, gpu_table
from e2ray.config.model import LlamaModel
from e2ray.config.run import RunConfig
from e2ray.core.flops import gpu_of
from e2ray.data.shards import read_manifest
from e2ray.data.tokenizer import load_tokenizer, vocabulary_size
from e2ray.report.frame.page import Column, Row, Table
from e2ray.report.frame.terminal import console, grid
from e2ray.train.budget import CONTEXT_GIB, Budget, Need

WORKERS = (1, 2, 4, 8, 16, 32)
LIBRARIES_GIB = 0.7  # of a worker's process without a GPU, before it has a model


def plan(config: RunConfig, *, gpu: str | None, table: str | None, mfu: float | None) -> None:
    """Show what a recipe will take.

    Args:
        config: The recipe.
        gpu: Name of a kind of GPU; None: the recipe's, or what this machine has.
        table: File with GPUs and prices of one's own.
        mfu: Share of a GPU's arithmetic that is reached.

    Raises:
        SettingsError: If the GPU or the model is unknown, or the table says too little.
    """
    if mfu is not None and not 0 < mfu <= 1:
        raise SettingsError(f"--mfu: wanted a share above 0 and at most 1, got {mfu:g}")
    name, kind = gpu_for(config, gpu, gpu_table(table))
    budget = budget_of(config, kind, mfu=mfu)
    out = console()
    for line in _intro(config, budget):
        out.print(line)
    chosen = budget.need(config.cluster.num_workers)
    out.print(grid(_parts(chosen, name)))
    out.print(f"at the worst moment of a step, on {config.cluster.num_workers} workers")
    out.print(grid(_by_workers(budget, config)))
    out.print(_assumed(budget, config, name))
    for line in _outcome(budget, chosen):
        out.print(line)


def gpu_for(config: RunConfig, asked: str | None, table: dict[str, Gpu]) -> tuple[str, Gpu | None]:
    """Return the kind of GPU to plan for, with its name; None stands for CPUs.

    Raises:
        SettingsError: If it is not known, or nothing says which it is.
    """
    if asked is not None:
        found = gpu_of(asked, table)
        if found is None:
            raise SettingsError(
                f"--gpu: {asked} is not known, wanted one of {', '.join(table)}; or say its --gpu-table"
            )
        return asked, found
    if torch.cuda.is_available() and config.cluster.use_gpu is not False:
        here = torch.cuda.get_device_name()
        memory = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
        known = gpu_of(here, table)
        if known is None:
            raise SettingsError(f"--gpu-table: {here} is not known; name its tflops, memory_gib and usd_per_hour")
        return here, known.model_copy(update={"memory_gib": memory})
    if config.cluster.use_gpu is True:
        raise SettingsError("--gpu: cluster.use_gpu is true and there is none here; name its kind, as --gpu H100")
    return "CPU", None


def budget_of(config: RunConfig, gpu: Gpu | None, *, mfu: float | None = None) -> Budget:
    """Return the budget of a recipe; without a GPU its workers share this machine's memory."""
    memory = psutil.virtual_memory().total / config.cluster.num_workers - LIBRARIES_GIB * 2**30
    room = None if gpu else max(0, int(memory))
    return Budget(config, vocab_size=vocabulary_of(config.data, config.model), gpu=gpu, room=room, mfu=mfu)


def vocabulary_of(data: DataSettings, model: object) -> int:
    """Return the tokens of a recipe's tokenizer; a checkpoint has its own and is not asked."""
    if not isinstance(model, LlamaModel):
        return 0
    if data.shards is not None:
        return read_manifest(data.shards).vocab_size
    if isinstance(data.tokenizer, ByteLevelBpe):
        return data.tokenizer.vocab_size
    assert data.tokenizer is not None, "rows are made with a tokenizer"
    return vocabulary_size(load_tokenizer(data.tokenizer.path, data.tokenizer.revision))


def _intro(config: RunConfig, budget: Budget) -> Iterator[str]:
    train, sizes = config.train, budget.sizes
    dtype = str(budget.dtype(train)).removeprefix("torch.")
    rows = budget.step(train, config.cluster.num_workers).rows
    yield (
        f"{config.name}: {sizes.total / 1e6:,.1f} million numbers, {sizes.trained / 1e6:,.1f} trained, {dtype}, ZeRO "
        f"stage {train.zero_stage}; {rows} rows of {config.data.window:,} tokens in a forward, "
        f"{config.model.checkpoint_share:.0%} of the layers recomputed"
    )
    yield f"{train.steps:,} steps of {train.batch_sequences} rows read {budget.tokens:,} tokens"


def _parts(need: Need, name: str) -> Table:
    rows = [Row((part, size(held))) for part, held in need.memory.device.items()]
    rows.append(Row(("together", size(need.memory.on_device)), "marked"))
    rows += [Row((f"in its process: {part}", size(held))) for part, held in need.memory.host.items()]
    return Table([Column(f"of one {name} worker"), Column("memory", "number")], rows, "")


def _by_workers(budget: Budget, config: RunConfig) -> Table:
    rows = []
    for number in sorted({*WORKERS, config.cluster.num_workers}):
        if config.train.batch_sequences % number:
            continue
        need = budget.need(number)
        hours = "-" if need.hours is None else f"{need.hours:,.3g}"
        usd = "-" if need.usd is None else f"{need.usd:,.3g}"
        cells = (f"{number}", size(need.memory.on_device), "yes" if need.fits else "no", hours, usd)
        rows.append(Row(cells, "" if need.fits else "faint"))
    titles = ("workers", "memory of each", "fits", "hours", "USD")
    return Table([Column(title, "number") for title in titles], rows, "")


def _assumed(budget: Budget, config: RunConfig, name: str) -> str:
    room = f"fits: into {size(budget.room)} of a {name}"
    if budget.gpu is None:
        return f"{room} worker. Nobody knows beforehand how fast CPUs train"
    price = "no price is known, name it in --gpu-table"
    if budget.gpu.usd_per_hour is not None:
        price = f"USD {budget.gpu.usd_per_hour:g} for a GPU and hour (--gpu-table)"
    return (
        f"{room}, {CONTEXT_GIB:g} GiB kept free. Hours: of the steps alone, if {budget.reached(config.train):.0%} of "
        f"its {budget.gpu.tflops:g} TFLOPS are reached (--mfu), which is assumed; {price}"
    )


def _outcome(budget: Budget, chosen: Need) -> Iterator[str]:
    yield (
        f"disk: {size(budget.disk_bytes)} in the run folder, {size(budget.checkpoint_bytes)} of it a checkpoint; "
        f"shards take 4 bytes a token. Writing the model takes {size(budget.writing_bytes)} of memory"
    )
    yield "It fits." if chosen.fits else too_large(budget, chosen)


def size(held: int) -> str:
    """Return a number of bytes for people, in MB or GB of 10^6 and 10^9."""
    unit, name = (1e9, "GB") if held >= 1e9 else (1e6, "MB")
    number = held / unit
    return f"{number:,.{2 if number < 10 else 1 if number < 100 else 0}f} {name}"


def too_large(budget: Budget, need: Need) -> str:
    """Return one line on a recipe that does not fit, with the nearest settings that do."""
    line = f"train: needs {size(need.memory.on_device)} on each worker, which has {size(budget.room)}; "
    change = budget.nearest()
    if change is None:
        return f"{line}no setting fits; take larger GPUs, a shorter data.window or model.lora"
    told = ", ".join(f"{path}: {value}" for path, value in change.settings.items())
    line = f"{line}set {told}, which needs {size(change.need.memory.on_device)}"
    return (
        f"{line}, and {size(change.need.memory.on_host)} of its process" if "train.offload" in change.settings else line
    )
