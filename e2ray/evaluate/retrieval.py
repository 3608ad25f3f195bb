"""Whether a model finds in a long text what it is asked for: a grid of task x context length x depth x trials.

A prompt is exactly W tokens, its answer last. Texts, words, numbers and lengths follow from a seed and from nothing
else in the grid. One forward pass scores a prompt: where each answer token is the arg-max after the tokens before it,
greedy generation writes the same tokens; some prompts of each cell are generated, too, as a check. The arg-max after
the answer must not continue its last word or number: a model that writes 123456 has not found 12345. A context length
that the held-out text cannot fill has no cell, which is not the same as a score of 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from e2ray.config.base import SettingsError
from e2ray.config.retrieval import WITHOUT_DEPTH, RetrievalSettings, Task
from e2ray.core.losses import token_nll
from e2ray.core.rope import RotaryHook
from e2ray.core.scales import paper_scale
from e2ray.data.encoder import Encoder
from e2ray.data.pace import Pace, Progress
from e2ray.data.tokenizer import encoder_of
from e2ray.evaluate.haystack import ContextLengthError, Haystack
from e2ray.evaluate.perplexity import OUT_OF_MEMORY, if_it_fits
from e2ray.evaluate.prompts import PromptFolder, asked_for
from e2ray.evaluate.scorers import contained, goes_on
from e2ray.evaluate.scoring import evaluating
from e2ray.evaluate.tasks import Prompt
from e2ray.records.retrieval import RetrievalRow


@dataclass(frozen=True)
class Written:
    """The outcome of greedy generation for one prompt.

    Attributes:
        exact: Whether it wrote exactly the answer's tokens and did not go on with the last word or number.
        contained: Share of the references that its text holds.
    """

    exact: bool
    contained: float


@dataclass(frozen=True)
class Answered:
    """How a model scores one prompt's answer in one forward.

    Attributes:
        found: Whether greedy generation would write exactly its tokens, then something else.
        nll: Mean NLL of its tokens after the question, nats.
    """

    found: bool
    nll: float


def answers(
    model: nn.Module,
    hook: RotaryHook,
    prompts: Sequence[Prompt],
    encoder: Encoder,
    *,
    scale: float,
    batch_tokens: int,
    device: torch.device | str,
    pace: Pace | None = None,
) -> list[Answered]:
    """Return for each prompt whether greedy generation would write its answer, and how likely the answer is.

    Args:
        model: A causal language model of transformers in its own precision; it is in evaluation mode during the call.
        hook: The rotary hook of `model`, not applied.
        prompts: All of one context length.
        encoder: Of the prompts.
        scale: g >= 1, the divisor of positions.
        batch_tokens: Tokens of one forward, at least one prompt.
        device: Where the model is.
        pace: Counts the tokens read.

    Raises:
        SettingsError: If logits are NaN, which would be read as an answer otherwise.
        ValueError: If prompts differ in length.
    """
    lengths = {len(prompt.tokens) for prompt in prompts}
    if len(lengths) > 1:
        raise ValueError(f"prompts must be of one context length, got {sorted(lengths)}")
    size = max(1, batch_tokens // max(lengths, default=1))
    answered: list[Answered] = []
    with evaluating(model), torch.no_grad(), hook.applied(float(scale)):
        for start in range(0, len(prompts), size):
            batch = prompts[start : start + size]
            answered += _answered(model, batch, encoder, scale, device)
            if pace is not None:
                pace.add(sum(len(prompt.tokens) for prompt in batch))
    return answered


def _answered(
    model: nn.Module, batch: Sequence[Prompt], encoder: Encoder, scale: float, device: torch.device | str
) -> list[Answered]:
    tokens = torch.from_numpy(np.stack([prompt.tokens for prompt in batch])).to(device)
    num_answers = torch.tensor([prompt.num_answer_tokens for prompt in batch], device=device)
    widest = max(prompt.num_answer_tokens for prompt in batch)
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=widest + 1).logits
    if bool(logits.isnan().any()):
        raise SettingsError(
            f"retrieval: context length {tokens.shape[1]}, scale {scale:g}: logits are NaN, wanted finite numbers; the "
            "weights have diverged, train with a lower train.lr"
        )
    likeliest = logits.argmax(dim=-1)  # after each token from the last of the question to the last of the answer
    right = likeliest[:, :-1] == tokens[:, -widest:]
    not_asked = torch.arange(widest, device=right.device) < widest - num_answers[:, None]
    whole = (right | not_asked).all(dim=1).tolist()
    behind = likeliest[:, -1].tolist()
    hits = [hit and not goes_on(encoder, _answer(p), last) for hit, p, last in zip(whole, batch, behind, strict=True)]
    asked = tokens[:, -widest - 1 :]  # with the last token of the question, which predicts the first of the answer
    nll = token_nll(logits, asked).masked_fill(not_asked, 0.0).double().sum(dim=1) / num_answers.to(device)
    return [Answered(hit, mean) for hit, mean in zip(hits, nll.tolist(), strict=True)]


def _answer(prompt: Prompt) -> list[int]:
    return prompt.tokens[-prompt.num_answer_tokens :].tolist()


@torch.inference_mode()
def write(
    model: PreTrainedModel,
    hook: RotaryHook,
    prompt: Prompt,
    encoder: Encoder,
    *,
    scale: float,
    device: torch.device | str,
    pace: Pace | None = None,
) -> Written:
    """Return what greedy generation writes for a prompt: as many tokens as the answer has, and the next one.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        hook: The rotary hook of `model`, not applied.
        prompt: The question.
        encoder: Of the prompt.
        scale: g >= 1.
        device: Where the model is.
        pace: Counts the tokens read.
    """
    size = prompt.num_answer_tokens
    question = torch.from_numpy(prompt.tokens[:-size])[None].to(device)
    with hook.applied(float(scale)):
        tokens = model.generate(
            question,
            attention_mask=torch.ones_like(question),
            max_new_tokens=size + 1,
            do_sample=False,
            eos_token_id=None,
        )[0, question.shape[1] :].tolist()
    *answer, behind = tokens
    if pace is not None:
        pace.add(len(prompt.tokens))
    exact = answer == _answer(prompt) and not goes_on(encoder, answer, behind)
    return Written(exact, contained(encoder.backend.decode(tokens), prompt.references))


def accuracy(
    model: nn.Module,
    hook: RotaryHook,
    documents: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    *,
    settings: RetrievalSettings,
    base_context_length: int,
    batch_tokens: int,
    device: torch.device | str,
    windows: Sequence[int] | None = None,
    scale: float | None = None,
    kept: PromptFolder | None = None,
    progress: Progress | None = None,
) -> list[RetrievalRow]:
    """Return one row per task, context length and depth; a length that no prompt can fill has none.

    Args:
        model: A causal language model of transformers, as `answers` takes it.
        hook: The rotary hook of `model`, not applied.
        documents: Held-out documents, integer tokens of shape [length], whole.
        tokenizer: The fast tokenizer of the shards.
        settings: The grid.
        base_context_length: L, tokens; W is read at max(1, W / L).
        batch_tokens: Tokens of one forward, at least one prompt.
        device: Where the model is.
        windows: Context lengths where `settings.context_lengths` is null: the windows that evaluation resolved.
        scale: g >= 1 for all lengths, in place of the paper's.
        kept: Where prompts are kept from one call to the next; None makes them.
        progress: Takes one line per task and context length, also for one that is left out.

    Raises:
        SettingsError: If no context length is named or none can be filled, the tokenizer cannot write the keys, or the
            model gives NaN.
    """
    lengths, encoder = _lengths(settings, windows), encoder_of(tokenizer)
    haystack = Haystack(documents, encoder)
    reader = _Reader(model, hook, encoder, batch_tokens, device, settings)
    rows: list[RetrievalRow] = []
    missing: list[ContextLengthError] = []
    cells = [(task, length) for task in settings.tasks for length in lengths]
    tokens = [_tokens(task, length, settings) for task, length in cells]
    with Pace(progress, "retrieval: reading", total=sum(tokens), unit="tokens") as pace:
        for number, (task, length) in enumerate(cells):
            pace.done = sum(tokens[:number])
            try:
                asked = _prompts(haystack, tokenizer, task, length, settings, kept)
            except ContextLengthError as error:
                missing.append(error)
                pace.tell(f"left out: {error}")
                continue
            served = paper_scale(length, base_context_length) if scale is None else scale
            read = if_it_fits(partial(reader.rows, asked, served, pace))
            if read is None:
                pace.tell(f"left out: retrieval: context length {length}: {OUT_OF_MEMORY}")
                continue
            rows += read
            pace.tell(_found(task, length, served, read))
        _end(rows, missing, pace)
    return rows


def _found(task: Task, length: int, scale: float, rows: Sequence[RetrievalRow]) -> str:
    what = "" if task == "passkey" else f"{task}, "
    found, asked = sum(row.found for row in rows), sum(row.trials for row in rows)
    return f"retrieval: {what}context length {length}, scale {scale:g}: {found} of {asked} keys found"


def _end(rows: Sequence[RetrievalRow], missing: Sequence[ContextLengthError], pace: Pace) -> None:
    """Raise the first error where there is no row, and report where generation and the forward pass disagree."""
    if not rows and missing:
        raise missing[0]
    if apart := sum(row.greedy - row.agreed for row in rows):
        checked = sum(row.greedy for row in rows)
        pace.tell(f"retrieval: greedy generation disagrees with the forward pass on {apart} of {checked} prompts")


def _lengths(settings: RetrievalSettings, windows: Sequence[int] | None) -> Sequence[int]:
    """Return the context lengths of the grid: those it names, else the windows.

    Raises:
        SettingsError: If there are none.
    """
    lengths = windows if settings.context_lengths is None else settings.context_lengths
    if not lengths:
        raise SettingsError("retrieval.context_lengths: none are named and no windows are known; name at least one")
    return lengths


def _tokens(task: Task, length: int, settings: RetrievalSettings) -> int:
    """Return the tokens of all prompts of a task and context length, counting those that are generated from twice."""
    depths = 1 if task in WITHOUT_DEPTH else len(settings.depths)
    return length * depths * (settings.trials + min(settings.greedy, settings.trials))


def _prompts(
    haystack: Haystack,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    length: int,
    settings: RetrievalSettings,
    kept: PromptFolder | None,
) -> Sequence[Prompt]:
    """Return the prompts of a task and context length, kept ones or made now.

    Raises:
        ContextLengthError: If the held-out text cannot fill one.
    """
    if kept is not None:
        return kept.prompts(haystack, tokenizer, task, length, settings)
    return asked_for(haystack, task, length, settings)


@dataclass(frozen=True)
class _Reader:
    """Reads the prompts of one task and context length."""

    model: PreTrainedModel
    hook: RotaryHook
    encoder: Encoder
    batch_tokens: int
    device: torch.device | str
    settings: RetrievalSettings

    def rows(self, asked: Sequence[Prompt], scale: float, pace: Pace) -> list[RetrievalRow]:
        """Return the rows of the cells, `trials` prompts each, the first of each generated from, too."""
        read = answers(
            self.model,
            self.hook,
            asked,
            self.encoder,
            scale=scale,
            batch_tokens=self.batch_tokens,
            device=self.device,
            pace=pace,
        )
        rows = []
        for start in range(0, len(asked), self.settings.trials):
            cell = asked[start : start + self.settings.trials]
            answered = read[start : start + self.settings.trials]
            written = [
                write(self.model, self.hook, prompt, self.encoder, scale=scale, device=self.device, pace=pace)
                for prompt in cell[: self.settings.greedy]
            ]
            rows.append(
                RetrievalRow(
                    task=cell[0].task,
                    context_length=len(cell[0].tokens),
                    depth=cell[0].depth,
                    scale=scale,
                    found=sum(answer.found for answer in answered),
                    answer_nll=sum(answer.nll for answer in answered) / len(answered),
                    trials=len(cell),
                    tokens=len(cell[0].tokens),
                    greedy=len(written),
                    agreed=sum(text.exact == hit.found for text, hit in zip(written, answered, strict=False)),
                    contained=sum(text.contained for text in written) / len(written) if written else None,
                )
            )
        return rows
