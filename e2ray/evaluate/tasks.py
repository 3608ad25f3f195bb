"""The retrieval tasks: what is hidden in a long text, what is asked, and what the answer is.

Two kinds: sentences hidden in real text (passkey, needles, variables), and lists that fill the whole context (words,
pairs). The shapes follow RULER (NVIDIA/RULER, arXiv:2404.06654) and the passkey of landmark attention
(arXiv:2305.16300); the wording is our own, and all words and text come from the run's held-out documents. Every prompt
has exactly as many tokens as asked for, answer included.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from e2ray.data.passkey import PASSKEY, PASSKEY_QUESTION
from e2ray.evaluate.haystack import (
    ContextLengthError,
    Haystack,
    Tokens,
    answered,
    draw_number,
    encode,
    unspaced,
)

NEEDLE = " The number of {word} is{border}{number}."
NEEDLE_QUESTION = " What is the number of {word}? The number of {word} is"
NEEDLES = 4  # in one prompt of the tasks with several
CHAIN = 4  # variables of a chain
COMMON, COMMON_SHARE = 3, 1 / 3  # words asked for, and their share of the list
FREQUENT, FREQUENT_POWER = 3, 2.0  # words asked for, and the power of the rank that frequencies fall with


@dataclass(frozen=True, eq=False)
class Prompt:
    """One question about one text, with its answer.

    Attributes:
        task: Its name.
        tokens: int64 [context_length], the answer's tokens last.
        num_answer_tokens: How many of the last tokens are the answer.
        depth: Fraction of the text before the needle, 0 to 1; None where a task has no single depth.
        references: What has to be found, in the order of the answer.
        needle: Index of the first token of what has to be found; None where that is the whole list.
    """

    task: str
    tokens: Tokens
    num_answer_tokens: int
    depth: float | None
    references: tuple[str, ...]
    needle: int | None

    @property
    def key(self) -> str:
        """The first reference."""
        return self.references[0]


@dataclass(frozen=True)
class Source:
    """The material for the prompts of one trial.

    Attributes:
        haystack: The held-out text.
        text: int64 tokens of this trial's stretch of it.
        written: That stretch as text without white space.
        context_length: W in tokens.
        digits: Digits of numbers.
    """

    haystack: Haystack
    text: Tokens
    written: str
    context_length: int
    digits: int

    @classmethod
    def drawn(cls, haystack: Haystack, rng: np.random.Generator, context_length: int, digits: int) -> "Source":
        """Return a source with a random stretch of text."""
        text = haystack.stretch(rng, context_length)
        return cls(haystack, text, unspaced(haystack.encoder, text), context_length, digits)

    def numbers(self, rng: np.random.Generator, count: int) -> list[str]:
        """Return different numbers that the text does not hold."""
        numbers: list[str] = []
        for _ in range(count):
            numbers.append(draw_number(rng, self.digits, self.written, numbers))
        return numbers


Make = Callable[[Source, np.random.Generator, float | None], Prompt]


def passkey(source: Source, rng: np.random.Generator, depth: float | None) -> Prompt:
    """One key, named twice in one sentence."""
    (key,) = source.numbers(rng, 1)
    return _hidden("passkey", source, [(depth, PASSKEY.replace("{key}", key))], PASSKEY_QUESTION, [key], depth)


def single_needle(source: Source, rng: np.random.Generator, depth: float | None) -> Prompt:
    """One number of one word."""
    (word,), (number,) = source.haystack.words(rng, 1), source.numbers(rng, 1)
    return _hidden("single_needle", source, [(depth, _needle(word, number))], _asked(word), [number], depth)


def multi_key(source: Source, rng: np.random.Generator, depth: float | None) -> Prompt:
    """The number of one word among those of others."""
    words, numbers = source.haystack.words(rng, NEEDLES), source.numbers(rng, NEEDLES)
    others = [(float(rng.random()), _needle(*pair)) for pair in zip(words[1:], numbers[1:], strict=True)]
    sentences = [(depth, _needle(words[0], numbers[0])), *others]
    return _hidden("multi_key", source, sentences, _asked(words[0]), numbers[:1], depth)


def multi_value(source: Source, rng: np.random.Generator, depth: float | None) -> Prompt:
    """All numbers of one word, in the order of the text."""
    (word,), numbers = source.haystack.words(rng, 1), source.numbers(rng, NEEDLES)
    sentences = list(zip(_spread(rng, NEEDLES), (_needle(word, number) for number in numbers), strict=True))
    question = f" What are the {NEEDLES} numbers of {word}, in order? The numbers of {word} are"
    return _hidden("multi_value", source, sentences, question, numbers, None)


def multi_query(source: Source, rng: np.random.Generator, depth: float | None) -> Prompt:
    """The numbers of several words, in the order of the question."""
    words, numbers = source.haystack.words(rng, NEEDLES), source.numbers(rng, NEEDLES)
    depths = rng.permutation(_spread(rng, NEEDLES))
    sentences = [(float(p), _needle(w, n)) for p, w, n in zip(depths, words, numbers, strict=True)]
    asked = ", ".join(words[:-1]) + f" and {words[-1]}"
    question = f" What are the numbers of {asked}, in this order? The numbers of {asked} are"
    return _hidden("multi_query", source, sentences, question, numbers, None)


def variable_tracking(source: Source, rng: np.random.Generator, depth: float | None) -> Prompt:
    """All variables of one chain, beside another chain."""
    words, numbers = source.haystack.words(rng, 2 * CHAIN), source.numbers(rng, 2)
    sentences = []
    for chain, number in ((words[:CHAIN], numbers[0]), (words[CHAIN:], numbers[1])):
        before = ["{border}" + number, *(f" what {word} holds" for word in chain[:-1])]
        texts = (f" Variable {word} holds{value}." for word, value in zip(chain, before, strict=True))
        sentences += list(zip(_spread(rng, CHAIN), texts, strict=True))
    question = (
        f" Which {CHAIN} variables hold {numbers[0]}, in the order of the text? The variables that hold "
        f"{numbers[0]} are"
    )
    return _hidden("variable_tracking", source, sentences, question, words[:CHAIN], None)


def common_words(source: Source, rng: np.random.Generator, depth: float | None) -> Prompt:
    """The words that recur in a list of words that occur once or twice."""
    common = sorted(source.haystack.words(rng, COMMON))
    question = f" Which {COMMON} words come most often in the list, by the alphabet? The most common words are"

    def items(count: int) -> list[str]:
        often = max(3, round(count * COMMON_SHARE / COMMON))
        rest = max(0, count - COMMON * often)
        drawn = source.haystack.words(rng, min(source.haystack.num_words, (rest + 1) // 2 + COMMON))
        others = [word for word in drawn if word not in common]
        times = -(-rest // max(1, len(others)))
        if times >= often:
            raise ContextLengthError(
                f"retrieval: context length {source.context_length}: common_words has {len(others)} other words for "
                f"{rest} places, wanted more; raise data.validation_share or leave it out of retrieval.tasks"
            )
        listed = common * often + (others * times)[:rest]
        return [f" {listed[number]}," for number in rng.permutation(len(listed))]

    return _listed("common_words", source, rng, items, question, common)


def frequent_words(source: Source, rng: np.random.Generator, depth: float | None) -> Prompt:
    """The most frequent words of a list whose frequencies fall with a power of the rank."""
    words = source.haystack.words(rng, 40)
    question = f" Which {FREQUENT} words come most often in the list, in order? The most frequent words are"
    weights = np.arange(1, len(words) + 1) ** -FREQUENT_POWER

    def items(count: int) -> list[str]:
        counts = np.floor(weights / weights.sum() * count).astype(int)
        for rank in range(FREQUENT, -1, -1):  # the words asked for are strictly more frequent than the next
            counts[rank] = max(counts[rank], counts[rank + 1] + 1)
        listed = [word for word, times in zip(words, counts, strict=True) for _ in range(times)]
        return [f" {listed[number]}," for number in rng.permutation(len(listed))]

    return _listed("frequent_words", source, rng, items, question, words[:FREQUENT])


def key_value(source: Source, rng: np.random.Generator, depth: float | None) -> Prompt:
    """The value of one key in a list of pairs of numbers."""
    encoder, digits = source.haystack.encoder, source.digits
    key, value = source.numbers(rng, 2)
    asked, answer, border = answered(encoder, f" What is the value of {key}? The value of {key} is", value)
    pair = encode(encoder, f" {key}:{border}{value};")
    room = _room(source, len(pair) + len(asked) + len(answer))
    pairs: list[list[int]] = []
    taken = {key}
    used = 0
    while True:
        other = draw_number(rng, digits, "", ())
        if other in taken:
            if len(taken) >= 9 * 10 ** (digits - 1) - 1:
                break
            continue
        taken.add(other)
        tokens = encode(encoder, f" {other}:{border}{draw_number(rng, digits, value)};")
        if used + len(tokens) > room:
            break
        pairs.append(tokens)
        used += len(tokens)
    assert depth is not None
    before = round(depth * len(pairs))
    parts = [*pairs[:before], pair, *pairs[before:]]
    lead = _filler(source, room - used)
    start = len(encoder.prefix) + len(lead) + sum(map(len, pairs[:before]))
    return _joined("key_value", source, [lead, *parts, asked, answer], len(answer), depth, [value], start)


# By name; True where a task has one depth, which the grid then varies.
TASKS: dict[str, tuple[Make, bool]] = {
    "passkey": (passkey, True),
    "single_needle": (single_needle, True),
    "multi_key": (multi_key, True),
    "multi_value": (multi_value, False),
    "multi_query": (multi_query, False),
    "variable_tracking": (variable_tracking, False),
    "common_words": (common_words, False),
    "frequent_words": (frequent_words, False),
    "key_value": (key_value, True),
}


def _needle(word: str, number: str) -> str:
    return NEEDLE.replace("{word}", word).replace("{number}", number)


def _asked(word: str) -> str:
    return NEEDLE_QUESTION.replace("{word}", word)


def _spread(rng: np.random.Generator, count: int) -> list[float]:
    """Return increasing depths, one anywhere in each of `count` equal parts of the text."""
    return [float((part + rng.random()) / count) for part in range(count)]


def _room(source: Source, frame: int) -> int:
    """Return how many tokens of text or list there is room for beside a frame of tokens.

    Raises:
        ContextLengthError: If there is no room.
    """
    frame += len(source.haystack.encoder.prefix)
    if source.context_length - frame < 1:
        raise ContextLengthError(
            f"retrieval: context length {source.context_length}: key, question and answer alone take {frame} tokens, "
            "wanted more; ask for longer ones"
        )
    return source.context_length - frame


def _filler(source: Source, room: int) -> Tokens:
    """Return `room` tokens of the trial's text.

    Raises:
        ContextLengthError: If it has fewer.
    """
    if room > len(source.text):
        raise ContextLengthError(
            f"retrieval: context length {source.context_length}: all held-out documents together have "
            f"{len(source.text)} tokens of text, wanted {room}; raise data.validation_share or name "
            "data.validation_corpus"
        )
    return source.text[:room]


def _hidden(
    task: str,
    source: Source,
    sentences: Sequence[tuple[float | None, str]],
    question: str,
    references: Sequence[str],
    depth: float | None,
) -> Prompt:
    """Return a prompt of sentences hidden in text, the first of which is what has to be found.

    Args:
        task: Its name.
        source: Of the trial.
        sentences: (fraction of the text before it, sentence with `{border}` before a number).
        question: What is asked at the end.
        references: The parts of the answer, in order.
        depth: Of the first sentence, kept in the prompt.
    """
    encoder = source.haystack.encoder
    asked, answer, border = answered(encoder, question, ", ".join(references))
    tokens = [encode(encoder, sentence.replace("{border}", border)) for _, sentence in sentences]
    room = _room(source, sum(map(len, tokens)) + len(asked) + len(answer))
    text = _filler(source, room)
    offsets = [round((depth or 0.0) * room) for depth, _ in sentences]
    parts: list[Sequence[int] | Tokens] = []
    last = 0
    needle = 0
    for number in sorted(range(len(tokens)), key=lambda number: (offsets[number], number)):
        parts.append(text[last : offsets[number]])
        last = offsets[number]
        if number == 0:
            needle = len(encoder.prefix) + sum(map(len, parts))
        parts.append(tokens[number])
    return _joined(task, source, [*parts, text[last:], asked, answer], len(answer), depth, references, needle)


def _listed(
    task: str,
    source: Source,
    rng: np.random.Generator,
    items: Callable[[int], list[str]],
    question: str,
    references: Sequence[str],
) -> Prompt:
    """Return a prompt that is filled with a list, with text before it in the room that the last item leaves."""
    encoder = source.haystack.encoder
    asked, answer, _ = answered(encoder, question, ", ".join(references))
    room = _room(source, len(asked) + len(answer))
    count = room // 2
    while True:
        tokens = [encode(encoder, item) for item in items(count)]
        used = sum(map(len, tokens))
        if used <= room:
            break
        smaller = min(count - 1, int(count * room / used))
        if smaller < 2 * len(references):
            raise ContextLengthError(
                f"retrieval: context length {source.context_length}: {task} has room for {smaller} words, wanted at "
                f"least {2 * len(references)}; ask for longer ones"
            )
        count = smaller
    lead = _filler(source, room - used)
    return _joined(task, source, [lead, *tokens, asked, answer], len(answer), None, references, None)


def _joined(
    task: str,
    source: Source,
    parts: Sequence[Sequence[int] | Tokens],
    num_answer_tokens: int,
    depth: float | None,
    references: Sequence[str],
    needle: int | None,
) -> Prompt:
    tokens = np.concatenate([np.asarray(part, dtype=np.int64) for part in (source.haystack.encoder.prefix, *parts)])
    assert len(tokens) == source.context_length, "prompts are made to an exact length"
    return Prompt(task, tokens, num_answer_tokens, depth, tuple(references), needle)
