"""What a training needs on a number of workers, and the nearest settings with which it fits.

Time follows from arithmetic (`core/flops.py`) and the share of it that a GPU reaches, which is an assumption.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from e2ray.config.base import SettingsError
from e2ray.config.gpus import Gpu
from e2ray.config.model import Model
from e2ray.config.run import RunConfig
from e2ray.config.train import TrainSettings
from e2ray.core.adapters import with_adapters_quietly
from e2ray.core.flops import Work, config_of, work_of
from e2ray.core.head import FusedHead
from e2ray.core.model import from_config, recomputed_layers
from e2ray.train.activations import MASKLESS, Step, activations, num_layers
from e2ray.train.memory import Memory, Sizes, memory_of
from e2ray.train.parameters import precision_of
from e2ray.train.zero import micro_batch

CONTEXT_GIB = 1.5  # of a GPU, for CUDA, NCCL and what the allocator cannot use; a guess
CHECKPOINT_BYTES = 12  # of a trained number: fp32 and both moments
MODEL_BYTES = 4  # of a number while the model is written
EAGER, COMPILED = 0.33, 0.39  # MFU of Llama-3-8B on 8 H100 as torchtitan reports it, without and with torch.compile
MOST_WORKERS = 64


@dataclass(frozen=True)
class Need:
    """What a training needs on `num_workers` workers.

    Attributes:
        num_workers: Workers, one GPU each where there are any.
        memory: Of one worker.
        room: Bytes that one worker may use on its device.
        hours: Of the steps alone; None on CPUs, whose speed nobody knows beforehand.
        usd: Price of those; None where the GPU's is not known.
    """

    num_workers: int
    memory: Memory
    room: int
    hours: float | None
    usd: float | None

    @property
    def fits(self) -> bool:
        """Whether the device holds it."""
        return self.memory.on_device <= self.room


@dataclass(frozen=True)
class Change:
    """Settings of a recipe that differ, by path, and what is needed with them."""

    settings: dict[str, object]
    need: Need


class Budget:
    """Finds out what a recipe needs; activations are found once for each shape of a step."""

    def __init__(
        self, config: RunConfig, *, vocab_size: int, gpu: Gpu | None, room: int | None = None, mfu: float | None = None
    ) -> None:
        """Plan for a kind of GPU, or for CPUs.

        Args:
            config: The recipe.
            vocab_size: Of its tokenizer; a checkpoint has its own.
            gpu: None plans for CPUs.
            room: Bytes of a worker's device; None: what the GPU has less `CONTEXT_GIB`.
            mfu: Share of the GPU's arithmetic that is reached; None: what torchtitan reaches.

        Raises:
            SettingsError: If no model can be made of the settings.
        """
        assert gpu is not None or room is not None, "a CPU's memory is told"
        self.config, self.vocab_size, self.gpu, self.mfu = config, vocab_size, gpu, mfu
        self.room = int((gpu.memory_gib - CONTEXT_GIB) * 2**30) if gpu and room is None else int(room or 0)
        self._found: dict[tuple[Model, Step], int] = {}

    @property
    def device(self) -> torch.device:
        """Where the training would run."""
        return torch.device("cpu" if self.gpu is None else "cuda")

    def dtype(self, train: TrainSettings) -> torch.dtype:
        """Return the dtype of the weights in a forward."""
        return precision_of(train, self.device)

    @cached_property
    def _meta(self) -> torch.nn.Module:
        with torch.device("meta"):
            plain = from_config(self.config.model, attention="eager", vocab_size=self.vocab_size)
        return with_adapters_quietly(plain, self.config.model.lora)

    @cached_property
    def sizes(self) -> Sizes:
        """Numbers of the model."""
        trained = [each.numel() for each in self._meta.parameters() if each.requires_grad]
        return Sizes(sum(each.numel() for each in self._meta.parameters()), sum(trained), max(trained))

    @cached_property
    def work(self) -> Work:
        """Arithmetic of the model."""
        return work_of(self._meta)

    @property
    def tokens(self) -> int:
        """Tokens that the training reads."""
        return self.config.train.steps * self.config.train.batch_sequences * self.config.data.window

    @property
    def checkpoint_bytes(self) -> int:
        """Size of one checkpoint."""
        return CHECKPOINT_BYTES * self.sizes.trained

    @property
    def disk_bytes(self) -> int:
        """Disk of the run folder: checkpoints, one more while it is written, and the model."""
        width = self.dtype(self.config.train).itemsize
        return (self.config.train.keep_checkpoints + 1) * self.checkpoint_bytes + width * self.sizes.total

    @property
    def writing_bytes(self) -> int:
        """Memory of the driver's machine while the model is written."""
        return MODEL_BYTES * self.sizes.total

    def step(self, train: TrainSettings, num_workers: int) -> Step:
        """Return the shape of a micro batch."""
        rows, _ = micro_batch(train, num_workers)
        window, attention = self.config.data.window, self._attention()
        return Step(rows, window, self.dtype(train), attention, self.vocab_size, train.fused_loss)

    def _attention(self) -> str:
        asked, packed = self.config.model.attention, self.config.data.pack == "best_fit"
        if asked == "eager":
            return "eager"
        return "sdpa" if packed and asked in ("auto", "sdpa") else MASKLESS  # a dense mask of packed rows

    def need(self, num_workers: int, *, train: TrainSettings | None = None, model: Model | None = None) -> Need:
        """Return what the recipe needs on so many workers, with other settings of training or model."""
        train, model = train or self.config.train, model or self.config.model
        key = (model, self.step(train, num_workers))
        if key not in self._found:
            self._found[key] = activations(*key)
        memory = memory_of(
            train,
            self.sizes,
            self._found[key],
            num_workers=num_workers,
            dtype=self.dtype(train),
            on_gpu=self.gpu is not None,
        )
        memory = replace(memory, device={**memory.device, **self._teacher(train, model, key[1])})
        hours = self._hours(train, model, num_workers)
        price = self.gpu.usd_per_hour if self.gpu else None
        usd = None if hours is None or price is None else hours * num_workers * price
        return Need(num_workers, memory, self.room, hours, usd)

    def _teacher(self, train: TrainSettings, model: Model, step: Step) -> dict[str, int]:
        """Return what a distillation holds beside: the base, unless it is what lies under adapters, and its logits."""
        if not train.objective.is_taught:
            return {}
        logits = step.rows * step.window * int(config_of(self._meta).vocab_size) * step.dtype.itemsize
        base = 0 if model.lora is not None else self.sizes.total * (2 if self.gpu else step.dtype.itemsize)
        return {"teacher": base + logits}

    def reached(self, train: TrainSettings) -> float:
        """Return the share of the GPU's arithmetic that is assumed."""
        return self.mfu or (COMPILED if train.compile else EAGER)

    def _hours(self, train: TrainSettings, model: Model, num_workers: int) -> float | None:
        if self.gpu is None:
            return None
        flops = self.work.flops(self.config.data.window) * self.tokens
        layers = num_layers(model)
        again = recomputed_layers(model.checkpoint_share, layers) / layers
        forward = 1 / 3 if model.lora is None else 1 / 2  # of the work: frozen weights have no gradient to compute
        again += train.objective.is_taught  # the teacher reads everything once
        speed = self.gpu.tflops * 1e12 * num_workers * self.reached(train)
        return flops * (1 + again * forward) / speed / 3600

    def nearest(self) -> Change | None:
        """Return the least change of settings with which the recipe fits; None where none does.

        Cheapest first: smaller micro batches, then a loss without logits, then recomputing, then sharing among the
        workers, then CPU memory, then more workers.
        """
        for settings, num_workers in self._ladder():
            train, model = self._changed(settings)
            if self.config.train.batch_sequences % num_workers == 0:
                need = self.need(num_workers, train=train, model=model)
                if need.fits:
                    return Change(settings, need)
        return None

    def _can_fuse(self) -> bool:
        """Return whether the model's head can have the loss in it."""
        try:
            FusedHead(self._meta)
        except SettingsError:
            return False
        return True

    def _changed(self, settings: dict[str, object]) -> tuple[TrainSettings, Model]:
        parts = {"train": self.config.train, "model": self.config.model}
        for path, value in settings.items():
            section, _, name = path.partition(".")
            if section in parts:
                parts[section] = parts[section].model_copy(update={name: value})
        return parts["train"], parts["model"]  # type: ignore[return-value]

    def _ladder(self) -> Iterator[tuple[dict[str, object], int]]:
        """Yield settings that need less and less, cumulatively, and the workers to run them on."""
        train, model, workers = self.config.train, self.config.model, self.config.cluster.num_workers
        settings: dict[str, object] = {}
        rows, _ = micro_batch(train, workers)
        while rows > 1:
            rows //= 2
            settings["train.micro_batch_sequences"] = rows
            yield dict(settings), workers
        if not train.fused_loss and not train.objective.is_taught and self._can_fuse():
            settings["train.fused_loss"] = True
            yield dict(settings), workers
        for share in (0.5, 1.0):
            if share > model.checkpoint_share:
                settings["model.checkpoint_share"] = share
                yield dict(settings), workers
        steps: list[tuple[str, object, int]] = [("train.zero_stage", stage, workers) for stage in (2, 3) if workers > 1]
        steps += [("train.offload", "optimizer", workers)]
        for path, value, number in steps:
            if path == "train.zero_stage" and (train.zero_stage >= int(str(value)) or (value == 3 and train.compile)):
                continue
            if path == "train.offload" and (train.offload != "none" or train.zero_stage == 0):
                continue
            settings[path] = value
            yield dict(settings), number
        more = workers
        while more < MOST_WORKERS:
            more *= 2
            yield {**settings, "cluster.num_workers": more}, more
