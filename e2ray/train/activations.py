"""How much memory activations and logits take in a step, found without a GPU and without weights.

The model runs forwards and backwards on fake tensors, which have shapes and no numbers, and what torch allocates and
frees is added up. Layers of a model are alike, so that a few of them tell what each one adds: those that keep their
activations, and those that recompute them.
"""

import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from e2ray.config.base import SettingsError
from e2ray.config.model import LlamaModel, Model
from e2ray.core.adapters import with_adapters_quietly
from e2ray.core.base import load_config
from e2ray.core.head import FusedHead
from e2ray.core.model import from_config, recompute, recomputed_layers
from e2ray.core.weights import first_line
from e2ray.train.objectives import Reader

FEW = 2  # layers of a kind that are measured
MASKLESS = "e2ray_maskless"  # an attention whose memory grows with the tokens, as that of flash attention does


def _maskless(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **given: Any) -> Any:
    return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **given)


def _no_mask(*args: object, **given: object) -> None:
    return None


AttentionInterface.register(MASKLESS, _maskless)
AttentionMaskInterface.register(MASKLESS, _no_mask)


class Live(TorchDispatchMode):
    """Adds up what is allocated within it, and remembers the most.

    Attributes:
        now: Bytes that are held.
        most: The most so far.
    """

    def __init__(self, known: nn.Module) -> None:
        """Begin with nothing; the parameters and buffers of `known` do not count."""
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}
        for tensor in (*known.parameters(), *known.buffers()):
            self._sizes[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make a call and count what it returns."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._sizes:
            return
        self._sizes[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


@dataclass(frozen=True)
class Step:
    """One forward and backward pass.

    Attributes:
        rows: Of the micro batch.
        window: Tokens of a row.
        dtype: Of the weights.
        attention: As transformers calls it, or `MASKLESS`.
        vocab_size: Of a model that is built from sizes.
        fused_loss: Whether the loss is computed with the head in it.
    """

    rows: int
    window: int
    dtype: torch.dtype
    attention: str
    vocab_size: int
    fused_loss: bool = False


def activations(settings: Model, step: Step) -> int:
    """Return the bytes of activations, logits and their gradients at the worst moment of a step.

    Weights, and gradients of weights once they are whole, do not count. Compiled layers keep less than is said here.

    Raises:
        SettingsError: If no model of these shapes can run.
    """
    total = num_layers(settings)
    recomputed = recomputed_layers(settings.checkpoint_share, total)
    kept = total - recomputed
    few_kept, few_recomputed = min(kept, FEW), min(recomputed, FEW)
    most = _most(settings, step, few_kept, few_recomputed)
    result = most
    if kept > few_kept:
        result += (kept - few_kept) * (most - _most(settings, step, few_kept - 1, few_recomputed))
    if recomputed > few_recomputed:
        result += (recomputed - few_recomputed) * (most - _most(settings, step, few_kept, few_recomputed - 1))
    return result


def num_layers(settings: Model) -> int:
    """Return how many decoder layers a model has."""
    if isinstance(settings, LlamaModel):
        return settings.num_layers
    return int(load_config(settings).get_text_config().num_hidden_layers)


def _most(settings: Model, step: Step, kept: int, recomputed: int) -> int:
    """Return the bytes at the worst moment of a model of a few layers."""
    model = _model(settings, step, kept, recomputed)
    try:
        with FakeTensorMode():
            _make_fake(model)
            tokens = torch.zeros(step.rows, step.window, dtype=torch.int64)
            read = Reader(partial(_logits, model), FusedHead(model) if step.fused_loss else None)
            with Live(model) as live:
                read.nll(tokens).mean().backward()
            return live.most
    except Exception as error:  # a model that looks at values, shapes that do not fit: each its own exception
        raise SettingsError(
            f"model: its activations cannot be found without running it ({first_line(error)}); choose another model, "
            "or train it as it is"
        ) from None


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def _model(settings: Model, step: Step, kept: int, recomputed: int) -> nn.Module:
    """Return a model of a few layers without weights."""
    count = kept + recomputed
    with torch.device("meta"):
        plain = from_config(settings, attention=step.attention, vocab_size=step.vocab_size, num_layers=count)
    for parameter in plain.parameters():
        parameter.data = parameter.data.to(step.dtype)
    if recomputed:
        recompute(plain, recomputed / count)
    return with_adapters_quietly(plain, settings.lora).train()


def _make_fake(model: nn.Module) -> None:
    """Give a model fake tensors on the CPU, and let it forget the gradients of its weights, as ZeRO does by bucket."""
    made: dict[int, nn.Parameter] = {}  # modules may share a weight
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                if parameter.requires_grad:
                    made[id(parameter)].register_post_accumulate_grad_hook(_forget_gradient)
            module._parameters[name] = made[id(parameter)]


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None
