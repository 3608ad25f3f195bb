"""Every task is solved from its text alone, by a reader that knows nothing but the question's form."""

import re
from collections import Counter

import numpy as np
import pytest

from e2ray.config.data import ByteLevelBpe
from e2ray.config.retrieval import RetrievalSettings
from e2ray.data.encoder import Encoder
from e2ray.data.tokenizer import encoder_of, train_byte_level_bpe
from e2ray.evaluate.haystack import WORD, ContextLengthError, Haystack
from e2ray.evaluate.prompts import prompts
from e2ray.evaluate.tasks import CHAIN, COMMON, FREQUENT, NEEDLES, TASKS

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_level_bpe(words(200), ByteLevelBpe(vocab_size=400))


@pytest.fixture(scope="module")
def documents(tokenizer):
    rng = np.random.default_rng(0)
    vocabulary = words(200)
    encoder = encoder_of(tokenizer)
    return encoder.encode([" ".join(rng.choice(vocabulary, size=1500)) for _ in range(3)])


def words(count):
    rng = np.random.default_rng(7)
    return ["".join(rng.choice(list(LETTERS), size=rng.integers(4, 9))) for _ in range(count)]


def make(documents, tokenizer, task, **changes):
    options = {"context_length": 1024, "depths": (0.0, 0.5, 1.0), "trials": 3, "digits": 5, "seed": 0}
    return prompts(documents, tokenizer, task=task, **(options | changes))


def question_of(tokenizer, prompt):
    return tokenizer.decode(prompt.tokens[: -prompt.num_answer_tokens])


def solve_passkey(text):
    return re.findall(r"The pass key is (\d+)\.", text)


def solve_needle(text):
    word = re.search(r"What is the number of (\w+)\?", text).group(1)
    return re.findall(rf"The number of {word} is (\d+)\.", text)


def solve_values(text):
    word = re.search(r"numbers of (\w+), in order\?", text).group(1)
    return re.findall(rf"The number of {word} is (\d+)\.", text)


def solve_queries(text):
    asked = re.search(r"What are the numbers of ([\w, ]+), in this order\?", text).group(1)
    return [re.search(rf"The number of {word} is (\d+)\.", text).group(1) for word in re.split(r", | and ", asked)]


def solve_variables(text):
    number = re.search(r"variables hold (\d+), in the order", text).group(1)
    held = {}
    for name, value, other in re.findall(
        r"Variable (\w+) holds (?:what (?=\w+ holds))?(?:(\d+)\.|(\w+) holds\.)", text
    ):
        held[name] = value or held[other]
    return [name for name, value in held.items() if value == number]


def solve_common(text):
    listed = Counter(re.findall(r"(\w+),", text.partition(" Which ")[0]))
    return sorted(word for word, _ in listed.most_common(COMMON))


def solve_frequent(text):
    listed = Counter(re.findall(r"(\w+),", text.partition(" Which ")[0]))
    return [word for word, _ in listed.most_common(FREQUENT)]


def solve_pairs(text):
    key = re.search(r"What is the value of (\d+)\?", text).group(1)
    return re.findall(rf"(?<!\d){key}: (\d+);", text)


SOLVERS = {
    "passkey": solve_passkey,
    "single_needle": solve_needle,
    "multi_key": solve_needle,
    "multi_value": solve_values,
    "multi_query": solve_queries,
    "variable_tracking": solve_variables,
    "common_words": solve_common,
    "frequent_words": solve_frequent,
    "key_value": solve_pairs,
}


def test_every_task_of_the_settings_is_one_of_these():
    assert list(RetrievalSettings(tasks=tuple(TASKS)).tasks) == list(TASKS) == list(SOLVERS)


@pytest.mark.parametrize("task", TASKS)
def test_a_reader_finds_the_references_in_the_text_and_nothing_else(documents, tokenizer, task):
    made = make(documents, tokenizer, task)
    assert len(made) == (9 if TASKS[task][1] else 3)
    for prompt in made:
        text = question_of(tokenizer, prompt)
        assert SOLVERS[task](text) == list(prompt.references)
        answer = tokenizer.decode(prompt.tokens[-prompt.num_answer_tokens :])
        assert answer.strip() == ", ".join(prompt.references)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("context_length", [501, 512, 1999])
def test_every_prompt_has_exactly_the_tokens_asked_for(documents, tokenizer, task, context_length):
    for prompt in make(documents, tokenizer, task, context_length=context_length):
        assert prompt.tokens.shape == (context_length,)
        assert prompt.task == task


@pytest.mark.parametrize("task", [task for task, (_, has_depth) in TASKS.items() if has_depth])
def test_what_is_asked_for_stands_at_the_depth_asked_for(documents, tokenizer, task):
    for prompt in make(documents, tokenizer, task, depths=(0.0, 0.25, 0.75, 1.0)):
        assert prompt.needle / 1024 == pytest.approx(prompt.depth, abs=0.1)
        behind = tokenizer.decode(prompt.tokens[prompt.needle : prompt.needle + 60])
        assert prompt.references[0] in behind


@pytest.mark.parametrize("task", [task for task, (_, has_depth) in TASKS.items() if not has_depth])
def test_tasks_without_one_depth_say_so(documents, tokenizer, task):
    assert {prompt.depth for prompt in make(documents, tokenizer, task)} == {None}


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_the_same_prompts_whatever_else_is_asked(documents, tokenizer, task):
    some = make(documents, tokenizer, task, depths=(0.5,), trials=2)
    again = [p for p in make(documents, tokenizer, task, depths=(0.5, 1.0), trials=3) if p.depth in (0.5, None)][:2]
    other = make(documents, tokenizer, task, depths=(0.5,), trials=2, seed=1)
    for one, two, three in zip(some, again, other, strict=True):
        np.testing.assert_array_equal(one.tokens, two.tokens)
        assert one.references != three.references


def test_several_answers_are_all_different(documents, tokenizer):
    for task, count in (("multi_value", NEEDLES), ("multi_query", NEEDLES), ("variable_tracking", CHAIN)):
        for prompt in make(documents, tokenizer, task):
            assert len(set(prompt.references)) == count


def test_words_are_the_documents_own(documents, tokenizer):
    encoder = Encoder(tokenizer.backend_tokenizer.to_str(), prefix=(), end=tokenizer.eos_token_id)
    haystack = Haystack(documents, encoder)
    assert set(haystack.vocabulary) == {word for word in words(200) if WORD.fullmatch(word)}
    with pytest.raises(ContextLengthError, match=r"have \d+ different words of 4 to 12 letters, wanted 9999"):
        haystack.words(np.random.default_rng(0), 9999)


@pytest.mark.parametrize("task", TASKS)
def test_a_length_that_cannot_hold_the_question_is_refused(documents, tokenizer, task):
    with pytest.raises(ContextLengthError, match=r"retrieval: context length 24: .*ask for longer ones"):
        make(documents, tokenizer, task, context_length=24)


@pytest.mark.parametrize("task", ["common_words", "frequent_words"])
def test_a_list_without_room_is_refused(documents, tokenizer, task):
    with pytest.raises(ContextLengthError, match=rf"{task} has room for \d+ words, wanted at least 6"):
        make(documents, tokenizer, task, context_length=100)
