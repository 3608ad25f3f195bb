"""The weights of a checkpoint, loaded whole or refused.

transformers fills missing weights with random numbers and drops those it has no place for, and says so in a log at
most. Either way the model is not the one on the disk, so its own report of a loading is read here, and files beside the
weights that would be loaded with them are checked before.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME, cached_file
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import find_adapter_config_file

from e2ray.config.base import SettingsError
from e2ray.files import read_json


def load_weights(
    where: str, *, key: str, config: PreTrainedConfig, revision: str | None, **options: object
) -> PreTrainedModel:
    """Return a causal language model whose parameters are exactly those of a checkpoint.

    Parameters that the config ties to others may be missing. Where a file holds a tied parameter with values of its
    own the model is not tied, and its config says so afterwards.

    Args:
        where: Folder or hub id.
        key: What errors name, e.g. `model.path ~/llama`.
        config: What the model is built from.
        revision: Branch, tag or commit of a hub id.
        options: Further ones of `from_pretrained`: dtype, attn_implementation, use_safetensors.

    Raises:
        SettingsError: If weights are missing, left over, of other shapes or unreadable, if an index names files outside
            of its folder, or if there are adapters beside the weights.
    """
    _refuse_adapters(where, key, revision)
    _refuse_strange_index(where, key, revision)
    try:
        with quietly():  # its report would say that left over weights can be ignored
            model, report = AutoModelForCausalLM.from_pretrained(
                where,
                config=config,
                revision=revision,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the name that the error of transformers lacks
                **options,
            )
    except Exception as error:  # missing or damaged files, no causal head: each its own exception
        raise SettingsError(
            f"{key}: its weights cannot be loaded ({first_line(error)}); name a complete checkpoint of a causal "
            "language model"
        ) from None
    _refuse_partial(
        key,
        missing=sorted(report["missing_keys"]),
        left_over=sorted(report["unexpected_keys"]),
        mismatched=sorted(report["mismatched_keys"]),
        errors=report["error_msgs"],
    )
    _untie_config(model)
    return model


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without the punctuation at its end."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(" .:")


def _refuse_adapters(where: str, key: str, revision: str | None) -> None:
    try:
        config = find_adapter_config_file(where, revision=revision)
    except OSError:
        return  # the hub does not answer; loading will report it
    if config is not None:
        raise SettingsError(
            f"{key}: holds adapter_config.json, and transformers would put that adapter on the weights; merge it into "
            "them, or move it out of the folder"
        )


def _refuse_strange_index(where: str, key: str, revision: str | None) -> None:
    for name in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        try:
            path = cached_file(
                where,
                name,
                revision=revision,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                _raise_exceptions_for_gated_repo=False,
            )
        except OSError:
            continue
        if path is None:
            continue
        index = read_json(path, wanted="an index of weights")
        files = index.get("weight_map") if isinstance(index, dict) else None
        for parameter, file in files.items() if isinstance(files, dict) else [("", None)]:
            if not isinstance(file, str):
                raise SettingsError(f"{key}: {name} is damaged, wanted weight_map, the file of each parameter")
            if Path(file).name != file or file in ("", ".", ".."):
                raise SettingsError(
                    f"{key}: {name} says that {parameter} lies in {file[:200]!r}, wanted a file of the same folder"
                )


def _refuse_partial(
    key: str,
    *,
    missing: Sequence[str],
    left_over: Sequence[str],
    mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]],
    errors: Sequence[str],
) -> None:
    """Raise SettingsError naming one parameter if a loading was incomplete, by transformers' own report of it."""
    if prefix := _wrapper(missing, left_over):
        name = next(each for each in left_over if each.removeprefix(prefix) in missing)
        raise SettingsError(
            f"{key}: the names of its weights begin with {prefix!r}, {name} among them, wanted "
            f"{name.removeprefix(prefix)}; save the model that the wrapper holds"
        )
    for name, shape, expected in mismatched:
        raise SettingsError(
            f"{key}: {name} has the shape {list(shape)}, its config.json wants {list(expected)}; mend its config.json"
        )
    for names, what, advice in (
        (missing, "missing", "name a complete checkpoint, or mend its config.json"),
        (left_over, "left over, the model of its config.json has no place for them", "mend its config.json"),
    ):
        if names:
            raise SettingsError(f"{key}: {len(names)} of its weights are {what}, {names[0]} among them; {advice}")
    if errors:
        raise SettingsError(f"{key}: its weights cannot be loaded ({errors[0]})")


def _wrapper(missing: Sequence[str], left_over: Sequence[str]) -> str | None:
    """Return the prefix of all names if it is the only thing wrong with them, e.g. `_orig_mod.`."""
    known = set(left_over)
    for name in missing[:2]:  # the first may be one that the config ties to another, which no file holds
        for full_name in left_over:
            prefix = full_name.removesuffix(name)
            if prefix != full_name and prefix.endswith(".") and len(known & {prefix + each for each in missing}) > 1:
                return prefix
    return None


def _untie_config(model: PreTrainedModel) -> None:
    """Make the config say what the tensors do: servers tie by the config alone."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head is not None and head.weight is not embeddings.weight:
        model.config.tie_word_embeddings = False


def refuse_vocabulary(model: PreTrainedModel, vocab_size: int | None, *, key: str) -> None:
    """Raise SettingsError if a tokenizer of `vocab_size` tokens has some that a model does not embed."""
    known = model.get_input_embeddings().weight.shape[0]
    if vocab_size is not None and vocab_size > known:
        raise SettingsError(
            f"{key}: has {known} token embeddings, the tokenizer {vocab_size} tokens; name the model's own tokenizer"
        )


def non_finite(model: nn.Module, dtype: torch.dtype) -> str | None:
    """Return the name of the first weight that holds a NaN or an infinity in a dtype, None where none does."""
    return next(
        (name for name, weight in model.named_parameters() if not bool(weight.to(dtype).isfinite().all())), None
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers from showing progress bars and warnings within the block; restore its settings afterwards."""
    drawn, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if drawn:
            transformers_logging.enable_progress_bar()
