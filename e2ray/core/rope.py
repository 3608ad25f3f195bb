"""The rotary hook: gives every row of a batch its own scaled and shifted positions in any RoPE model.

Scaled or shifted `position_ids` must never be passed to a model of transformers: without a mask and a cache,
as in training, its attention reads any step other than 1 as the start of another packed document and
silently hides the tokens before it. So the model gets plain integer ids (or none), and a forward pre-hook on
its rotary module replaces them, after the mask code, by (id + offset) / scale in float32. The model's own
code stays as it is, so this works under gradient checkpointing, packing, adapters and DeepSpeed engines.
"""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from e2ray.config.base import SettingsError
from e2ray.core.methods.base import FrequencyMethod, Rope
from e2ray.core.methods.linear import Linear

# Layers with this type see nearby tokens only and have frequencies of their own; context extension leaves them alone.
LOCAL_LAYER_TYPE = "sliding_attention"
# Keys of rope parameters for the frequencies and the attention factor; other layers read the other keys.
FREQUENCY_KEYS = frozenset(
    "rope_type type rope_theta partial_rotary_factor factor original_max_position_embeddings attention_factor "
    "beta_fast beta_slow mscale mscale_all_dim truncate short_factor long_factor short_mscale long_mscale "
    "low_freq_factor high_freq_factor".split()
)


class RotaryHook:
    """Scales and shifts the positions that a model's rotary modules see; the identity until `set` is called.

    What is set holds until `set` or `clear` is called again. It must outlive the backward pass too, since some
    models compute their angles again under gradient checkpointing.

    Attributes:
        rotary_modules: The hooked modules.
        method: What a scale does to the frequencies.
    """

    def __init__(
        self, model: nn.Module, method: FrequencyMethod | None = None, *, base_context_length: int | None = None
    ) -> None:
        """Hook the rotary modules of `model`, which may be wrapped by peft or be a DeepSpeed engine.

        Args:
            model: Holds the rotary modules.
            method: What a scale does to the frequencies; None: linear, which divides positions.
            base_context_length: L in tokens, which every method but linear needs.

        Raises:
            SettingsError: If the model has no rotary module that takes position ids, or cannot carry the method.
        """
        self.rotary_modules = find_rotary_modules(model)
        self.method = method or Linear()
        self._divides = isinstance(self.method, Linear)
        assert self._divides or base_context_length is not None, "a method is measured by L"
        self._length = base_context_length or 0
        self._scale: Tensor | None = None
        self._offsets: Tensor | None = None
        self._rows: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self._bases: dict[tuple[int, str], Tensor] = {}
        self._before: list[tuple[nn.Module, str, Tensor, str, float]] = []
        for module in self.rotary_modules if not self._divides else ():
            _refuse_deaf(module)
            self.method.refuse_pairs(*(len(buffer) for buffer in frequency_buffers(module).values()))
        self._handles = [
            module.register_forward_pre_hook(self._place, with_kwargs=True) for module in self.rotary_modules
        ]
        if not self._divides:
            self._handles += [
                module.register_forward_hook(self._give_back, always_call=True) for module in self.rotary_modules
            ]

    def set(self, scale: Float[Tensor, "*batch"] | float, offsets: Int[Tensor, "batch window"] | None = None) -> None:
        """Use these scales and offsets in every forward pass from now on.

        Args:
            scale: >= 1; a number or a 0-dimensional tensor for all rows, or float32 [batch] with one per row.
            offsets: int64 [batch, window], indexed by a token's position id within its document; None moves
                nothing, as in evaluation and generation. Scales are best left on the CPU, offsets put on the model's
                device: then nothing is waited for.

        Raises:
            ValueError: If shapes or dtypes do not fit each other, or a scale known to the CPU is below 1.
        """
        if not isinstance(scale, Tensor):
            scale = torch.tensor(scale, dtype=torch.float32)
        if scale.dtype != torch.float32 or scale.ndim > 1:
            raise ValueError(
                f"scale must be a number or float32 [batch], got {scale.dtype} {list(scale.shape)}; "
                "lower precision merges neighbouring positions"
            )
        if scale.device.type == "cpu" and not bool(((scale >= 1) & (scale < math.inf)).all()):
            raise ValueError(f"scale must be finite and at least 1, got {scale.tolist()}")
        if offsets is not None:
            if offsets.ndim != 2 or offsets.is_floating_point() or offsets.is_complex():
                raise ValueError(f"offsets must be integers [batch, window], got {offsets.dtype} {list(offsets.shape)}")
            if scale.ndim == 1 and scale.shape[0] != offsets.shape[0]:
                raise ValueError(
                    f"scale and offsets must have one row per sequence, got {scale.shape[0]} and {offsets.shape[0]}"
                )
        self._scale, self._offsets = scale, offsets
        self._rows.clear()

    def clear(self) -> None:
        """Leave positions unchanged again."""
        self._scale = self._offsets = None
        self._rows.clear()

    def remove(self) -> None:
        """Remove the hook from the model for good."""
        self.clear()
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def applied(
        self, scale: Float[Tensor, "*batch"] | float, offsets: Int[Tensor, "batch window"] | None = None
    ) -> Iterator[None]:
        """Use these scales and offsets within the block (see `set`), then those that were set before."""
        before = self._scale, self._offsets
        self.set(scale, offsets)
        try:
            yield
        finally:
            self._scale, self._offsets = before
            self._rows.clear()

    @torch.no_grad()
    def wanted_frequencies(self, buffer: Float[Tensor, " pairs"], scale: float) -> Float[Tensor, " pairs"]:
        """Return the inverse frequencies, float64, that replace a module's own at a scale."""
        whole = torch.tensor(float(scale), dtype=torch.float64, device=buffer.device)
        return buffer.double() * self.method.factors(buffer.double(), whole, self._length)

    def wanted_attention(self, factor: float, scale: float) -> float:
        """Return what a module with this attention factor multiplies cosines and sines by at a scale, float32."""
        turned = self.method.temperature(torch.tensor(float(scale), dtype=torch.float64))
        return float((turned * factor).float())

    @contextmanager
    def in_place(self, scale: float) -> Iterator[None]:
        """Write a scale's frequencies and temperature into the modules within the block; positions stay unchanged.

        Rope parameters in a model's config do the same: the reference for what `set` does row by row.
        """
        before = self._scale, self._offsets
        self.clear()
        saved = []
        try:
            for module in self.rotary_modules:
                for name, buffer in frequency_buffers(module).items():
                    attention = name.removesuffix("inv_freq") + "attention_scaling"
                    saved.append((module, buffer, buffer.clone(), attention, getattr(module, attention, None)))
                    buffer.copy_(self.wanted_frequencies(buffer, scale))
                    if saved[-1][-1] is not None:
                        setattr(module, attention, self.wanted_attention(saved[-1][-1], scale))
            yield
        finally:
            for module, buffer, frequencies, attention, factor in saved:
                buffer.copy_(frequencies)
                if factor is not None:
                    setattr(module, attention, factor)
            self._scale, self._offsets = before
            self._rows.clear()

    def _place(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        """Replace the position ids of a rotary module's call, whether they come by keyword or by position."""
        if self._scale is None:
            return None
        call = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
        if call.arguments.get("layer_type") == LOCAL_LAYER_TYPE:
            return None
        hidden = call.args[1]
        call.arguments["position_ids"] = self._positions(call.arguments["position_ids"], hidden.shape[0])
        if not self._divides:
            self._put_frequencies(module, call.arguments.get("layer_type"))
        return call.args[1:], call.kwargs

    def _put_frequencies(self, module: nn.Module, layer_type: str | None) -> None:
        """Put each row's frequencies and temperature into a rotary module for one call.

        The module multiplies positions [batch, tokens, 1] by its frequencies, so those of rows are [batch, 1, pairs].
        """
        assert self._scale is not None
        front = f"{layer_type}_" if layer_type and f"{layer_type}_inv_freq" in module._buffers else ""
        name, temperature = f"{front}inv_freq", f"{front}attention_scaling"
        base, attention = getattr(module, name), getattr(module, temperature)
        key = (id(module), name)
        if key not in self._rows:  # computed on the CPU: methods look at values, which a GPU would be waited for
            if key not in self._bases:
                self._bases[key] = base.cpu()
            scale = self._scale.cpu()
            frequencies = self.method.frequencies(self._bases[key], scale, self._length)
            turned = (self.method.temperature(scale.double()) * attention).float()
            if scale.ndim:
                frequencies, turned = frequencies[:, None, :], turned[:, None, None]
            move = partial(Tensor.to, device=base.device, non_blocking=True)
            self._rows[key] = move(frequencies), move(turned)
        self._before.append((module, name, base, temperature, attention))
        frequencies, turned = self._rows[key]
        setattr(module, name, frequencies)
        setattr(module, temperature, turned)

    def _give_back(self, module: nn.Module, args: object, output: object) -> None:
        """Put a module's own frequencies and temperature back after a call, however it ended."""
        if self._before and self._before[-1][0] is module:
            _, name, base, temperature, attention = self._before.pop()
            setattr(module, name, base)
            setattr(module, temperature, attention)

    def _positions(self, ids: Int[Tensor, "rows tokens"], num_rows: int) -> Float[Tensor, "batch tokens"]:
        """Return (id + offset) / scale in float32 for a batch of `num_rows` rows; `ids` may be one row for all.

        Positions are not divided where a method acts on the frequencies.

        Values of ids are compared with the window only on the CPU, where that needs no synchronisation.
        """
        assert self._scale is not None
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            shape = list(ids.shape) if isinstance(ids, Tensor) else ids
            raise SettingsError(
                f"the model's rotary module is given position ids of shape {shape}, wanted [batch, tokens]; "
                "multimodal positions cannot be scaled, choose a text model"
            )
        if ids.is_floating_point():
            raise ValueError("position ids are fractional already; set one RotaryHook at a time and pass plain ids")
        scale, offsets = self._scale.to(ids.device, non_blocking=True), self._offsets
        for name, value in (("scale", scale), ("offsets", offsets)):
            if value is not None and value.ndim and value.shape[0] not in (1, num_rows):
                raise ValueError(f"{name} has {value.shape[0]} rows, the batch {num_rows}")
        if offsets is not None:
            window = offsets.shape[1]
            if ids.shape[1] > window or (ids.device.type == "cpu" and ids.numel() and int(ids.max()) >= window):
                raise ValueError(f"offsets cover {window} tokens, the batch has {ids.shape[1]} or ids beyond them")
            rows = max(ids.shape[0], offsets.shape[0])
            ids = ids.long().expand(rows, -1)
            ids = ids + offsets.to(ids.device).expand(rows, -1).gather(1, ids)
        if not self._divides:
            return ids.to(torch.float32)
        return ids.to(torch.float32) / (scale[:, None] if scale.ndim else scale)


def _refuse_deaf(module: nn.Module) -> None:
    """Raise SettingsError if a rotary module computes its angles from other frequencies than those it holds."""
    ids = torch.arange(4, device=next(module.buffers()).device)[None]
    hidden = torch.zeros(1, 1, 1, device=ids.device)
    for name, buffer in frequency_buffers(module).items():
        if buffer.device.type == "meta":
            continue
        kind = {"layer_type": name.removesuffix("_inv_freq")} if name != "inv_freq" else {}
        outputs = []
        try:
            for factor in (1.0, 0.5):
                setattr(module, name, buffer * factor)
                output = module(hidden, ids, **kind)
                outputs.append(torch.view_as_real(output) if isinstance(output, Tensor) else torch.stack(list(output)))
        finally:
            setattr(module, name, buffer)
        if torch.equal(*outputs):
            raise SettingsError(
                f"{type(module).__name__} computes its frequencies anew in each call, so they cannot be changed row by "
                "row; take method linear, or another model"
            )


def other_keys(part: Rope) -> Rope:
    """Return the rope parameters that other layers than the rotary module read, such as Ministral's query scale.

    With such a key comes the length that it refers to.
    """
    others = {key: value for key, value in part.items() if key not in FREQUENCY_KEYS}
    length = "original_max_position_embeddings"
    return {**others, length: part[length]} if others and part.get(length) is not None else others


def refuse_scaled(model: nn.Module, lane: str) -> None:
    """Raise SettingsError if layers that see far carry a scaling already, which an untrained one would add to."""
    for module in find_rotary_modules(model):
        rope_type = getattr(module, "rope_type", None)
        kinds = rope_type if isinstance(rope_type, dict) else {"": rope_type}
        scaled = [each for kind, each in kinds.items() if kind != LOCAL_LAYER_TYPE and each != "default"]
        if scaled:
            raise SettingsError(
                f"untrained {lane}: the model's rope is {scaled[0]}, wanted plain RoPE in all layers that see far; "
                f"leave {lane} out"
            )


def find_rotary_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model that turn position ids into angles.

    Raises:
        SettingsError: If there is none, as in models with learned positions or ALiBi.
    """
    modules = [
        module
        for module in model.modules()
        if frequency_buffers(module) and "position_ids" in inspect.signature(type(module).forward).parameters
    ]
    if not modules:
        raise SettingsError(
            f"{type(model).__name__} has no rotary module that takes position ids, so its positions cannot be "
            "scaled; choose a RoPE model such as Llama, Qwen, Mistral or Gemma"
        )
    return modules


def frequency_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the inverse frequencies that a module itself holds, by name, without those of local layers and backups."""
    return {
        name: buffer
        for name, buffer in module.named_buffers(recurse=False)
        if name.endswith("inv_freq") and "original" not in name and not name.startswith(LOCAL_LAYER_TYPE)
    }
