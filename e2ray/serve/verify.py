"""Does a serving profile give the model that was trained? Loaded back from the disk and compared, in fp32.

A profile is a few numbers in a JSON file, and each server reads such numbers in its own way: a missing key silently
falls back to a default. So every profile of an export is loaded with plain transformers, as its users will, and
compared with the rotary hook that the model was trained with.

Hook and profile round differently, since one divides positions and the other frequencies, and a deep model amplifies
small differences; a router may even choose other experts, for all tokens that follow. So the checks are made where
rounding plays no part: frequencies in float64 against the unit in the last place (ulp) of float32, the attention factor
exactly, and layers and logits with the trained model's own angles put into the served one. How far the served logits
are from the trained model's is reported beside the difference that one ulp in the angles makes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from e2ray.config.base import SettingsError
from e2ray.core.methods.base import FrequencyMethod
from e2ray.core.rope import LOCAL_LAYER_TYPE, RotaryHook, find_rotary_modules, frequency_buffers
from e2ray.core.scales import reaching_scale
from e2ray.core.weights import load_weights, non_finite, quietly
from e2ray.data.pace import Progress
from e2ray.files import read_object
from e2ray.records.folders import ExportFolder

COMPARED_TOKENS = 512  # of a forward; positions between are compared at the rotary modules
POSITIONS_PER_CHUNK = 65_536
ULP = 2.0**-23  # of float32, relative
FREQUENCY_ULPS = 3  # a frequency takes three roundings of half an ulp, and a power
# Angles of both sides are float32: some six roundings of 2**-24 each, relative to the angle itself.
ROTARY_TOLERANCE = 2e-6
ANGLE_TOLERANCE = 5e-7
EQUAL_ULPS = 8  # of the largest number compared, where both sides compute the same
LOGITS_STRIDE = 4  # logits of every fourth token are compared, with a large vocabulary a quarter of a GB already

Outputs = dict[str, Float[Tensor, "tokens width"]]


@dataclass(frozen=True)
class Check:
    """What loading one profile back has shown.

    Attributes:
        context_length: W in tokens.
        scale: g the hook was set to.
        tokens: Random tokens of a forward pass, at the beginning of the context and at its end.
        max_logit_difference: Largest absolute difference of logits, fp32.
        logit_difference: Largest difference of one token's logits, the median over the tokens.
        logit_noise: The same number for a change of one ulp in the angles.
        max_rotary_difference: Largest difference of cosines and sines over all positions 0 to W - 1.
    """

    context_length: int
    scale: float
    tokens: int
    max_logit_difference: float
    logit_difference: float
    logit_noise: float
    max_rotary_difference: float

    @property
    def line(self) -> str:
        """What is printed of it."""
        return (
            f"serving/{self.context_length}: scale {self.scale:g}, logits equal to the hook's within "
            f"{self.logit_difference:.1e}, where one ulp in the angles makes {self.logit_noise:.1e}"
        )


@dataclass(frozen=True)
class Wanted:
    """What the trained model makes of one text at one place of the context.

    Attributes:
        tokens: int64 [1, tokens].
        positions: int64 [1, tokens], those of the text.
        outputs: Of layers and head under the hook.
        noise: Difference of the logits under one ulp in the angles, the median over the tokens.
    """

    tokens: Int[Tensor, "one tokens"]
    positions: Int[Tensor, "one tokens"]
    outputs: Outputs
    noise: float


def verify(
    folder: str | Path,
    *,
    base_context_length: int,
    context_lengths: Sequence[int],
    scales: Mapping[int, float] | None = None,
    method: FrequencyMethod | None = None,
    seed: int = 0,
    tokens: int = COMPARED_TOKENS,
    progress: Progress | None = None,
) -> list[Check]:
    """Load every profile of an export back with plain transformers and compare it with the rotary hook, in fp32.

    Compared are: the inverse frequencies of each rotary module in float64 and its attention factor, at every power of
    two of positions up to W; its cosines and sines at positions 0 to W - 1; and for random tokens at both ends of W the
    outputs of the first layer of each type, of two at least, and the logits, under the very same angles. The logits
    under the profile's own angles are measured.

    Args:
        folder: An export; its files are what is checked.
        base_context_length: L in tokens.
        context_lengths: W in tokens.
        scales: g by W; W / L where it names none.
        method: What a scale meant in training; None: linear.
        seed: Of the random tokens.
        tokens: How many of them at each place, cut to W.
        progress: Takes one line per profile.

    Raises:
        FileNotFoundError: If a profile is not there.
        SettingsError: If a weight is not finite, or a profile differs from the hook at its scale.
    """
    chosen = {length: reaching_scale(length, base_context_length) for length in context_lengths} | dict(scales or {})
    overrides = {
        length: read_object(ExportFolder(Path(folder)).override(context_length=length), wanted="a serving profile")
        for length in context_lengths
    }
    with quietly():
        model = _load(Path(folder), {})
        if wrong := non_finite(model, torch.float32):
            raise SettingsError(f"{folder}: {wrong} holds numbers that are not finite; export a model that is whole")
        hook = RotaryHook(model, method, base_context_length=base_context_length)
        texts = {
            length: _wanted(model, hook, length, chosen[length], min(tokens, length), seed)
            for length in context_lengths
        }
        del model  # the hook keeps the rotary modules, the weights go
        checks = []
        for length, override in overrides.items():
            with _refusing(length, "load"):
                served = _load(Path(folder), override)
            with _refusing(length, "run"):
                check = _compare(served, hook, length, chosen[length], texts[length])
            checks.append(check)
            if progress is not None:
                progress(check.line)
            del served
    return checks


@contextmanager
def _refusing(length: int, doing: str) -> Iterator[None]:
    """Turn an error of the model's own code in the block into a SettingsError that names the profile."""
    where = f"serving/{length}: "
    try:
        yield
    except SettingsError as error:
        raise SettingsError(where + str(error).removeprefix(where)) from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise SettingsError(
            f"{where}transformers cannot {doing} it ({type(error).__name__}: {error}); refused"
        ) from None


def _wanted(model: PreTrainedModel, hook: RotaryHook, length: int, scale: float, count: int, seed: int) -> list[Wanted]:
    """Return what the hooked model makes of random tokens at the beginning of a context length and at its end."""
    texts = []
    for start in sorted({0, length - count}):
        tokens = _random_tokens(model.config.vocab_size, count, seed)
        positions = torch.arange(start, start + count)[None]
        with hook.applied(scale):
            outputs = _outputs(model, tokens, positions)
            with _one_ulp(hook.rotary_modules, seed):
                moved = _outputs(model, tokens, positions)
        texts.append(Wanted(tokens, positions, outputs, _typical(moved["logits"], outputs["logits"])))
    return texts


@contextmanager
def _one_ulp(modules: Sequence[nn.Module], seed: int) -> Iterator[None]:
    """Move each position's angles by one ulp of float32 within the block, up or down at random.

    Rounding differs from position to position. A frequency off by an ulp at all positions alike would cancel out of
    neighbours' scores and change them far less.
    """
    generator = torch.Generator().manual_seed(seed)

    def move(
        module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]] | None:
        ids = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
        if ids is None or not ids.is_floating_point():  # of local layers, which the hook leaves alone
            return None
        up = torch.rand(ids.shape, generator=generator) < 0.5
        beside = torch.where(up, ids.nextafter(ids + 1), ids.nextafter(ids - 1)).where(ids > 0, ids)
        if "position_ids" in kwargs:
            return args, kwargs | {"position_ids": beside}
        return (args[0], beside, *args[2:]), kwargs

    handles = [module.register_forward_pre_hook(move, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _compare(served: PreTrainedModel, hook: RotaryHook, length: int, scale: float, texts: Sequence[Wanted]) -> Check:
    """Return the check of a served model.

    Raises:
        SettingsError: If it is not the trained model at this scale.
    """
    modules = find_rotary_modules(served)
    rotary = 0.0
    for module, reference in zip(modules, hook.rotary_modules, strict=True):
        _same_frequencies(module, reference, hook, length, scale)
        with hook.applied(scale):
            rotary = max(rotary, _rotary_difference(module, reference, hook, length, scale))
    where = f"differ from the trained model's at scale {scale:g} by"
    largest = typical = noise = 0.0
    for text in texts:
        with hook.applied(scale), _angles_of(hook.rotary_modules, modules):
            same = _outputs(served, text.tokens, text.positions)
        for name in ("logits", *same):  # the logits first: users know them
            difference = _difference(same[name], text.outputs[name])
            allowed = EQUAL_ULPS * ULP * float(text.outputs[name].abs().max())
            if not difference <= allowed:
                raise SettingsError(
                    f"serving/{length}: loaded back, its {name} {where} {difference:.2g} under the very same angles, "
                    f"wanted at most {allowed:.2g}; refused"
                )
        logits = _outputs(served, text.tokens, text.positions)["logits"]
        largest = max(largest, _difference(logits, text.outputs["logits"]))
        typical = max(typical, _typical(logits, text.outputs["logits"]))
        noise = max(noise, text.noise)
    return Check(length, scale, texts[0].tokens.shape[1], largest, typical, noise, rotary)


@contextmanager
def _angles_of(references: Sequence[nn.Module], modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let rotary modules return what `references` return within the block."""

    def instead(reference: nn.Module) -> Callable[..., object]:
        return lambda module, args, kwargs, output: reference(*args, **kwargs)

    handles = [
        module.register_forward_hook(instead(reference), with_kwargs=True)
        for module, reference in zip(modules, references, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _same_frequencies(served: nn.Module, reference: nn.Module, hook: RotaryHook, length: int, scale: float) -> None:
    """Check that a served module's frequencies are the trained ones over `scale`, and its attention factor the same.

    It checks at every power of two of positions, since some types choose their frequencies by the longest position.

    Raises:
        SettingsError: If a frequency is off by more than a few ulps, or an attention factor at all.
    """
    trained = {
        name: buffer.double() if name.startswith(LOCAL_LAYER_TYPE) else hook.wanted_frequencies(buffer, scale)
        for name, buffer in _frequencies(reference).items()
    }
    for reach in [*(2**power for power in range((length - 1).bit_length())), length]:
        ids = torch.tensor([[0, reach - 1]])
        for kind in _layer_types(served):
            with hook.applied(scale):
                expected = _turns(reference, ids, kind)[0][0]
            actual = _turns(served, ids, kind)[0][0]
            if not torch.equal(actual, expected):  # the cosine of position 0 is 1 times the attention factor
                raise SettingsError(
                    f"serving/{length}: loaded back, its attention factor differs from the trained model's at scale "
                    f"{scale:g} by {_difference(actual, expected):.2g} ({float(actual.max()):g} instead of "
                    f"{float(expected.max()):g}); refused"
                )
        for name, buffer in _frequencies(served).items():
            off = (buffer.double() - trained[name]).abs()
            if not bool((off <= FREQUENCY_ULPS * ULP * trained[name]).all()):
                most = float((off / trained[name]).max())
                raise SettingsError(
                    f"serving/{length}: loaded back, its frequencies differ from the trained model's at scale "
                    f"{scale:g} by {most:.2g} of their value in a text of {reach} tokens, "
                    f"wanted at most {FREQUENCY_ULPS * ULP:.2g}; refused"
                )


def _frequencies(module: nn.Module) -> dict[str, Tensor]:
    """Return all inverse frequencies that a rotary module uses, by name, those of local layers too."""
    return {
        name: buffer
        for name, buffer in module.named_buffers(recurse=False)
        if name.endswith("inv_freq") and "original" not in name
    }


def _layer_types(module: nn.Module) -> list[dict[str, str]]:
    """Return the keywords of a rotary module's calls, one for each layer type it distinguishes."""
    kinds = getattr(module, "layer_types", None) or ()
    return [{"layer_type": kind} for kind in kinds] or [{}]


@torch.no_grad()
def _turns(module: nn.Module, ids: Int[Tensor, "one tokens"], kind: Mapping[str, str]) -> list[Tensor]:
    """Return cosines and sines of positions, float32 [tokens, width] each; some modules give complex numbers."""
    output = module(torch.zeros(1, 1), ids, **kind)
    parts = (output.real, output.imag) if isinstance(output, Tensor) else output
    return [part[0] for part in parts]


def _rotary_difference(served: nn.Module, reference: nn.Module, hook: RotaryHook, length: int, scale: float) -> float:
    """Return the largest difference of cosines and sines at positions 0 to `length` - 1, all layer types.

    Raises:
        SettingsError: If they differ by more than float32 angles explain.
    """
    largest = 0.0
    pairs = [(hook.wanted_frequencies(each, scale), each) for each in frequency_buffers(reference).values()]
    fastest = max(float((frequencies / each.max()).max()) for frequencies, each in pairs)
    for start in range(0, length, POSITIONS_PER_CHUNK):
        ids = torch.arange(start, min(length, start + POSITIONS_PER_CHUNK))[None]
        allowed = ROTARY_TOLERANCE + ANGLE_TOLERANCE * ids[0, :, None] * fastest
        for kind in _layer_types(served):
            for one, other in zip(_turns(served, ids, kind), _turns(reference, ids, kind), strict=True):
                difference = (one - other).abs()
                if not bool((difference <= allowed).all()):
                    position = start + int((difference - allowed).amax(dim=1).argmax())
                    raise SettingsError(
                        f"serving/{length}: loaded back, its rotation at position {position} differs from the trained "
                        f"model's at scale {scale:g} by {float(difference.max()):.2g}; refused"
                    )
                largest = max(largest, float(difference.max()))
    return largest


def _load(folder: Path, override: Mapping[str, object]) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **override)
    where = str(folder)
    model = load_weights(where, key=where, config=config, revision=None, dtype=torch.float32, use_safetensors=True)
    return model.eval()


def compared_layers(config: PreTrainedConfig) -> list[int]:
    """Return the numbers of the layers whose outputs are compared: the first of each type, and the first two."""
    types = list(getattr(config, "layer_types", None) or ())
    first = {types.index(kind) for kind in types}
    return sorted(number for number in first | {0, 1} if number < config.num_hidden_layers)


def _random_tokens(vocab_size: int, tokens: int, seed: int) -> Int[Tensor, "one tokens"]:
    return torch.randint(vocab_size, (1, tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _outputs(
    model: PreTrainedModel, tokens: Int[Tensor, "one tokens"], positions: Int[Tensor, "one tokens"]
) -> Outputs:
    """Return what the compared layers and the head make of a text, by name, in float32."""
    result = model(input_ids=tokens, position_ids=positions, use_cache=False, output_hidden_states=True)
    outputs = {
        f"outputs of layer {number + 1}": result.hidden_states[number + 1][0].float()
        for number in compared_layers(model.config)
    }
    return outputs | {"logits": result.logits[0, ::LOGITS_STRIDE].float().clone()}


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _typical(one: Float[Tensor, "tokens vocab"], other: Float[Tensor, "tokens vocab"]) -> float:
    """Return the largest difference of a token's logits, the median over the tokens."""
    return float((one - other).abs().amax(dim=1).median())
