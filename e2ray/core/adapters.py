"""Low-rank adapters on a model, and tensors trained in full beside them.

A tensor that several modules share (tied embeddings) gets no adapter of peft: it would act in the one module it is
put on, but once merged in all of them, which is not the model that was trained. Such a tensor is trained itself.
"""

import warnings
from collections.abc import Sequence

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from e2ray.config.base import SettingsError
from e2ray.config.model import LoraSettings
from e2ray.core.weights import first_line


def with_adapters_quietly(model: PreTrainedModel, settings: LoraSettings | None) -> PreTrainedModel | PeftModel:
    """Return a model with adapters, if there are any, without telling what they do otherwise than asked for."""
    if settings is None:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return with_adapters(model, settings)


def with_adapters(model: PreTrainedModel, settings: LoraSettings) -> PreTrainedModel | PeftModel:
    """Return a model of which only the adapters and the modules beside them are trained.

    Args:
        model: Changed in place.
        settings: Modules by the end of their names. A target whose weight other modules share is trained in full, as a
            warning says; so is a module of `trainable`.

    Raises:
        SettingsError: If a named module is missing, or is of a kind for which peft has no adapter.
    """
    targets = _matches(model, settings.targets, key="targets")
    trainable = _matches(model, settings.trainable, key="trainable")
    modules = dict(model.named_modules())
    for name in trainable:
        if not any(True for _ in modules[name].parameters()):
            raise SettingsError(f"model.lora.trainable: {name} has no weights to train; leave it out")
    sharing = shared_modules(model)
    shared = [name for name in targets if name in sharing]
    if shared:
        names = ", ".join(f"{name} (with {sharing[name]})" for name in shared[:3])
        more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
        warnings.warn(
            f"model.lora.targets: {names}{more} share a weight with another module, so the weight itself is trained in "
            "full and gets no adapter",
            stacklevel=2,
        )
    inside = [name for name in targets if any(_lies_in(name, other) for other in trainable)]
    if inside:
        names, more = ", ".join(inside[:3]), f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        warnings.warn(
            f"model.lora.targets: {names}{more} lie in model.lora.trainable, so they are trained in full and get no "
            "adapter",
            stacklevel=2,
        )
    own = [name for name in targets if name not in sharing and name not in inside]
    beside = [name for name in trainable if not any(_lies_in(other, name) for other in sharing)]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapted = _with_peft(model, settings, own, beside) if own else model
    for name in (*shared, *trainable):
        if not own or name not in beside:  # of the others peft trains a copy
            for parameter in modules[name].parameters():
                parameter.requires_grad_(True)
    return adapted


def _lies_in(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")


def shared_modules(model: nn.Module) -> dict[str, str]:
    """Return the modules that share a parameter with another module, each with the name of one such other."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(name)
    return {
        name: next(other for other in names if other != name)
        for names in holders.values()
        if len(set(names)) > 1
        for name in names
    }


def _matches(model: nn.Module, targets: Sequence[str], *, key: str) -> list[str]:
    """Return the full names of the modules whose names end with one of `targets`.

    Raises:
        SettingsError: If a target matches nothing.
    """
    names = [name for name, _ in model.named_modules()]
    matched: dict[str, None] = {}
    for target in targets:
        matching = [name for name in names if name == target or name.endswith(f".{target}")]
        if not matching:
            linear = {name.rsplit(".")[-1] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
            raise SettingsError(
                f"model.lora.{key}: {type(model).__name__} has no module {target!r}; its linear modules are "
                f"{', '.join(sorted(linear))}"
            )
        matched.update(dict.fromkeys(matching))
    return list(matched)


def _with_peft(
    model: PreTrainedModel, settings: LoraSettings, targets: Sequence[str], trainable: Sequence[str]
) -> PeftModel:
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        modules_to_save=list(trainable) or None,
    )
    with warnings.catch_warnings():
        # peft asks transformers by a name that is deprecated there, and looks for sharing by the config alone
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Model with `tie_word_embeddings=True`", UserWarning)
        try:
            return get_peft_model(model, config, autocast_adapter_dtype=False)
        except (TypeError, ValueError) as error:  # a kind of module that it has no adapter for
            raise SettingsError(f"model.lora.targets: {first_line(error)}; name linear modules or embeddings") from None
