"""A model's answers to a few fixed tokens, kept beside its weights: another model gives other answers.

Files can be intact and still hold another model than the one trained: an adapter that was merged twice, a base that
changed, a checkpoint of another run. So the engine's own logits, under no draw and under one with a scale and a shift,
go with every checkpoint, and are compared whenever its weights are loaded. What rounding alone explains is measured on
the loaded model: every module's output is moved by one rounding step of the coarser dtype at random, and the logits may
differ by a small multiple of the effect. Weights that differ by less pass: in bf16 an adapter after a few small updates
cannot be told from its base. Digests compare the bits (`core/model_folder.py`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from e2ray.config.base import SettingsError
from e2ray.core.proof import seeded
from e2ray.core.rope import RotaryHook

TOKENS, PREFIX, SCALE = 24, 4, 4.0
PLACES = (3, 7, 11, 15, 19, 23)  # of the tokens whose logits are kept, over the whole vocabulary
ROUNDING_STEPS = 8.0  # logits may differ by this multiple of what one rounding step in every module does
ROUNDINGS = 3  # of which the one with the largest effect counts
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # as configs call their number
Forward = Callable[[Int[Tensor, "one tokens"]], Float[Tensor, "one tokens vocabulary"]]


@dataclass(frozen=True)
class Probe:
    """Logits of fixed tokens under two draws.

    Attributes:
        tokens: int64 [tokens].
        scale: float32 [2], the scales of the draws.
        offsets: int64 [2, tokens], their offsets.
        logits: float32 [2, places, vocabulary], at `PLACES`.
        dtype: Of the weights that answered, `bfloat16` or `float32`.
    """

    tokens: Int[Tensor, " tokens"]
    scale: Float[Tensor, " two"]
    offsets: Int[Tensor, "two tokens"]
    logits: Float[Tensor, "two places vocabulary"]
    dtype: str

    def save(self, path: Path) -> None:
        """Write it as a safetensors file."""
        tensors = {name: getattr(self, name).contiguous() for name in ("tokens", "scale", "offsets", "logits")}
        save_file(tensors, path, metadata={"dtype": self.dtype})

    @classmethod
    def read(cls, path: Path) -> "Probe":
        """Return the probe that `save` wrote.

        Raises:
            SettingsError: If the file is damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in ("tokens", "scale", "offsets", "logits")}
                return cls(**tensors, dtype=file.metadata()["dtype"])
        except (OSError, KeyError, TypeError, SafetensorError) as error:
            raise SettingsError(f"{path}: is damaged ({type(error).__name__}), wanted the probe of a model") from None


def ask(forward: Forward, hook: RotaryHook, *, vocab_size: int, dtype: torch.dtype, device: torch.device) -> Probe:
    """Return a model's answers to fixed tokens. The hook is cleared afterwards.

    Args:
        forward: Logits of token ids, int64 [1, tokens], without mask, positions, dropout or graph.
        hook: The model's hook.
        vocab_size: Tokens to choose from.
        dtype: Of the model's weights.
        device: Where `forward` takes its tokens.
    """
    tokens = torch.randint(vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(0))
    offsets = torch.zeros(2, TOKENS, dtype=torch.int64)
    offsets[1, PREFIX:] = 4 * TOKENS
    scale = torch.tensor([1.0, SCALE])
    logits = _answers(forward, hook, tokens, scale, offsets, device)
    return Probe(tokens, scale, offsets, logits, str(dtype).removeprefix("torch."))


def _answers(
    forward: Forward, hook: RotaryHook, tokens: Tensor, scale: Tensor, offsets: Tensor, device: torch.device
) -> Float[Tensor, "two places vocabulary"]:
    logits = []
    for draw in range(len(scale)):
        with hook.applied(scale[draw : draw + 1].to(device), offsets[draw : draw + 1].to(device)):
            logits.append(forward(tokens[None].to(device))[0, list(PLACES)].detach().float().cpu())
    return torch.stack(logits)


def refuse_other_answers(
    probe: Probe, forward: Forward, hook: RotaryHook, model: nn.Module, *, device: torch.device, what: str
) -> None:
    """Raise SettingsError if a model's answers differ from its probe by more than rounding explains.

    Args:
        probe: Of the model that it should be.
        forward: As for `ask`.
        hook: The model's hook, cleared afterwards.
        model: The module that `forward` runs.
        device: Where `forward` takes its tokens.
        what: What errors name, e.g. `~/e2ray/demo/model`.
    """

    def answers() -> Float[Tensor, "two places vocabulary"]:
        return _answers(forward, hook, probe.tokens, probe.scale, probe.offsets, device)

    logits = answers()
    if logits.shape != probe.logits.shape:
        raise SettingsError(
            f"{what}: embeds {logits.shape[2]} tokens, the model that was trained {probe.logits.shape[2]}; these are "
            "other weights"
        )
    dtypes = {probe.dtype, *(str(each.dtype).removeprefix("torch.") for each in model.parameters())}
    step, noises = 2.0**-8 if "bfloat16" in dtypes else 2.0**-23, []
    for seed in range(ROUNDINGS):
        with _rounded(model, step), seeded(seed, device):
            noises.append(answers() - logits)
    for name, measure in (TYPICAL if "bfloat16" in dtypes and has_router(model) else WHOLE).items():
        differs, allowed = measure(logits - probe.logits), ROUNDING_STEPS * max(map(measure, noises))
        if not differs <= allowed:
            raise SettingsError(
                f"{what}: answers otherwise than the model that was trained: the {name} difference of its logits is "
                f"{differs:.2g}, rounding explains {allowed:.2g}; these are other weights, or the base has changed"
            )


def has_router(model: nn.Module) -> bool:
    """Return whether a model routes tokens to experts; rounding may route them to others."""
    configs = [module.config.get_text_config() for module in model.modules() if isinstance(module, PreTrainedModel)]
    return any(getattr(config, key, None) for config in configs for key in EXPERTS)


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def _typical(values: Float[Tensor, "two places vocabulary"]) -> float:
    """Return the root mean square over the vocabulary, its median over places, and of the two draws the larger."""
    return float(values.double().square().mean(dim=2).sqrt().median(dim=1).values.max())


WHOLE = {"root mean square": _rms, "largest": _largest}
TYPICAL = {"typical": _typical}  # in bf16, whose rounding alone sends tokens to other experts


@contextmanager
def _rounded(model: nn.Module, step: float) -> Iterator[None]:
    """Change the output of every leaf module by a random share of up to `step` within the block."""

    def move(module: nn.Module, given: object, output: object) -> object:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        return output * (1 + step * (2 * torch.rand_like(output, dtype=torch.float32) - 1)).to(output.dtype)

    leaves = [module for module in model.modules() if not any(module.children())]
    handles = [module.register_forward_hook(move) for module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def forward_of(model: nn.Module) -> Forward:
    """Return the forward pass that a probe needs, of a loaded model in evaluation mode."""

    def forward(ids: Int[Tensor, "one tokens"]) -> Float[Tensor, "one tokens vocabulary"]:
        with torch.no_grad():
            logits: Tensor = model(input_ids=ids, use_cache=False).logits
            return logits

    return forward
