"""The work of a worker of an evaluation: load one model and read a share of the documents or a grid of prompts.

The caller merges the shares, so the figures are those of one worker that scores all. Nothing here uses Ray or the
folder of a run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from e2ray.config.methods import UNTRAINED, Method
from e2ray.config.model import Model, PretrainedModel
from e2ray.config.resolved import ResolvedEvaluate
from e2ray.config.retrieval import RetrievalSettings
from e2ray.core.methods.registry import method_of
from e2ray.data.pace import show
from e2ray.data.shards import ShardSet
from e2ray.evaluate.base_length import measure_base
from e2ray.evaluate.by_length import LengthPass, length_passes
from e2ray.evaluate.documents import documents_digest, reachable_windows, select_documents
from e2ray.evaluate.loaded import LoadedModel
from e2ray.evaluate.perplexity import Sums, document_sums
from e2ray.evaluate.prompts import PromptFolder
from e2ray.evaluate.removing import TEXT_TOKENS, TEXTS, measure_removed
from e2ray.evaluate.retrieval import accuracy
from e2ray.evaluate.untrained import untrained_sums
from e2ray.records.base_length import BaseLength
from e2ray.records.evaluation import RemovedScaling
from e2ray.records.retrieval import RetrievalRow
from e2ray.records.scales import Scales

Share = tuple[list[Sums], list[LengthPass], dict[str, str]]


@dataclass(frozen=True)
class Reading:
    """One model and the text that it reads, as they are sent to a worker.

    Attributes:
        name: `base` or `tuned`.
        model: Settings of the model to load.
        method: Frequency method of the training.
        base_context_length: L in tokens.
        seed: Of the weights of a model that is built from its sizes.
        shards: A folder or a URI.
        tokenizer_folder: Of the model's tokenizer.
        use_gpu: Whether it reads on a GPU, in bf16, and not on CPUs, in fp32.
    """

    name: str
    model: Model
    method: Method
    base_context_length: int
    seed: int
    shards: str | Path
    tokenizer_folder: Path
    use_gpu: bool

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device("cuda" if self.use_gpu else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return torch.bfloat16 if self.use_gpu else torch.float32

    def load(self, opened: ShardSet, *, scales: Scales | None = None) -> LoadedModel:
        """Return the model, ready to be read with."""
        return LoadedModel(
            self.model,
            device=self.device,
            dtype=self.dtype,
            vocab_size=opened.manifest.vocab_size,
            method=method_of(self.method),
            base_context_length=self.base_context_length,
            tokenizer_folder=self.tokenizer_folder,
            seed=self.seed,
            scales=scales,
        )


def score_share(reading: Reading, settings: ResolvedEvaluate, share: int, shares: int) -> Share | None:
    """Return the sums of every `shares`-th document from `share` on and the passes by length, or None without one.

    With them come the names of the text: `tokenizer_hash`, and `documents_digest` of the documents of all workers. The
    first worker of a model reports its progress.
    """
    progress: Callable[[str], None] | None = show if share == 0 else None
    opened = ShardSet.open(reading.shards)
    held_out = opened.held_out()
    first = progress if reading.name == "base" else None  # every model would report the same
    windows = reachable_windows(
        held_out, settings.windows, cut=settings.document_tokens, skip=settings.skip_documents, progress=first
    )
    documents = select_documents(
        held_out,
        minimum_tokens=max(windows),
        limit=settings.documents,
        cut=settings.document_tokens,
        skip=settings.skip_documents,
    )
    numbers = range(share, len(documents), shares)
    if not numbers:
        return None
    loaded = reading.load(opened)
    model = loaded.model
    if progress:
        progress(
            f"{reading.name}: on {loaded.device.type}, {model.dtype}, {model.config._attn_implementation} attention"
        )
    mine = [documents[number] for number in numbers]
    own: dict[str, Any] = {"name": reading.name, "scales": settings.scales}
    options: dict[str, Any] = {
        "windows": windows,
        "numbers": numbers,
        "batch_tokens": settings.batch_tokens,
        "device": loaded.device,
        "progress": progress,
    }
    sums = document_sums(model, loaded.hook, mine, stride=settings.stride, **own, **options)
    passes = length_passes(model, loaded.hook, mine, **own, **options)
    if reading.name == "base":
        lanes = [lane for lane in settings.untrained if UNTRAINED[lane] != reading.method]
        options |= {"stride": settings.stride, "base_context_length": reading.base_context_length}
        sums += untrained_sums(model, mine, lanes=lanes, **options)
    named = {"tokenizer_hash": opened.manifest.tokenizer_hash, "documents_digest": documents_digest(documents)}
    return sums, passes, named


def ask(reading: Reading, settings: ResolvedEvaluate, grid: RetrievalSettings, kept: Path) -> list[RetrievalRow]:
    """Return one model's rows of the retrieval grid; `kept` is the folder of prompts that were made before."""
    opened = ShardSet.open(reading.shards)
    loaded = reading.load(opened)
    return accuracy(
        loaded.model,
        loaded.hook,
        opened.held_out(),
        loaded.tokenizer,
        settings=grid,
        base_context_length=reading.base_context_length,
        batch_tokens=settings.batch_tokens,
        device=loaded.device,
        windows=settings.windows,
        kept=PromptFolder(kept, opened.manifest.digest),
        progress=lambda line: show(f"{reading.name}: {line}"),
    )


def read_base(reading: Reading, batch_tokens: int) -> BaseLength:
    """Return how far a base reads at scale 1, by `measure_base` on the held-out documents."""
    opened = ShardSet.open(reading.shards)
    loaded = reading.load(opened)
    return measure_base(
        loaded.model,
        loaded.hook,
        opened.held_out(),
        base_context_length=reading.base_context_length,
        batch_tokens=batch_tokens,
        device=loaded.device,
        progress=show,
    )


def read_removed(reading: Reading, settings: PretrainedModel) -> RemovedScaling:
    """Return how far a base moves when its scaling is removed, on the first rows; `settings` are the base's."""
    opened = ShardSet.open(reading.shards)
    rows = opened.tokens(range(min(TEXTS, opened.rows)))[:, : min(TEXT_TOKENS, reading.base_context_length)]
    return measure_removed(settings, rows.tolist(), dtype=reading.dtype, device=reading.device)
