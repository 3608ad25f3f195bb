"""A trained model for lm-evaluation-harness: every request is read at the scale of its length.

The harness passes prompts of any length in one list. A request's scale is that of its prompt and its answer together,
as when it is served: the answer's tokens where they are given, else as many as may be generated. Requests of different
scales never share a forward pass. A prompt beyond the longest context length is refused before anything is computed, or
cut at its start and noted; the harness's own model cuts it silently.

    from e2ray.evaluate.harness import ScaledLM
    from e2ray.serve.generate import Generator
    lm_eval.simple_evaluate(ScaledLM(Generator("~/e2ray/demo")), tasks=["hellaswag"])
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, Protocol, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from pydantic import BaseModel, Field, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from e2ray.config.base import SettingsError
from e2ray.core.rope import RotaryHook
from e2ray.data.tokenizer import behind, opening_tokens, prefix_tokens
from e2ray.evaluate.decoding import sampling
from e2ray.evaluate.requests import Key, Placed, RefusedError, request_key
from e2ray.evaluate.scoring import forward_answers, next_log_probabilities

DEFAULT_ANSWER_TOKENS = 256  # where a task names none, as the harness's own model
SAMPLING = ("top_p", "top_k", "min_p", "typical_p")

Item = TypeVar("Item")


class Reader(Protocol):
    """A loaded model; `e2ray.serve.generate.Generator` is one.

    Attributes:
        model: A causal language model of transformers, in evaluation mode.
        hook: Its rotary hook, not applied.
        tokenizer: Fast, of the model.
        device: Where the model is.
    """

    model: PreTrainedModel
    hook: RotaryHook
    tokenizer: PreTrainedTokenizerBase
    device: torch.device

    def scale_of(self, num_tokens: int) -> float:
        """Return g >= 1 of a request of `num_tokens` tokens, prompt and answer together."""


class ScaledLM(TemplateLM):
    """A model of the harness whose positions are scaled by the length of each request.

    Attributes:
        placed: How each request was read, by task, number of the document, prompt and given answer.
        answered: Called with the share of the current requests that are answered.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        max_context_length: int | None = None,
        too_long: Literal["refuse", "truncate"] = "refuse",
        batch_tokens: int = 16_384,
        prefill_tokens: int = 2048,
        seed: int = 1234,
    ) -> None:
        """Wrap a loaded model.

        Args:
            reader: The model, which also chooses its scale.
            max_context_length: Most tokens of a prompt and its answer, at least 2; None: any number.
            too_long: What happens to a longer prompt: its task is refused, or tokens at its start are left out.
            batch_tokens: Tokens of one forward, at least one request.
            prefill_tokens: Prompt tokens of one forward before an answer is generated; bounds the memory.
            seed: Of sampled answers.

        Raises:
            SettingsError: If the tokenizer has no end-of-text token.
        """
        super().__init__()
        if reader.tokenizer.eos_token_id is None:
            raise SettingsError("tokenizer: has no end-of-text token; set eos_token in its tokenizer_config.json")
        self._reader, self._prefix = reader, prefix_tokens(reader.tokenizer)
        self._opening = opening_tokens(reader.tokenizer, self._prefix)
        self._device = reader.device
        self.tokenizer = reader.tokenizer
        self._longest, self._too_long = max_context_length, too_long
        self._batch_tokens, self._prefill_tokens, self._seed = batch_tokens, prefill_tokens, seed
        self._reading: list[Instance] = []
        self.placed: dict[Key, Placed] = {}
        self.answered: Callable[[float], None] = lambda share: None

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return self._reader.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The last token before a text without context: of the tokenizer's prefix, else the end-of-text token."""
        return self._opening[-1]

    @property
    def tokenizer_name(self) -> str:
        """Where the tokenizer came from."""
        return str(self._reader.tokenizer.name_or_path)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the tokenizer's chat template writes it."""
        return self._reader.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Return a text's tokens after the tokenizer's prefix, which is not added where the text begins with it.

        No end token is added, whatever the tokenizer does by itself: a prompt goes on.
        """
        tokens: list[int] = self._reader.tokenizer.encode(string, add_special_tokens=False, verbose=False)
        return tokens if add_special_tokens is False else behind(self._prefix, tokens)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-likelihood in nats and whether it is the greedy answer.

        A context without tokens is the tokenizer's prefix, else the end-of-text token.

        Raises:
            RefusedError: If a request is too long, or its continuation has no token of its own.
            SettingsError: If the model gives NaN.
        """
        self._reading = requests
        pairs = [request.args for request in requests]
        return self._loglikelihood_tokens([(pair, *self._split(*pair)) for pair in pairs])

    def _split(self, context: str, answer: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a context, at least one, and those of the answer after it."""
        if context:
            prompt, tokens = self._encode_pair(context, answer)
            return prompt or self._opening, tokens
        return self._opening, self._text(context + answer)

    def _text(self, text: str) -> list[int]:
        """Return the tokens of a text without its prefix."""
        tokens = self.tok_encode(text, add_special_tokens=False)
        size = len(self._opening)
        return tokens[size:] if tokens[:size] == self._opening else tokens

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        if not all(answer for _, _, answer in requests):
            raise RefusedError("an answer has no token of its own behind its prompt, so it has no likelihood")
        rows = self._fitted([(prompt, len(answer)) for _, prompt, answer in requests])
        asked = [(prompt, answer) for (prompt, _), (_, _, answer) in zip(rows, requests, strict=True)]
        scored = self._scored(asked, self.answered)
        for request, (prompt, cut), (_, _, answer) in zip(self._reading, rows, requests, strict=True):
            tokens = len(prompt) + len(answer)
            self._note(request, Placed(tokens, 0, self._reader.scale_of(tokens), cut))
        return scored

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each whole text in nats; no token is left out.

        A text longer than the longest context length is read in windows, each predicted token once, as the harness
        defines it. Before the first comes the tokenizer's prefix, else the end-of-text token.

        Raises:
            RefusedError: If the prefix leaves no room for text.
            SettingsError: If the model gives NaN.
        """
        first, *more = self._opening
        if self._longest is not None and len(self._opening) >= self._longest:
            raise RefusedError(
                f"the tokenizer puts {len(self._opening)} tokens before a text, {self._longest} may be read; raise "
                "max_context_length"
            )
        scores = []
        for request in requests:
            text = self._text(request.args[0])
            tokens = [*more, *text] if text else []
            longest = len(tokens) if self._longest is None else self._longest - 1
            windows = [
                make_disjoint_window(window) for window in get_rolling_token_windows(tokens, first, max(1, longest), 1)
            ]
            if windows:  # the prefix is not predicted
                windows[0] = self._opening, windows[0][1][len(more) :]
            length = max((len(context) + len(answer) for context, answer in windows), default=0)
            self._note(request, Placed(length, 0, self._reader.scale_of(max(1, length)), windows=len(windows)))
            scores.append(sum(score for score, _ in self._scored(windows)))
            self.answered(len(scores) / len(requests))
        return scores

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return what the model writes after each prompt, up to a stop sequence or the most tokens asked for.

        Raises:
            RefusedError: If a prompt with its answer is too long, or a task asks for an unknown option.
        """
        asked = [_generation(request.args[1]) for request in requests]
        rows = self._fitted(
            [
                (self.tok_encode(request.args[0]) or self._opening, room)
                for request, (_, room, _) in zip(requests, asked, strict=True)
            ]
        )
        answers = []
        for number, (request, (prompt, cut), (until, room, how)) in enumerate(zip(requests, rows, asked, strict=True)):
            scale = self._reader.scale_of(len(prompt) + room)
            self._note(request, Placed(len(prompt), room, scale, cut))
            torch.manual_seed(self._seed + number)
            answers.append(self._written(prompt, scale, until, room, how))
            self.answered(len(answers) / len(requests))
        return answers

    def _written(
        self, prompt: list[int], scale: float, until: Sequence[str], room: int, how: Mapping[str, object]
    ) -> str:
        reader = self._reader
        tokens = torch.tensor([prompt], device=reader.device)
        ends = reader.model.generation_config.eos_token_id
        ends = {self.eot_token_id, *(ends if isinstance(ends, list) else [] if ends is None else [ends])}
        with reader.hook.applied(scale):
            written = reader.model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=room,
                eos_token_id=sorted(ends),
                pad_token_id=self.eot_token_id,
                prefill_chunk_size=self._prefill_tokens if len(prompt) > self._prefill_tokens else None,
                stopping_criteria=stop_sequences_criteria(reader.tokenizer, list(until), len(prompt), 1),
                use_cache=True,
                **how,
            )[0, len(prompt) :]
        text = reader.tokenizer.decode(written, skip_special_tokens=True)
        return postprocess_generated_text(text, stop=list(until), think_end_token=None)

    def _fitted(self, rows: Sequence[tuple[list[int], int]]) -> list[tuple[list[int], int]]:
        """Return the tokens of each prompt and how many were cut, from prompts and the tokens of their answers.

        Raises:
            RefusedError: If a prompt is too long and may not be cut, or its answer leaves no room for it.
        """
        if self._longest is None:
            return [(prompt, 0) for prompt, _ in rows]
        over = [len(prompt) + answer - self._longest for prompt, answer in rows]
        size = len(self._prefix)
        begins = [size if prompt[:size] == self._prefix else 0 for prompt, _ in rows]
        if self._too_long == "refuse" and max(over, default=0) > 0:
            raise RefusedError(
                f"{sum(excess > 0 for excess in over)} of {len(over)} prompts are too long: up to "
                f"{self._longest + max(over)} tokens with the answer, {self._longest} may be read; raise "
                "max_context_length, or set too_long: truncate"
            )
        left = [len(prompt) - begin - excess for begin, excess, (prompt, _) in zip(begins, over, rows, strict=True)]
        if any(excess > 0 and size < 1 for excess, size in zip(over, left, strict=True)):
            most = max(answer for _, answer in rows)
            raise RefusedError(
                f"answers of up to {most} tokens leave no room for a prompt, {self._longest} may be read; raise "
                "max_context_length"
            )
        return [
            (prompt[:begin] + prompt[begin + max(0, excess) :], max(0, excess))
            for (prompt, _), excess, begin in zip(rows, over, begins, strict=True)
        ]

    def _scored(
        self, rows: Sequence[tuple[list[int], list[int]]], answered: Callable[[float], None] = lambda share: None
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each answer after its prompt, and whether it is the greedy one."""
        by_scale: dict[float, list[int]] = {}
        for number, (prompt, answer) in enumerate(rows):
            by_scale.setdefault(self._reader.scale_of(len(prompt) + len(answer)), []).append(number)
        results: dict[int, tuple[float, bool]] = {}
        for scale, numbers in by_scale.items():
            short: dict[tuple[int, ...], list[int]] = {}  # rows of one token by their prompt
            for number in numbers:
                if len(rows[number][1]) == 1:
                    short.setdefault(tuple(rows[number][0]), []).append(number)
            longer = [number for number in numbers if len(rows[number][1]) > 1]
            with self._reader.hook.applied(scale):
                for batch in _batches(longer, lambda n: len(rows[n][0]) + len(rows[n][1]), self._batch_tokens):
                    results |= dict(zip(batch, self._forward([rows[number] for number in batch]), strict=True))
                    answered(len(results) / len(rows))
                for prompts in _batches(list(short), len, self._batch_tokens):
                    each = self._next(prompts, [[rows[number][1][0] for number in short[prompt]] for prompt in prompts])
                    results |= dict(zip([number for prompt in prompts for number in short[prompt]], each, strict=True))
                    answered(len(results) / len(rows))
        return [results[number] for number in range(len(rows))]

    def _next(self, prompts: Sequence[tuple[int, ...]], answers: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
        """Return what `_scored` does for answers of one token each, each prompt read once for all of its answers."""
        width = max(len(prompt) for prompt in prompts)
        padded = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts])
        scores = next_log_probabilities(
            self._reader.model, padded.to(self._reader.device), [len(prompt) for prompt in prompts]
        )
        _refuse_nan(scores)
        likeliest = scores.argmax(dim=-1).tolist()
        return [
            (float(scores[row, token]), token == likeliest[row])
            for row, tokens in enumerate(answers)
            for token in tokens
        ]

    def _forward(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Return what `_scored` does for rows of one scale, in one forward; shorter rows are padded at their end.

        Later tokens do not affect a token, so the padding needs no mask.
        """
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        padded = [prompt + answer + [0] * (width - len(prompt) - len(answer)) for prompt, answer in rows]
        first = min(len(prompt) for prompt, _ in rows)
        nll, greedy = forward_answers(
            self._reader.model, torch.tensor(padded, device=self._reader.device), keep=width - first
        )
        _refuse_nan(nll)
        scores = []
        for row, (prompt, answer) in enumerate(rows):
            positions = slice(len(prompt) - first, len(prompt) - first + len(answer))
            scores.append((-float(nll[row, positions].double().sum()), bool(greedy[row, positions].all())))
        return scores

    def _note(self, request: Instance, placed: Placed) -> None:
        self.placed[request_key(request.task_name, request.doc_id, request.args)] = placed


def _refuse_nan(scores: torch.Tensor) -> None:
    if bool(scores.isnan().any()):
        raise SettingsError(
            "suites: the model gives NaN, wanted finite numbers; the weights have diverged, train with a lower train.lr"
        )


def _generation(asked: Mapping[str, object]) -> tuple[list[str], int, dict[str, object]]:
    """Return the stop sequences, the most tokens of an answer and the options for transformers of a task."""
    given = {name: value for name, value in asked.items() if value is not None}
    how = _chosen(given)
    options = dict(normalize_gen_kwargs(given, DEFAULT_ANSWER_TOKENS))
    until = [stop for stop in options.pop("until") if stop]
    room = options.pop("max_gen_toks")
    how["num_beams"] = options.pop("num_beams", 1)
    del options["do_sample"]
    if options or room < 1:
        raise RefusedError(f"generation_kwargs: asks for {options or {'max_gen_toks': room}}, which is not known here")
    return until, room, how


def _chosen(given: dict[str, object]) -> dict[str, object]:
    """Take the options on how tokens are chosen out of a task's, and return them as those of transformers."""
    mode = {name: given.pop(name) for name in ("do_sample", "temperature") if name in given}
    options = {name: given.pop(name) for name in SAMPLING if name in given}
    try:
        asked = _Choice(**mode)
    except ValidationError:
        raise RefusedError(f"generation_kwargs: {mode}, wanted true or false and a temperature of at least 0") from None
    drawn = asked.temperature is not None if asked.do_sample is None else asked.do_sample
    return sampling(asked.temperature if drawn else 0.0, **options)


class _Choice(BaseModel):
    """A task's options in any spelling that YAML has for them, such as "0"."""

    do_sample: bool | None = None
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)


def _batches(items: Sequence[Item], length: Callable[[Item], int], batch_tokens: int) -> Iterator[list[Item]]:
    """Yield items longest first, as many at a time as stay within `batch_tokens` when padded, at least one."""
    left = sorted(items, key=length, reverse=True)
    while left:
        size = max(1, batch_tokens // length(left[0]))
        yield left[:size]
        left = left[size:]
