"""A loaded model with all that is needed to read with it: its hook, device and tokenizer, the scale of a length."""

from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from e2ray.config.model import Model
from e2ray.core.methods.base import FrequencyMethod
from e2ray.core.model import build_model
from e2ray.core.rope import RotaryHook
from e2ray.core.scales import request_scale
from e2ray.data.tokenizer import load_tokenizer
from e2ray.records.scales import Scales


class LoadedModel:
    """A model in evaluation mode and what is needed to read with it.

    Attributes:
        model: A causal language model of transformers.
        hook: Its rotary hook, not applied, with the frequency method of the training.
        device: Where the model is.
        base_context_length: L in tokens.
        scales: Those of scales.json, or None to read at W / L.
    """

    def __init__(
        self,
        settings: Model,
        *,
        device: torch.device,
        dtype: torch.dtype,
        vocab_size: int,
        method: FrequencyMethod | None,
        base_context_length: int,
        tokenizer_folder: Path,
        seed: int = 0,
        scales: Scales | None = None,
    ) -> None:
        """Load or build a model, without adapters.

        Args:
            settings: Of the model.
            device: Where it is loaded.
            dtype: Of its weights.
            vocab_size: Tokens that it must embed.
            method: Frequency method; None: linear.
            base_context_length: L in tokens.
            tokenizer_folder: Of its tokenizer, which is loaded when it is first asked for.
            seed: Of the weights of a model that is built from its sizes.
            scales: Those of scales.json, or None to read at W / L.

        Raises:
            SettingsError: If the model cannot be read or hooked, or embeds fewer tokens.
        """
        plain = settings.model_copy(update={"lora": None, "checkpoint_share": 0.0})
        self.model = build_model(plain, dtype=dtype, device=device, vocab_size=vocab_size, seed=seed).eval()
        self.hook = RotaryHook(self.model, method, base_context_length=base_context_length)
        self.device, self.base_context_length, self.scales = device, base_context_length, scales
        self._tokenizer_folder = tokenizer_folder

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return load_tokenizer(self._tokenizer_folder)

    def scale_of(self, num_tokens: int) -> float:
        """Return the scale at which a request of `num_tokens` tokens, prompt and answer together, is read."""
        return request_scale(num_tokens, self.base_context_length, self.scales)

    def read_by(self, method: FrequencyMethod) -> None:
        """Use another frequency method from now on."""
        self.hook.remove()
        self.hook = RotaryHook(self.model, method, base_context_length=self.base_context_length)
