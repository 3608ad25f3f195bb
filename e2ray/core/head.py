"""A model's head with the loss in it, so that its logits, tokens times vocabulary, are never held whole."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from e2ray.config.base import SettingsError
from e2ray.core.flops import config_of
from e2ray.core.losses import head_nll

RESCALING = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}  # and what leaves logits alone


class FusedHead:
    """A model's head, which within `scoring` returns NLL instead of logits."""

    def __init__(self, model: nn.Module) -> None:
        """Find the head.

        Raises:
            SettingsError: If it is no plain linear layer, or the model changes its logits behind it.
        """
        plain = next(each for each in model.modules() if isinstance(each, PreTrainedModel))
        head, config = plain.get_output_embeddings(), config_of(model)
        changed = [key for key, harmless in RESCALING.items() if getattr(config, key, harmless) not in (None, harmless)]
        if type(head) is not nn.Linear or changed:
            why = f"changes its logits ({', '.join(changed)})" if changed else "has no plain linear layer as its head"
            raise SettingsError(f"train.fused_loss: {type(plain).__name__} {why}; leave it out")
        self._head: nn.Linear = head

    @contextmanager
    def scoring(self, tokens: Int[Tensor, "rows tokens"]) -> Iterator[None]:
        """Within the block a forward of these tokens returns their NLL, float32 [rows, tokens - 1], as its logits."""

        def nll(hidden: Float[Tensor, "rows tokens width"]) -> Float[Tensor, "rows predictions"]:
            return head_nll(hidden, self._head.weight, self._head.bias, tokens)

        self._head.forward = nll  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            del self._head.forward
