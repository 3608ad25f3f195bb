"""Text from a trained model: one scale per request, chosen by how long the request gets, and kept to its end.

Keys in a cache are rotated already, so a request cannot change its scale half-way: it is chosen before the first
token, from the prompt's tokens and those that may be added. `scales.json` says which scale was measured best for a
length; without it, or beyond the longest measured length, it is the paper's W / L.
"""

import math
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from e2ray.config.base import LARGEST_SCALE, SettingsError
from e2ray.config.load import read_vouched_recipe
from e2ray.config.model import PretrainedModel
from e2ray.core.base import base_facts
from e2ray.core.methods.registry import method_of
from e2ray.core.model_folder import trained_method, training_of
from e2ray.data.tokenizer import behind, load_tokenizer, opening_tokens, prefix_tokens, vocabulary_size
from e2ray.evaluate.decoding import sampling
from e2ray.evaluate.loaded import LoadedModel
from e2ray.evaluate.weights import read_scales
from e2ray.records.folders import ModelFolder, RunFolder
from e2ray.records.scales import Scales

SCALES = RunFolder.scales.name


class Generator(LoadedModel):
    """A trained model and its tokenizer, ready for requests of any length; one request at a time.

    Its hook reads a scale as the training did, if the folder's record says how; else as linear.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        prefill_tokens: int = 2048,
    ) -> None:
        """Load a model.

        Args:
            folder: A run (`<storage>/<run>`, its `model/` is loaded), an export, or any Hugging Face folder of a model.
            device: Where it runs; None takes a GPU where there is one.
            dtype: Of its weights; None takes bf16 on a GPU and fp32 on a CPU.
            prefill_tokens: Prompt tokens of one forward, at least 1; bounds the memory of long prompts.

        Raises:
            SettingsError: If the folder holds no such model, its tokenizer has more tokens than the model embeds, its
                scales.json is damaged or of another model, or a setting is out of range.
        """
        if prefill_tokens < 1:
            raise SettingsError(f"prefill tokens: must be at least 1, got {prefill_tokens}")
        folder = Path(folder).expanduser()
        inside = RunFolder(folder).model
        model_folder = inside if ModelFolder(inside).config.is_file() else folder
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        settings, path = _settings(model_folder), folder / SCALES
        scales = read_scales(path, model=model_folder) if path.is_file() else None
        if scales is not None:
            settings = _agreed(settings, folder, scales)
        training = training_of(model_folder)
        trained = training.settings.get("base_context_length") if training else None
        if trained is not None:  # a recipe may say otherwise than the model's config
            settings = settings.model_copy(update={"base_context_length": trained})
        assert settings.base_context_length is not None
        self.tokenizer = load_tokenizer(model_folder)
        self._prefix = prefix_tokens(self.tokenizer)
        super().__init__(
            settings,
            device=where,
            dtype=dtype or (torch.bfloat16 if where.type == "cuda" else torch.float32),
            vocab_size=vocabulary_size(self.tokenizer),
            method=method_of(trained_method(model_folder)),
            base_context_length=settings.base_context_length,
            tokenizer_folder=model_folder,
            scales=scales,
        )
        self.model.config.use_cache = True
        self.prefill_tokens = prefill_tokens

    def tokens_of(self, prompt: str) -> list[int]:
        """Return what the model reads for a prompt, at least one token.

        Raises:
            SettingsError: If the prompt is empty and the tokenizer has nothing to begin with.
        """
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise SettingsError("prompt: holds bytes that are no UTF-8; write it into a file as UTF-8") from None
        text = self.tokenizer.encode(prompt, add_special_tokens=False, verbose=False)
        tokens = behind(self._prefix, text) or opening_tokens(self.tokenizer, self._prefix)
        if not tokens:
            raise SettingsError(
                "prompt: is empty, and the tokenizer has no prefix and no end-of-text token to begin with; write one"
            )
        return tokens

    def generate(self, prompt: str, **options: Any) -> str:
        """Return what `stream` yields, in one text."""
        return "".join(self.stream(prompt, **options))

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 256,
        scale: float | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield the text that continues a prompt, piece by piece; leaving the loop ends the generation.

        Args:
            prompt: The text; the tokenizer's prefix is put before it, unless it begins with that already. An empty
                prompt is the prefix alone, or where there is none the end-of-text token.
            max_new_tokens: Tokens added at most, at least 1; they count towards the scale.
            scale: g >= 1 for the whole request; None chooses it by `scale_of`.
            temperature: 0 (below 1e-5) takes the likeliest token, above it samples.
            top_p: Share of the probability that is sampled from, 0 to 1.
            seed: Of the sampling.

        Raises:
            SettingsError: If an option is out of range, or the prompt is empty and there is nothing to begin with.
        """
        if max_new_tokens < 1:
            raise SettingsError(f"max new tokens: must be at least 1, got {max_new_tokens}")
        if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
            raise SettingsError(f"wanted temperature >= 0 and 0 < top_p <= 1, got {temperature:g} and {top_p:g}")
        tokens = torch.tensor([self.tokens_of(prompt)], device=self.device)
        if scale is None:
            scale = self.scale_of(tokens.shape[1] + max_new_tokens)
        if not 1 <= scale <= LARGEST_SCALE:
            raise SettingsError(f"scale: must be 1 to {LARGEST_SCALE}, got {scale:g}")
        if not 0 <= seed < 2**63:
            raise SettingsError(f"seed: must be at least 0 and below 2**63, got {seed}")
        how = sampling(temperature, top_p=top_p)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        left = threading.Event()
        how |= {
            "max_new_tokens": max_new_tokens,
            "prefill_chunk_size": self.prefill_tokens if tokens.shape[1] > self.prefill_tokens else None,
            "pad_token_id": self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            "streamer": streamer,
            "stopping_criteria": StoppingCriteriaList([_Left(left)]),
        }
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(self._run, tokens, scale, seed, how)
            job.add_done_callback(lambda _: streamer.text_queue.put(streamer.stop_signal))  # after an error, too
            try:
                yield from streamer
            finally:
                left.set()
            job.result()

    def _run(self, tokens: torch.Tensor, scale: float, seed: int, how: dict[str, object]) -> None:
        torch.manual_seed(seed)
        with torch.inference_mode(), self.hook.applied(float(scale)):
            self.model.generate(tokens, attention_mask=torch.ones_like(tokens), **how)


def _settings(folder: Path) -> PretrainedModel:
    """Return the settings that load a folder as it was trained: what its config says about RoPE is kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that `keep` has no effect where there is no scaling
        facts = base_facts(PretrainedModel(path=str(folder), base_scaling="keep"))
    return PretrainedModel(
        path=str(folder),
        base_scaling="keep" if facts.scaling else None,
        base_context_length=facts.base_context_length,
    )


def _agreed(settings: PretrainedModel, folder: Path, scales: Scales) -> PretrainedModel:
    """Return the settings with the base context length of scales.json.

    A recipe may set another one than the model's config says, so where the two differ the run's resolved recipe
    decides; an export has none, and there scales.json is believed only if it names these weights.

    Raises:
        SettingsError: If the run, or a model without one, says otherwise.
    """
    measured, configured = scales.base_context_length, settings.base_context_length
    where, recipe = ModelFolder(settings.path).config, RunFolder(folder).config
    if measured != configured and recipe.is_file():
        where = recipe
        model = read_vouched_recipe(where).get("model")
        configured = (model.get("base_context_length") if isinstance(model, dict) else None) or configured
    elif scales.weights_digest is not None:
        configured = measured
    if measured != configured:
        raise SettingsError(
            f"{folder / SCALES}: was measured for a base context length of {measured} tokens, "
            f"{where} says {configured}; run `e2ray evaluate` again"
        )
    return settings.model_copy(update={"base_context_length": measured})


class _Left(StoppingCriteria):
    """Stops once nobody reads the text any more."""

    def __init__(self, left: threading.Event) -> None:
        self.left = left

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.left.is_set(), dtype=torch.bool, device=input_ids.device)
