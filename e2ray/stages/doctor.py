"""What `e2ray doctor` says of a cluster before a recipe is submitted to it: one line for each thing that it looked at.

A line begins with `ok`, `warning` or `FAILED`; one that failed makes the exit code 2.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from e2ray.config.base import SettingsError
from e2ray.config.gpus import GPUS
from e2ray.config.run import RunConfig
from e2ray.core.extending import MANY, hard_traits
from e2ray.core.flops import gpu_of
from e2ray.core.model import meta_model
from e2ray.data.pace import show
from e2ray.files import TEMPORARY
from e2ray.stages.access import sends_token
from e2ray.stages.cluster import cluster
from e2ray.stages.health import Node, bandwidth, node
from e2ray.stages.plan import budget_of, size, too_large
from e2ray.stages.remote import has, on_each_node, remote_each, wants_gpu
from e2ray.stages.run import ResolvedRun, resolve
from e2ray.train.launch import resources
from e2ray.train.zero import micro_batch

LINK_SHARE = 0.1  # of a step that reducing gradients may take
HELD_GIB = 1.0  # of a card that others may hold
OBJECT_STORE_MIB = 80


class Line(NamedTuple):
    """One finding."""

    level: Literal["ok", "warning", "FAILED"]
    text: str


def doctor(config: RunConfig) -> None:
    """Look at the cluster that a recipe would run on, and show a line for each finding.

    Raises:
        SettingsError: If a finding failed, no cluster answers, or it has fewer workers than the recipe asks for.
    """
    run = resolve(config)
    failed = 0
    with cluster(config.cluster):
        for line in _lines(run):
            failed += line.level == "FAILED"
            show(f"{line.level:8} {line.text}")
    if failed:
        raise SettingsError(f"{failed} of the findings above failed; a run would not get through, mend them first")


def _lines(run: ResolvedRun) -> Iterator[Line]:
    yield _token()
    nodes = _ask(run)
    yield from _versions(nodes)
    yield from _storage(run, nodes)
    yield from _cards(nodes)
    yield from _abilities(run, nodes)
    yield _object_store()
    yield from _base(run)
    yield from _memory(run, nodes)
    yield from _links(run, nodes)


def _token() -> Line:
    if sends_token():
        return Line("ok", "token: this user's token is sent to the cluster")
    return Line("warning", "token: none is sent; set RAY_AUTH_MODE=token where Ray is started and here")


def _ask(run: ResolvedRun) -> list[Node]:
    """Return what every node says; each has to see a file that is written here."""
    mark = f"{TEMPORARY}{uuid.uuid4().hex}"
    run.storage.mkdir(parents=True, exist_ok=True)
    (run.storage / mark).write_bytes(b"")
    try:
        return on_each_node("doctor", node, str(run.storage), mark)
    finally:
        (run.storage / mark).unlink(missing_ok=True)


def _versions(nodes: list[Node]) -> Iterator[Line]:
    for package in nodes[0].versions:
        found = {each.host: (each.versions[package] or "missing").partition("+")[0] for each in nodes}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{version} on {host}" for host, version in found.items())
            yield Line("FAILED", f"versions: {package} is {told}; install constraints.txt on all nodes")
            return
    told = ", ".join(f"{name} {nodes[0].versions[name]}" for name in ("python", "torch", "ray", "deepspeed"))
    yield Line("ok", f"versions: equal on {len(nodes)} nodes ({told})")


def _storage(run: ResolvedRun, nodes: list[Node]) -> Iterator[Line]:
    bad = [each for each in nodes if each.storage is not None]
    for each in bad:
        yield Line(
            "FAILED", f"storage: {run.storage} {each.storage}, on {each.host}; name a folder that all nodes share"
        )
    if bad:
        return
    free = min(each.free_gib or 0.0 for each in nodes)
    yield Line("ok", f"storage: {run.storage} can be written from all nodes, {free:,.0f} GiB free")


def _cards(nodes: list[Node]) -> Iterator[Line]:
    cards = [(each, card) for each in nodes for card in each.cards]
    if not cards and has("GPU"):
        yield Line("FAILED", f"GPUs: Ray counts {has('GPU'):g}, torch sees none; install its CUDA build and the driver")
        return
    if not cards:
        yield Line("ok", "GPUs: none, workers train on CPUs")
        return
    yield Line("ok", f"GPUs: {len(cards)}, {', '.join(sorted({card.name for _, card in cards}))}")
    for each, card in cards:
        if card.held_gib > HELD_GIB:
            who = "; ".join(each.holders) or "nvidia-smi does not say who"
            yield Line(
                "FAILED", f"GPUs: others hold {card.held_gib:g} GiB of a {card.name} on {each.host} ({who}); end them"
            )


def _abilities(run: ResolvedRun, nodes: list[Node]) -> Iterator[Line]:
    those = [each for each in nodes if each.cards] or nodes  # where workers would run
    runs = sorted(set.intersection(*({*each.runs} for each in those)))
    yield Line("ok", f"attention and kernels on all nodes: {', '.join(runs)}")
    model, train = run.config.model, run.config.train
    asked = {model.attention: model.attention not in ("auto", "sdpa", "eager", "flex"), "liger": model.liger}
    for name, wanted in {**asked, "compile": train.compile}.items():
        if wanted and name not in runs:
            yield Line("FAILED", f"{name}: the recipe asks for it, and not all nodes have it")
    for each in those:
        for line in each.missing:
            yield Line("warning", f"on {each.host}: {line}")


def _object_store() -> Line:
    found = has("object_store_memory") / 2**20
    if found < OBJECT_STORE_MIB:
        return Line(
            "FAILED", f"object store: {found:,.0f} MiB, wanted {OBJECT_STORE_MIB}; raise it where Ray is started"
        )
    return Line("ok", f"object store: {found:,.0f} MiB on all nodes together")


def _base(run: ResolvedRun) -> Iterator[Line]:
    traits = hard_traits(meta_model(run.config.model), run.base_context_length)
    if len(traits) >= MANY:
        yield Line(
            "warning",
            f"base: {', '.join(traits)}: three or more of these cost up to 47 % of the scores on long text (OlmPool, "
            "arXiv:2608.10296); measure a short training first, or take another base",
        )
    else:
        told = f" ({', '.join(traits)})" if traits else ""
        yield Line("ok", f"base: {len(traits)} of 4 traits that make it hard to extend{told}")


def _memory(run: ResolvedRun, nodes: list[Node]) -> Iterator[Line]:
    names = {card.name for each in nodes for card in each.cards}
    if not wants_gpu(run.config.cluster) or len(names) != 1:
        return
    gpu = gpu_of(names.pop(), GPUS)
    if gpu is None:
        yield Line("warning", "memory: nothing is known of this GPU; ask e2ray plan with a --gpu-table")
        return
    least = min(card.memory_gib for each in nodes for card in each.cards)
    budget = budget_of(run.config, gpu.model_copy(update={"memory_gib": least}))
    need = budget.need(run.config.cluster.num_workers)
    if need.fits:
        yield Line("ok", f"memory: {size(need.memory.on_device)} of {size(budget.room)} on each GPU, as planned")
    else:
        yield Line("FAILED", f"memory: {too_large(budget, need)}")


def _links(run: ResolvedRun, nodes: list[Node]) -> Iterator[Line]:
    """Measure an all-reduce between as many workers as the recipe asks for."""
    workers, on_gpu = run.config.cluster.num_workers, wants_gpu(run.config.cluster)
    resources(run.config.cluster)
    together = workers if on_gpu else min(workers, int(has("CPU")))  # else some would wait for a core
    if together < 2:
        yield Line("ok", "links: there is no other worker, or no core for it, to measure between")
        return
    kind = "GPU" if on_gpu else "CPU"
    if has(kind, free=True) < together:
        yield Line("warning", f"links: not measured, {kind}s of the cluster are in use; ask again when they are free")
        return
    meeting = run.storage / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        calls = [(rank, together, str(meeting), on_gpu) for rank in range(together)]
        found = min(remote_each("doctor, links", bandwidth, calls, use_gpu=on_gpu))
    except RuntimeError as error:
        yield Line("FAILED", f"links: an all-reduce between {together} workers failed ({error})")
        return
    finally:
        Path(meeting).unlink(missing_ok=True)
    yield _judged(run, nodes, found)


def _judged(run: ResolvedRun, nodes: list[Node], found: float) -> Line:
    workers, train = run.config.cluster.num_workers, run.config.train
    names = [card.name for each in nodes for card in each.cards]
    gpu = gpu_of(names[0], GPUS) if names else None
    budget = budget_of(run.config, gpu)
    _, accumulation = micro_batch(train, workers)
    width = 2 if train.reduce_dtype == "bf16" and budget.dtype(train) == torch.bfloat16 else 4
    times = 1 if train.zero_stage < 2 else accumulation
    seconds = 2 * (workers - 1) / workers * budget.sizes.trained * width * times / found
    hours = budget.need(workers).hours
    told = f"links: an all-reduce moves {found / 1e9:,.2f} GB/s, so that gradients take {seconds:,.3g} s a step"
    if hours is None:
        return Line("ok", told)
    share = seconds / (hours * 3600 / train.steps)
    if share > LINK_SHARE:
        return Line(
            "warning",
            f"{told}, {share:.0%} of its time; look for InfiniBand or RoCE (rdma-core in the image, NCCL_IB_HCA), "
            "or set train.reduce_dtype: bf16 or larger micro batches",
        )
    return Line("ok", f"{told}, {share:.1%} of its time")
