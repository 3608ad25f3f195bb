"""From a checkpoint to the Hugging Face folder `model/`: full weights, adapters merged, tokenizer beside them."""

from pathlib import Path

import torch

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.model import Model
from e2ray.core.model import build_model, load_tokenizer, merged, non_finite
from e2ray.train import checkpoint
from e2ray.train.loop import Diverged


def write_model(
    settings: Model, found: Path, folder: Path, *, dtype: torch.dtype, vocab_size: int, seed: int, tokenizer: Path
) -> None:
    """Write the model a checkpoint holds as a Hugging Face folder, whole or not at all.

    Args:
        settings: The model that was trained.
        found: The `step-<n>` folder of its checkpoint; its digests are verified.
        folder: Where the model goes.
        dtype: dtype of the written weights.
        vocab_size: Vocabulary of a model built from its sizes.
        seed: Seed of its first weights.
        tokenizer: Folder of the tokenizer.

    Raises:
        SettingsError: If the checkpoint is damaged or belongs to another model, or the disk is full.
        Diverged: If a weight is not finite once merged and in `dtype`.
    """
    model = build_model(settings, dtype=torch.float32, vocab_size=vocab_size, seed=seed)
    state = checkpoint.read_state(found)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if parameters.keys() != state["parameters"].keys():
        raise SettingsError(f"{found}: belongs to another model than the settings describe")
    with torch.no_grad():
        for entry in checkpoint.read_parameters(found, state):
            parameters[entry.name].copy_(entry.weight)
    whole = merged(model)
    whole.config.use_cache = True
    _to(whole, dtype)
    _refuse_non_finite(whole, found, dtype)
    with files.atomic_folder(folder) as aside:
        whole.save_pretrained(aside)
        load_tokenizer(str(tokenizer)).save_pretrained(aside)


def _refuse_non_finite(model: torch.nn.Module, found: Path, dtype: torch.dtype) -> None:
    """Raise Diverged if a weight that would be written is not finite: a product of adapters or the dtype overflows."""
    name = non_finite(model)
    if name:
        raise Diverged(
            f"{found}: {name} is not finite as merged {str(dtype).removeprefix('torch.')}, so no model is written; "
            "train again with a lower train.lr"
        )


def _to(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights and leave the buffers: `model.to` would round `inv_freq` too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
