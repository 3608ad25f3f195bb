"""Updates that go wrong, as rare rows or an overflow make them: one rank's gradient or loss is no finite number."""

from contextlib import contextmanager

import torch


@contextmanager
def spoiled(model, how):
    """Spoil the updates of the block.

    Args:
        model: Of transformers, in training.
        how: `gradient` makes one infinite, `square` one whose square is beyond float32; `loss` makes the losses NaN,
            `finite gradient` makes some infinite and leaves each gradient a number.
    """
    if how in ("gradient", "square"):
        weight = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        factor = {"gradient": torch.inf, "square": 1e30}[how]
        handle = weight.register_hook(lambda gradient: gradient * factor)
    else:

        def spoil(module, given, logits):
            shift = torch.zeros(logits.shape[-1], dtype=logits.dtype)
            shift[:20] = {"loss": torch.nan, "finite gradient": -torch.inf}[how]
            return logits + shift

        handle = model.get_output_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()
