"""Whether a model finds a number in a long text: the passkey task.

A prompt is exactly W tokens: held-out text of the run with one sentence that names a key somewhere in it, a question
at the end, and the key as its answer. Keys, texts and lengths follow from a seed and from nothing else in the grid. One
forward pass scores a prompt: where each answer token is the arg-max behind the tokens before it, greedy generation
writes the same tokens. The key is written nowhere else in the text, so a hit comes from the depth asked for. A context
length that the held-out text cannot fill has no cell, which is not the same as a score of 0.

Source: landmark attention (arXiv:2305.16300), passkey retrieval; its repeated filler is replaced by real text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from e2ray.config.base import SettingsError
from e2ray.config.retrieval import RetrievalSettings
from e2ray.core.rope import RotaryHook
from e2ray.data.tokenizer import Encoder, begin_token
from e2ray.evaluate.perplexity import paper_scale

NEEDLE = " The pass key is{border}{key}. Remember it. {key} is the pass key."
QUESTION = " What is the pass key? The pass key is"
# What stands before the key, in needle and answer alike: (on the question's side, on the answer's side). The first one
# that no token of this tokenizer crosses is used, so that the question reads the same with and without its answer.
BORDERS = (("", " "), (" ", ""), (":", " "), (":\n", ""))
KEY_ATTEMPTS = 1000  # keys drawn until one is not written in the text by chance
TEXT_STREAM, KEY_STREAM = 1, 2  # first words of the seeds, so that a text and a key never share random numbers

Tokens = npt.NDArray[np.int64]
Progress = Callable[[str], None]


class ContextLengthError(SettingsError):
    """No prompt of the wanted length can be made: the held-out text is too short, or the length is."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """One question about one text, with its answer.

    Attributes:
        tokens: int64 [context_length], the answer's tokens last.
        num_answer_tokens: How many of the last tokens are the answer.
        depth: Fraction of the text that stands before the needle, 0 to 1, as asked for.
        key: The digits to find.
        needle: Index of the needle's first token.
    """

    tokens: Tokens
    num_answer_tokens: int
    depth: float
    key: str
    needle: int


def prompts(
    documents: Sequence[np.ndarray],
    tokenizer: Any,
    *,
    context_length: int,
    depths: Sequence[float],
    trials: int,
    digits: int,
    seed: int,
) -> list[Prompt]:
    """Return `trials` prompts for each depth, those of one depth side by side.

    A trial has one text for all depths, and a key for each. The text is a stretch of the held-out documents, beginning
    anywhere and running on into the next document where one ends; it begins as a document does and holds no
    end-of-text token, so a prompt reads as one document.

    Args:
        documents: Held-out documents, integer tokens of shape [length], as the shards hold them.
        tokenizer: The fast tokenizer of the shards.
        context_length: W, tokens of every prompt, answer included.
        depths: Fractions of the text before the needle, each 0 to 1.
        trials: Prompts per depth.
        digits: Digits of a key, at least 1; the first is not 0.
        seed: 0 to 2^32 - 1. The same one gives the same prompt whatever else is asked for.

    Raises:
        ContextLengthError: If the text cannot fill W tokens, or W tokens cannot hold needle and question.
        SettingsError: If the tokenizer cannot write digits, or the text holds nearly all numbers of so many digits.
        ValueError: If a depth is out of range.
    """
    if not all(0 <= depth <= 1 for depth in depths):
        raise ValueError(f"depths must lie in [0, 1], got {list(depths)}")
    encoder = Encoder(tokenizer.backend_tokenizer.to_str(), begin=begin_token(tokenizer), end=tokenizer.eos_token_id)
    haystack = _Haystack(documents, encoder)
    texts = []
    for trial in range(trials):
        rng = np.random.default_rng([TEXT_STREAM, seed, context_length, trial])
        text = haystack.stretch(rng, context_length)
        texts.append((text, _unspaced(encoder, text)))
    made = []
    for depth in depths:
        for trial, (text, written) in enumerate(texts):
            rng = np.random.default_rng([KEY_STREAM, seed, context_length, trial, round(depth * 1e6)])
            key = _draw_key(rng, digits, written)
            made.append(_prompt(encoder, text, key, context_length=context_length, depth=depth))
    return made


class _Haystack:
    """The text of all held-out documents as one ring of tokens, without their begin and end tokens."""

    def __init__(self, documents: Sequence[np.ndarray], encoder: Encoder) -> None:
        self.parts = [_text_only(document, encoder) for document in documents]
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def stretch(self, rng: np.random.Generator, length: int) -> Tokens:
        """Return `length` neighbouring tokens from a random place, or all of them, each once, where there are less."""
        total = int(self.ends[-1]) if len(self.ends) else 0
        if not total:
            return np.empty(0, dtype=np.int64)
        start = int(rng.integers(total))
        number = int(np.searchsorted(self.ends, start, side="right"))
        inside = start - int(self.ends[number]) + len(self.parts[number])
        pieces = [self.parts[number][inside:]]
        found = len(pieces[0])
        for step in range(1, len(self.parts) + 1):  # round the ring, back to the first document's beginning
            if found >= length:
                break
            part = self.parts[(number + step) % len(self.parts)]
            pieces.append(part if step < len(self.parts) else part[:inside])
            found += len(pieces[-1])
        return np.concatenate(pieces)[:length].astype(np.int64)


def _text_only(document: np.ndarray, encoder: Encoder) -> np.ndarray:
    """Return a document without the begin and end tokens that the shards give it."""
    num_prefix = len(encoder.prefix)
    begins = num_prefix > 0 and document[:num_prefix].tolist() == encoder.prefix
    ends = len(document) > 0 and document[-1] == encoder.end
    return document[num_prefix if begins else 0 : len(document) - (1 if ends else 0)]


def _unspaced(encoder: Encoder, tokens: Tokens | list[int]) -> str:
    """Return what tokens say, without white space: some tokenizers put a space between digits."""
    return "".join(encoder.backend.decode(list(tokens)).split())


def _draw_key(rng: np.random.Generator, digits: int, written: str) -> str:
    """Return a number of `digits` digits that is not part of the text `written`."""
    for _ in range(KEY_ATTEMPTS):
        key = str(rng.integers(10 ** (digits - 1), 10**digits))
        if key not in written:
            return key
    raise SettingsError(
        f"retrieval.digits: {KEY_ATTEMPTS} drawn keys of {digits} digits all stand in the held-out text already, "
        "wanted one that does not; raise it"
    )


def _prompt(encoder: Encoder, text: Tokens, key: str, *, context_length: int, depth: float) -> Prompt:
    """Return the prompt of exactly `context_length` tokens that names `key` at `depth` of `text`."""
    question, answer, border = _question(encoder, key)
    needle = encoder.backend.encode(NEEDLE.format(border=border, key=key), add_special_tokens=False).ids
    frame = len(encoder.prefix) + len(needle) + len(question) + len(answer)
    room = context_length - frame
    if room < 1:
        raise ContextLengthError(
            f"retrieval: context length {context_length}: key, question and answer alone take {frame} tokens, wanted "
            "more; ask for longer ones"
        )
    if room > len(text):
        raise ContextLengthError(
            f"retrieval: context length {context_length}: all held-out documents together have {len(text)} tokens of "
            f"text, wanted {room}; raise data.validation_share or name data.validation_corpus"
        )
    before = round(depth * room)
    parts = (encoder.prefix, text[:before], needle, text[before:room], question, answer)
    return Prompt(
        tokens=np.concatenate([np.asarray(part, dtype=np.int64) for part in parts]),
        num_answer_tokens=len(answer),
        depth=depth,
        key=key,
        needle=len(encoder.prefix) + before,
    )


def _question(encoder: Encoder, key: str) -> tuple[list[int], list[int], str]:
    """Return the tokens of the question, those of the key behind it in one text, and what stands between them.

    Raises:
        SettingsError: If it joins them in one token at every border, or its tokens do not tell the key.
    """
    for left, right in BORDERS:
        question = encoder.backend.encode(QUESTION + left, add_special_tokens=False).ids
        both = encoder.backend.encode(f"{QUESTION}{left}{right}{key}", add_special_tokens=False).ids
        answer = both[len(question) :]
        if both[: len(question)] != question or not answer:
            continue
        said = _unspaced(encoder, answer)
        if said != key:
            raise SettingsError(
                f"tokenizer: writes the number {key} in tokens that say {said!r}, wanted the number; passkeys need a "
                "tokenizer that knows digits"
            )
        return question, answer, left + right
    raise SettingsError(
        f"tokenizer: joins words and digits in one token in {QUESTION + ' ' + key!r}, wanted a border between question "
        "and key; passkeys cannot be asked with it"
    )


def passkey(
    model: nn.Module,
    hook: RotaryHook,
    prompts: Sequence[Prompt],
    *,
    scale: float,
    batch_tokens: int,
    device: torch.device | str,
) -> list[bool]:
    """Return for each prompt whether greedy generation would write exactly its answer's tokens.

    Args:
        model: A causal language model of transformers in its own precision; it is put into evaluation mode meanwhile.
        hook: The rotary hook of `model`, not applied.
        prompts: All of one context length.
        scale: g >= 1, the divisor of positions.
        batch_tokens: Tokens of one forward, at least one prompt.
        device: Where the model stands.

    Raises:
        SettingsError: If logits are NaN, which would be read as an answer otherwise.
        ValueError: If prompts differ in length.
    """
    lengths = {len(prompt.tokens) for prompt in prompts}
    if len(lengths) > 1:
        raise ValueError(f"prompts must be of one context length, got {sorted(lengths)}")
    size = max(1, batch_tokens // max(lengths, default=1))
    found: list[bool] = []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), hook.applied(float(scale)):
            for start in range(0, len(prompts), size):
                found += _hits(model, prompts[start : start + size], scale, device)
    finally:
        model.train(was_training)
    return found


def _hits(model: nn.Module, batch: Sequence[Prompt], scale: float, device: torch.device | str) -> list[bool]:
    tokens = torch.from_numpy(np.stack([prompt.tokens for prompt in batch])).to(device)
    num_answers = torch.tensor([prompt.num_answer_tokens for prompt in batch], device=device)
    widest = max(prompt.num_answer_tokens for prompt in batch)
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=widest + 1).logits[:, :-1]
    if bool(logits.isnan().any()):
        raise SettingsError(
            f"retrieval: context length {tokens.shape[1]}, scale {scale:g}: logits are NaN, wanted finite numbers; the "
            "weights have diverged, train with a lower train.lr"
        )
    right = logits.argmax(dim=-1) == tokens[:, -widest:]
    not_asked = torch.arange(widest, device=right.device) < widest - num_answers[:, None]
    return (right | not_asked).all(dim=1).tolist()


def accuracy(
    model: nn.Module,
    hook: RotaryHook,
    documents: Sequence[np.ndarray],
    tokenizer: Any,
    *,
    settings: RetrievalSettings,
    base_context_length: int,
    batch_tokens: int,
    device: torch.device | str,
    windows: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Return one row per context length and depth, each length read at the scale the paper serves it with.

    Args:
        model: A causal language model of transformers, as `passkey` takes it.
        hook: The rotary hook of `model`, not applied.
        documents: Held-out documents, integer tokens of shape [length], whole.
        tokenizer: The fast tokenizer of the shards.
        settings: The grid.
        base_context_length: L, tokens; W is read at max(1, W / L).
        batch_tokens: Tokens of one forward, at least one prompt.
        device: Where the model stands.
        windows: Context lengths where `settings.context_lengths` is null: the windows that evaluation resolved.
        progress: Takes one line per context length, also for one that is left out.

    Returns:
        Rows {context_length, depth, scale, found, trials, tokens}: `found` of `trials` keys, in prompts of `tokens`
        tokens each. A context length that no prompt can fill has no row.

    Raises:
        SettingsError: If no context length is named or none can be filled, the tokenizer cannot write the keys, or the
            model gives NaN.
    """
    lengths = settings.context_lengths if settings.context_lengths is not None else windows
    if not lengths:
        raise SettingsError("retrieval.context_lengths: none are named and no windows are known; name at least one")
    rows: list[dict[str, Any]] = []
    missing: list[ContextLengthError] = []
    for length in lengths:
        try:
            asked = prompts(
                documents,
                tokenizer,
                context_length=length,
                depths=settings.depths,
                trials=settings.trials,
                digits=settings.digits,
                seed=settings.seed,
            )
        except ContextLengthError as error:
            missing.append(error)
            _tell(progress, f"left out: {error}")
            continue
        scale = paper_scale(length, base_context_length)
        found = passkey(model, hook, asked, scale=scale, batch_tokens=batch_tokens, device=device)
        rows += _rows(asked, found, scale=scale, settings=settings)
        _tell(progress, f"retrieval: context length {length}, scale {scale:g}: {sum(found)} of {len(found)} keys found")
    if not rows:
        raise missing[0]
    return rows


def _rows(
    asked: Sequence[Prompt], found: Sequence[bool], *, scale: float, settings: RetrievalSettings
) -> list[dict[str, Any]]:
    return [
        {
            "context_length": len(asked[0].tokens),
            "depth": depth,
            "scale": scale,
            "found": sum(found[cell * settings.trials : (cell + 1) * settings.trials]),
            "trials": settings.trials,
            "tokens": len(asked[cell * settings.trials].tokens),
        }
        for cell, depth in enumerate(settings.depths)
    ]


def _tell(progress: Progress | None, line: str) -> None:
    if progress is not None:
        progress(line)
