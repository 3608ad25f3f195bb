"""The only module that knows DeepSpeed: one update, the gradient norm, and full fp32 state in and out.

Its settings follow from ours (`train/zero.py`). On a machine without CUDA no op of its own is compiled: those that
`initialize` would probe for and build are declared unavailable, and the optimizer is torch's AdamW. State is read and
written per parameter through DeepSpeed's full-parameter accessors, so that a checkpoint knows neither a world size nor
a ZeRO stage.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from e2ray.config.base import Plain, SettingsError
from e2ray.config.train import TrainSettings
from e2ray.core.attention import document_lengths, is_flash
from e2ray.core.compiled import CompiledLayers
from e2ray.core.flops import utilisation, work_of
from e2ray.core.head import FusedHead
from e2ray.core.losses import predicted
from e2ray.core.methods.base import FrequencyMethod
from e2ray.core.probe import Forward, Probe, ask, refuse_other_answers
from e2ray.core.rope import RotaryHook
from e2ray.train.adam import Skipping, SkippingAdamW, parameter_groups
from e2ray.train.batch import Batch
from e2ray.train.objectives import Objective, Reader, objective_of
from e2ray.train.parameters import ParameterState
from e2ray.train.zero import deepspeed_settings, micro_batch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

try:  # its autotuner, which nobody asks for, loads MLflow where it is installed: a second and 85 MiB of each worker
    sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]
    import deepspeed
    import deepspeed.ops
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.utils import (
        lazy_init_hp_params_optimizer_state,
        safe_get_full_fp32_param,
        safe_get_full_optimizer_state,
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )
finally:
    if sys.modules["mlflow"] is None:
        del sys.modules["mlflow"]

MOMENTS = ("exp_avg", "exp_avg_sq")


def telling(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the loss; if it is not finite, neither is its gradient, and so every rank notices."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


class SkippingCPUAdam(Skipping, DeepSpeedCPUAdam):
    """DeepSpeed's AdamW for CPUs that can skip; made where it is compiled."""


def adamw(model: nn.Module, settings: TrainSettings, *, on_gpu: bool) -> Any:
    """Return AdamW: torch's, or beside GPUs DeepSpeed's for CPUs where the optimizer lives there and it can be built.

    Torch's is fused wherever the weights are on a GPU, or were.
    """
    groups = parameter_groups(model, settings.weight_decay)
    options: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    if on_gpu and settings.offload != "none":
        try:
            return SkippingCPUAdam(groups, **options, adamw_mode=True, fp32_optimizer_states=True)
        except RuntimeError as error:  # no compiler, or none that can
            logging.getLogger(__name__).warning(
                "train.offload: DeepSpeed's AdamW for CPUs cannot be built (%s); torch's fused one runs", error
            )
    return SkippingAdamW(groups, **options, fused=on_gpu)


def _place(model: nn.Module, device: torch.device, dtype: torch.dtype, config: Plain, *, whole: bool) -> None:
    """Put a model on its device, whole or tensor by tensor, each taken apart at once as stage 3 does."""
    if whole:
        model.to(device)
        return
    deepspeed.zero.Init(module=model, config_dict_or_path=config, dtype=dtype)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


class Engine:
    """A model under DeepSpeed with the rotary hook on it."""

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        *,
        device: torch.device,
        dtype: torch.dtype,
        method: FrequencyMethod | None = None,
        base_context_length: int | None = None,
    ) -> None:
        """Wrap `model` (its weights in `dtype`); torch.distributed must be initialised.

        Without a method it is linear; every other one needs L, `base_context_length`, in tokens.
        """
        self.settings = settings
        self.device = device
        self.rank = dist.get_rank()
        self.num_workers = dist.get_world_size()
        self.micro_sequences, self.accumulation = micro_batch(settings, self.num_workers)
        self.names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        self.hook = RotaryHook(model, method, base_context_length=base_context_length)
        self.flash = is_flash(model)
        self._work = work_of(model)
        self._compiled = CompiledLayers(model) if settings.compile else None
        self._reader = Reader(self._forward, FusedHead(model) if settings.fused_loss else None)
        self.objective: Objective | None = None  # what is minimised; None: the next token's NLL
        self.figures: dict[str, Tensor] = {}  # of the last update, beside the NLL: [rows] each
        self._norm: Tensor | None = None
        on_gpu = device.type == "cuda"
        self._adam = adamw(model, settings, on_gpu=on_gpu)
        self._adam.norm = self._norm_of_this_update
        if not on_gpu:
            deepspeed.ops.__compatible_ops__ = {}  # else each op is probed, and one compiled for a minute
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        config = deepspeed_settings(
            settings,
            num_workers=self.num_workers,
            dtype=dtype,
            num_parameters=sum(trained),
            largest=max(trained),
            on_gpu=on_gpu,
        )
        with redirect_stdout(io.StringIO()):  # its optimizer for stage 1 in bf16 prints a page on memory
            _place(model, device, dtype, config, whole=settings.zero_stage < 3)
            self.ds, *_ = deepspeed.initialize(
                model=model, optimizer=self._adam, config=config, dist_init_required=False
            )

    @property
    def facts(self) -> dict[str, str]:
        """What runs: `device`, `dtype` of the weights in a forward, `attention`."""
        config = next(m.config for m in self.ds.module.modules() if isinstance(m, PreTrainedModel))
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return {
            "device": f"{self.device.type} {name}".strip(),
            "dtype": str(self.ds.module.get_input_embeddings().weight.dtype).removeprefix("torch."),
            "attention": config._attn_implementation,
        }

    def mfu(self, tokens_per_second: float, *, window: int) -> float | None:
        """Return the share of the GPUs' bf16 operations that training needs, of all ranks' tokens a second.

        None where there is no GPU, or its peak is not known.
        """
        return utilisation(tokens_per_second * self._work.flops(window) / self.num_workers, self.device)

    def logits(
        self, input_ids: Int[Tensor, "batch length"], position_ids: Int[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Return the logits of a forward in the module's current mode, without a graph."""
        given: dict[str, Tensor | int] = {}
        if position_ids is not None:
            given = {"position_ids": position_ids, **(document_lengths(position_ids) if self.flash else {})}
        with torch.no_grad():
            return self.ds(input_ids=input_ids, use_cache=False, **given).logits

    def probe(self) -> Probe:
        """Return what the model answers to fixed tokens, without dropout; every rank must call this."""
        with self._quiet() as (forward, hook, vocab_size, dtype):
            return ask(forward, hook, vocab_size=vocab_size, dtype=dtype, device=self.device)

    def refuse_other_answers(self, probe: Probe, *, what: str) -> None:
        """Raise SettingsError if the model's answers differ from the probe's; every rank must call this.

        `what` is what errors name.
        """
        with self._quiet() as (forward, hook, _, _):
            refuse_other_answers(probe, forward, hook, self.ds.module, device=self.device, what=what)

    @contextmanager
    def _quiet(self) -> Iterator[tuple[Forward, RotaryHook, int, torch.dtype]]:
        """Give (forward, hook, tokens of the vocabulary, dtype of the weights) of the model in evaluation mode.

        The hook is linear whatever the method, since a written model is probed without one.
        """
        embeddings = self.ds.module.get_input_embeddings().weight
        hook = RotaryHook(self.ds.module)
        self.ds.eval()
        try:
            yield self.logits, hook, getattr(embeddings, "ds_shape", embeddings.shape)[0], embeddings.dtype
        finally:
            self.ds.train()
            hook.remove()

    def update(self, batch: Batch, *, lr: float) -> Float[Tensor, " rows"]:
        """Make one optimizer update of this rank's rows and return each row's mean NLL, float32, detached.

        Every predicted token of the global batch weighs the same, on any number of ranks. Where the gradient's norm or
        a rank's loss is no finite number, no rank changes a weight, a moment or Adam's counter: `skipped` says so.
        """
        for group in self.ds.optimizer.param_groups:
            group["lr"] = lr
        objective = self.objective or objective_of(packed=batch.token_index is not None)
        weight = 1.0 if batch.token_index is None else self._weight_of_a_token(batch.token_index)
        self._adam.skipped = None
        outcomes = []
        for part in batch.there or self.micro_batches(batch):
            there = replace(part.to(self.device), token_weight=weight)
            with self._layers(compiled=True), self.hook.applied(there.draw.scale, there.draw.offsets):
                outcome = objective(self._reader, there)
                self.ds.backward(telling(outcome.loss))
            if self.settings.zero_stage == 0:  # DeepSpeed reports no norm without ZeRO
                self._norm = torch.nn.utils.get_total_norm([p.grad for _, p in self.parameters() if p.grad is not None])
            self.ds.step()
            outcomes.append(outcome)
        if self.skipped:
            self._forget_gradients()
        self.figures = {
            name: torch.cat([each.figures[name].detach() for each in outcomes]) for name in outcomes[0].figures
        }
        return torch.cat([each.nll.detach() for each in outcomes])

    def _forget_gradients(self) -> None:
        """Drop what DeepSpeed keeps of a skipped update: with an optimizer in CPU memory it adds the next one to it."""
        kept = getattr(self.ds.optimizer, "averaged_gradients", None)
        if isinstance(kept, dict):
            kept.update(dict.fromkeys(kept))

    def _layers(self, *, compiled: bool) -> AbstractContextManager[None]:
        """Return a context in which the layers run compiled, where training compiles them, or as they are."""
        return nullcontext() if self._compiled is None else self._compiled.used(compiled)

    def untouched_logits(
        self, input_ids: Int[Tensor, "rows window"], **given: Tensor | int
    ) -> Float[Tensor, "rows window vocabulary"]:
        """Return the logits of the base under the adapters, at scale 1 without shift or dropout; no gradient."""
        self.ds.eval()
        try:
            with (
                torch.no_grad(),
                self._layers(compiled=False),
                self.hook.applied(1.0),
                self.ds.module.disable_adapter(),
            ):
                return self._forward(input_ids, **given)
        finally:
            self.ds.train()

    def _forward(
        self, input_ids: Int[Tensor, "rows window"], **given: Tensor | int
    ) -> Float[Tensor, "rows window vocabulary"]:
        logits: Tensor = self.ds(input_ids=input_ids, use_cache=False, **given).logits
        return logits

    def micro_batches(self, batch: Batch) -> Iterator[Batch]:
        """Yield what one forward reads after the other, on the CPU."""
        for part in batch.parts(self.micro_sequences):
            yield part.with_lengths() if self.flash else part

    def _weight_of_a_token(self, token_index: Int[Tensor, "rows window"]) -> Float[Tensor, ""]:
        """Return what one predicted token weighs in a micro batch's loss, which is averaged over ranks and parts."""
        count = self.total(predicted(token_index).sum().double().to(self.device, non_blocking=True))
        return (self.num_workers * self.accumulation / count.clamp(min=1)).float()

    def _norm_of_this_update(self) -> Tensor | float:
        """Return the gradient's norm over all ranks while AdamW makes its step."""
        norm = self._norm if self.settings.zero_stage == 0 else self.ds.optimizer._global_grad_norm
        return 0.0 if norm is None else norm  # None in a throw-away update

    @property
    def skipped(self) -> bool:
        """Whether the last update was left out, the same on every rank; known without waiting for the device."""
        return bool(self._adam.skipped) or not self.ds.was_step_applied()

    @property
    def grad_norm(self) -> float:
        """Norm of the last update's gradient before clipping; no finite number where it was skipped."""
        norm = self._norm if self.settings.zero_stage == 0 else self.ds.get_global_grad_norm()
        assert norm is not None, "asked before the first update"
        return float(norm)

    def total(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the sum of a tensor over all ranks."""
        dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; every rank gets the same answer."""
        return bool(self.total(torch.tensor([float(flag)], device=self.device)).item() > 0)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the trainable parameters by name, in one order on every rank."""
        return [(self.names[id(p)], p) for p in self.ds.module.parameters() if id(p) in self.names]

    def states(self) -> Iterator[ParameterState]:
        """Yield each trainable parameter's state in full; every rank must take part in each one."""
        if not self._adam.state:  # every step so far was skipped
            self._allocate_optimizer_state()
            self._set_adam_step(0)
        self._link_moments()
        for name, parameter in self.parameters():
            if self.settings.zero_stage == 0:
                state = self.ds.optimizer.state[parameter]
                full = [parameter.detach().float(), *(state[key] for key in MOMENTS)]
            else:
                full = [
                    safe_get_full_fp32_param(parameter),
                    *(safe_get_full_optimizer_state(parameter, key) for key in MOMENTS),
                ]
            shape = getattr(parameter, "ds_shape", parameter.shape)
            yield ParameterState(name, *(value.detach().reshape(shape).cpu().clone() for value in full))

    def fresh_states(self) -> Iterator[ParameterState]:
        """Yield each trainable parameter as it is now, with moments of zero: `load` resets a used engine to it."""
        for name, parameter in self.parameters():
            full = parameter.detach() if self.settings.zero_stage == 0 else safe_get_full_fp32_param(parameter)
            shape = getattr(parameter, "ds_shape", parameter.shape)
            zeros = torch.zeros(()).expand(shape)
            yield ParameterState(name, full.detach().float().reshape(shape).cpu().clone(), zeros, zeros)

    def load(self, states: Iterator[ParameterState], *, optimizer_step: int) -> None:
        """Take over every trainable parameter's state, in a new engine or one between two updates.

        States come in the order of `parameters`; `optimizer_step` is Adam's own counter, the updates made so far.
        """
        self._allocate_optimizer_state()
        self._link_moments()
        for (name, parameter), state in zip(self.parameters(), states, strict=True):
            assert name == state.name, (name, state.name)
            self._set(parameter, state)
        self._set_adam_step(optimizer_step)

    def _link_moments(self) -> None:
        """Link every parameter to its moments.

        ZeRO 1 and 2 do this once, after the first parameter group's first update, when the later groups have no
        moments yet; theirs would never be found.
        """
        zero = self.ds.optimizer
        for low, high in (
            ("bit16_groups", "single_partition_of_fp32_groups"),
            ("bf16_groups", "fp32_groups_flat_partition"),
        ):
            for parameters, flat in zip(getattr(zero, low, ()), getattr(zero, high, ()), strict=False):
                lazy_init_hp_params_optimizer_state(parameters, flat, zero.optimizer.state)

    def _allocate_optimizer_state(self) -> None:
        """Make AdamW allocate its moments with one update of zero gradient at learning rate 0."""
        self._norm, self._adam.skipped = None, None
        for group in self.ds.optimizer.param_groups:
            group["lr"] = 0.0
        tokens = torch.zeros(self.micro_sequences, 2, dtype=torch.int64, device=self.device)
        for _ in range(self.accumulation):
            self.ds.backward(self.ds(input_ids=tokens, use_cache=False).logits.float().sum() * 0.0)
            self.ds.step()

    def _set(self, parameter: nn.Parameter, state: ParameterState) -> None:
        values = [value.to(self.device) for value in (state.weight, state.exp_avg, state.exp_avg_sq)]
        keys: Sequence[str | None] = (None, *MOMENTS)
        if self.settings.zero_stage == 0:
            for key, value in zip(keys, values, strict=True):
                (parameter.data if key is None else self.ds.optimizer.state[parameter][key]).copy_(value)
            return
        for key, value in zip(keys, values, strict=True):
            if self.settings.zero_stage == 3:
                value = self._partition(parameter, value)
                setter = safe_set_local_fp32_param if key is None else safe_set_local_optimizer_state
            else:
                setter = safe_set_full_fp32_param if key is None else safe_set_full_optimizer_state
            setter(parameter, value, *(() if key is None else (key,)))
        # The setters leave the module's own copy stale until the next update.
        with self._gathered(parameter):
            parameter.data.copy_(values[0])

    def _gathered(self, parameter: nn.Parameter) -> AbstractContextManager[None]:
        """Return a context in which a parameter's own copy is whole and may be changed, alike on every rank."""
        if self.settings.zero_stage == 3:
            return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
        return nullcontext()

    def _partition(self, parameter: Any, value: Tensor) -> Tensor:
        """Return this rank's part of a full tensor as ZeRO-3 lays it out: flat, padded with zeros."""
        size = parameter.ds_tensor.ds_numel
        flat = torch.zeros(size * self.num_workers, dtype=value.dtype, device=value.device)
        flat[: value.numel()] = value.flatten()
        return flat[size * self.rank : size * (self.rank + 1)]

    def non_finite(self) -> str | None:
        """Return what holds a number that is not finite, as `weight of <parameter>`; None where nothing does.

        Every rank must call this and gets the same answer. Each looks at its own share of the fp32 weights and moments,
        which AdamW's state holds after the first update; they are gathered only where a rank finds something, since
        a share's padding does not count.
        """
        shares = [value for weight, state in self._adam.state.items() for value in (weight, *map(state.get, MOMENTS))]
        if not self.any(not all(bool(share.isfinite().all()) for share in shares)):
            return None
        first = None
        for state in self.states():
            for kind in ("weight", *MOMENTS):
                if first is None and not bool(getattr(state, kind).isfinite().all()):
                    first = f"{kind} of {state.name}"
        return first

    def _set_adam_step(self, step: int) -> None:
        for state in self._adam.state.values():
            if "step" not in state:
                raise SettingsError("DeepSpeed's optimizer keeps no step count; this version cannot resume")
            state["step"].fill_(float(step)) if torch.is_tensor(state["step"]) else state.update(step=step)
