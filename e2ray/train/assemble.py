"""From a checkpoint to the Hugging Face folder `model/`: weights with adapters merged, and the files beside them."""

from pathlib import Path

import torch
from transformers import GenerationConfig

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.model import Model
from e2ray.core.model import build_model, merged
from e2ray.core.model_folder import seal
from e2ray.core.probe import Probe, forward_of, refuse_other_answers
from e2ray.core.rope import RotaryHook
from e2ray.core.weights import non_finite
from e2ray.data.tokenizer import save_whole
from e2ray.records.checkpoint import CheckpointState
from e2ray.records.folders import CheckpointFolder, RunFolder
from e2ray.train import checkpoint, steps
from e2ray.train.beside import base_folder, has_generation_settings, take_along
from e2ray.train.loop import Diverged
from e2ray.train.origin import origin
from e2ray.train.task import Task


def write_trained(task: Task) -> list[str]:
    """Write the model of a finished training from its last checkpoint, and return the lines of `write_model`."""
    saved = steps.latest(RunFolder(task.folder).checkpoints)
    assert saved is not None, "a training that ends has saved its last step"
    return write_model(
        task.model,
        saved,
        RunFolder(task.folder).model,
        dtype=_saved_dtype(saved),
        vocab_size=task.vocab_size,
        seed=task.seed,
        tokenizer=task.tokenizer_folder,
    )


def _saved_dtype(saved: Path) -> torch.dtype:
    kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    path = CheckpointFolder(saved).state
    name = CheckpointState.read(path).dtype
    if name not in kinds:
        raise SettingsError(f"{path}: is damaged, dtype is {name!r}; wanted {' or '.join(kinds)}")
    return kinds[name]


def write_model(
    settings: Model, saved: Path, folder: Path, *, dtype: torch.dtype, vocab_size: int, seed: int, tokenizer: Path
) -> list[str]:
    """Write the model a checkpoint holds as a Hugging Face folder, whole or not at all.

    The files beside the base's weights are copied too; one line is returned for each that is not. `saved` is a
    `step-<n>` folder, whose digests are verified; vocabulary and seed are for a model built from its sizes.

    Raises:
        SettingsError: If the checkpoint is damaged or belongs to another model, the model's answers differ from those
            of the engine that was saved, or the disk is full.
        Diverged: If a weight is not finite once merged and in `dtype`.
    """
    # Flash attention of the training cannot run on a CPU and knows no float32.
    plain = settings.model_copy(update={"attention": "auto", "checkpoint_share": 0.0, "liger": False})
    model = build_model(plain, dtype=torch.float32, vocab_size=vocab_size, seed=seed)
    try:
        state = checkpoint.read_state(saved)
    except checkpoint.DamagedError as error:
        pointer = saved.parent / steps.LATEST
        raise SettingsError(f"{error}; choose an older step-<n> by writing its name into {pointer}") from None
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if parameters.keys() != state.parameters.keys():
        raise SettingsError(f"{saved}: belongs to another model than the settings describe")
    with torch.no_grad():
        for entry in checkpoint.read_parameters(saved, state):
            parameters[entry.name].copy_(entry.weight)
    whole = merged(model).eval()
    _refuse_non_finite(whole, saved, dtype)
    probe = Probe.read(saved / checkpoint.PROBE)
    hook = RotaryHook(whole)
    refuse_other_answers(probe, forward_of(whole), hook, whole, device=whole.device, what=f"{folder}, from {saved},")
    hook.remove()
    _to(whole, dtype)
    source, lines = base_folder(settings)
    if has_generation_settings(source):  # copied as they are: saving would refuse what real bases hold
        whole.generation_config = GenerationConfig()
    with files.atomic_folder(folder) as aside:
        whole.save_pretrained(aside)
        save_whole(tokenizer, aside)
        if source is not None:
            lines += take_along(source, aside)
        made = {"step": state.step, "tokens": state.tokens, "stopped": state.stopped}
        seal(aside, probe, training=origin(state.identity).changed(**made))
    return lines


def _refuse_non_finite(model: torch.nn.Module, saved: Path, dtype: torch.dtype) -> None:
    """Raise Diverged if a weight that would be written is not finite: a product of adapters or the dtype overflows."""
    name = non_finite(model, dtype)
    if name:
        raise Diverged(
            f"{saved}: {name} is not finite as merged {str(dtype).removeprefix('torch.')}, so no model is written; "
            "train again with a lower train.lr"
        )


def _to(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights and leave the buffers: `model.to` would round `inv_freq` too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
