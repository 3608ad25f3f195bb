import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from e2ray.config.base import SettingsError
from e2ray.config.data import ByteLevelBpe
from e2ray.config.retrieval import RetrievalSettings
from e2ray.core.rope import RotaryHook
from e2ray.data.passkey import PASSKEY, PASSKEY_QUESTION
from e2ray.data.tokenizer import encoder_of, prefix_tokens, train_byte_level_bpe
from e2ray.evaluate.haystack import ContextLengthError
from e2ray.evaluate.prompts import prompts
from e2ray.evaluate.retrieval import accuracy, answers, write
from e2ray.evaluate.tasks import TASKS

TEXTS = [
    "The pass key is what opens the door. What is the pass key? Remember it, the pass key is kept by the porter.",
    "the dog sat on the log and looked at the porter, who is what he is and was in 1813 and 1914 and 2020",
] * 20
DEPTHS = (0.0, 0.25, 0.5, 1.0)
CONTEXT_LENGTH = 256


def byte_level():
    return train_byte_level_bpe(TEXTS, ByteLevelBpe(vocab_size=300))


def byte_level_joining_digits():
    return train_byte_level_bpe([str(number) for number in range(3000)] * 3, ByteLevelBpe(vocab_size=700))


def spaces_as_letters():
    """As Llama 2: spaces are part of words, one stands before a text, digits stand alone, a text begins with <s>."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Digits(True)])
    backend.decoder = decoders.Metaspace()
    train(backend, ["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def pieces_of_words():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    alphabet = [*"0123456789abcdefghijklmnopqrstuvwxyz"]
    vocabulary = ["[UNK]", "[SEP]", ".", ",", "?", *alphabet, *(f"##{letter}" for letter in alphabet)]
    backend.model = models.WordPiece(vocab={piece: n for n, piece in enumerate(vocabulary)}, unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", unk_token="[UNK]")


def tokens_across_the_border():
    """Merges run over spaces: "is" and the digit behind it become one token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    backend.decoder = decoders.Fuse()
    texts = [f"{word} {digit}" for word in ("is", "s", "") for digit in range(10)] * 50
    train(
        backend, ["</s>"], texts, initial_alphabet=sorted(set(PASSKEY + PASSKEY_QUESTION + "\n:0123456789" + TEXTS[0]))
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def train(backend, special, texts=(), **options):
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False, **options)
    digits = ["0123456789"] if not texts else []
    backend.train_from_iterator([*(texts or TEXTS), *digits], trainer)


def two_in_front_and_an_end():
    """Two specials before a text, none of them a BOS, and the end-of-text token behind it."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<sop>"]})
    names = ("[gMASK]", "<sop>", tokenizer.eos_token)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"[gMASK] <sop> $A {tokenizer.eos_token}",
        special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in names],
    )
    return tokenizer


TOKENIZERS = [
    two_in_front_and_an_end,
    byte_level,
    byte_level_joining_digits,
    spaces_as_letters,
    pieces_of_words,
    tokens_across_the_border,
]


@pytest.fixture(scope="module", params=TOKENIZERS, ids=lambda make: make.__name__)
def any_tokenizer(request):
    return request.param()


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


def encoded(tokenizer, texts):
    return encoder_of(tokenizer).encode(texts)


def held_out(tokenizer, *, num_documents=3, words=400, seed=0):
    """Return documents as the shards hold them."""
    rng = np.random.default_rng(seed)
    return encoded(
        tokenizer, [" ".join(rng.choice(["log", "dog", "door", "the"], size=words)) for _ in range(num_documents)]
    )


def many_words(tokenizer):
    """Return documents with enough different words for lists of them."""
    rng = np.random.default_rng(7)
    words = ["".join(rng.choice([*"abcdefghij"], size=5)) for _ in range(120)]
    return encoded(tokenizer, [" ".join(rng.choice(words, size=400)) for _ in range(3)])


def make(documents, tokenizer, **changes):
    options = {"context_length": CONTEXT_LENGTH, "depths": DEPTHS, "trials": 3, "digits": 5, "seed": 0}
    return prompts(documents, tokenizer, **(options | changes))


def plain(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def border(tokenizer):
    """Return what stands between question and key; only the tokenizer made for it needs another one."""
    return ": " if '"Fuse"' in tokenizer.backend_tokenizer.to_str() else " "


def needle_text(prompt, between=" "):
    return PASSKEY.format(border=between, key=prompt.key)


def said(tokenizer, tokens):
    return tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


class Reader(nn.Module):
    """A model that answers by a rule of (tokens so far) -> next token, with rotary positions that it writes down."""

    def __init__(self, rule, vocab_size):
        super().__init__()
        self.rotary = Rotary(LlamaConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1))
        self.rule, self.vocab_size = rule, vocab_size
        self.batch_sizes = []

    def forward(self, input_ids, use_cache, logits_to_keep):
        assert not use_cache and not self.training
        rows, length = input_ids.shape
        self.batch_sizes.append(rows)
        self.rotary(torch.zeros(rows, length, 8), torch.arange(length)[None])
        logits = torch.zeros(rows, logits_to_keep, self.vocab_size)
        for row, tokens in enumerate(input_ids.tolist()):
            for place in range(logits_to_keep):
                logits[row, place, self.rule(tokens[: length - logits_to_keep + place + 1])] = 1.0
        return SimpleNamespace(logits=logits)


class Oracle(Reader):
    """A model that knows the prompt: each token is the arg-max behind those before it; a rule has the one behind it.

    `slip` counts from the last token: that one it gets wrong.
    """

    def __init__(self, rule, vocab_size, *, slip=None):
        super().__init__(rule, vocab_size)
        self.slip = slip

    def forward(self, input_ids, use_cache, logits_to_keep):
        wanted = torch.tensor([[*tokens[1:], self.rule(tokens)] for tokens in input_ids.tolist()])
        if self.slip is not None:
            wanted[:, -1 - self.slip] ^= 1
        logits = nn.functional.one_hot(wanted[:, -logits_to_keep:], self.vocab_size).float()
        return SimpleNamespace(logits=logits)


class Guesser(Reader):
    """A model to which all tokens are alike."""

    def __init__(self, vocab_size, *, seed):
        super().__init__(None, vocab_size)
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, input_ids, use_cache, logits_to_keep):
        shape = (len(input_ids), logits_to_keep, self.vocab_size)
        return SimpleNamespace(logits=torch.rand(shape, generator=self.generator))


class Rotary(LlamaRotaryEmbedding):
    def forward(self, x, position_ids):
        self.seen = position_ids
        return super().forward(x, position_ids)


def copy(tokens):
    """Return what stood behind the longest earlier repetition of the text's end."""
    best, following = 0, 0
    for end in range(1, len(tokens)):
        length = 0
        while length < end and tokens[end - 1 - length] == tokens[-1 - length]:
            length += 1
        if length > best:
            best, following = length, tokens[end]
    return following


def find(model, asked, tokenizer, **changes):
    options = {"scale": 1.0, "batch_tokens": 4 * CONTEXT_LENGTH, "device": "cpu"}
    hook = RotaryHook(model)
    try:
        read = answers(model, hook, asked, encoder_of(tokenizer), **(options | changes))
        return [answered.found for answered in read]
    finally:
        hook.remove()


def measure(model, documents, tokenizer, *, lines=None, windows=None, base_context_length=128, **settings):
    return accuracy(
        model,
        RotaryHook(model),
        documents,
        tokenizer,
        settings=RetrievalSettings(**({"greedy": 0} | settings)),
        base_context_length=base_context_length,
        batch_tokens=1024,
        device="cpu",
        windows=windows,
        progress=None if lines is None else lines.append,
    )


def tiny_llama(vocab_size, *, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("context_length", [180, 256, 511])
def test_every_prompt_has_exactly_the_tokens_asked_for(any_tokenizer, context_length):
    made = make(held_out(any_tokenizer, words=900), any_tokenizer, context_length=context_length)
    assert len(made) == len(DEPTHS) * 3
    for prompt in made:
        assert prompt.tokens.shape == (context_length,)
        assert prompt.tokens.dtype == np.int64
    assert [prompt.depth for prompt in made] == [depth for depth in DEPTHS for _ in range(3)]


def test_the_answer_is_the_key_as_the_tokenizer_writes_it_behind_the_question(any_tokenizer):
    for prompt in make(held_out(any_tokenizer), any_tokenizer):
        answer = prompt.tokens[-prompt.num_answer_tokens :]
        assert "".join(said(any_tokenizer, answer).split()) == prompt.key
        natural = plain(any_tokenizer, f"{PASSKEY_QUESTION}{border(any_tokenizer)}{prompt.key}")
        assert prompt.tokens[-len(natural) :].tolist() == natural
        question = plain(any_tokenizer, f"{PASSKEY_QUESTION}{border(any_tokenizer).rstrip()}")
        assert natural[: -prompt.num_answer_tokens] == question  # the question reads the same without its answer


def test_a_border_that_tokens_cross_is_not_used():
    tokenizer = tokens_across_the_border()
    for prompt in make(held_out(tokenizer), tokenizer):
        for crossed in ("", " "):  # else this tokenizer proves nothing
            question = plain(tokenizer, PASSKEY_QUESTION + crossed)
            assert plain(tokenizer, f"{PASSKEY_QUESTION} {prompt.key}")[: len(question)] != question
        assert said(tokenizer, prompt.tokens).endswith(f" is: {prompt.key}")
        assert said(tokenizer, prompt.tokens[: -prompt.num_answer_tokens]).endswith(" is:")


def test_the_needle_names_the_key_at_the_depth_asked_for(any_tokenizer):
    num_begin = len(prefix_tokens(any_tokenizer))
    for prompt in make(held_out(any_tokenizer), any_tokenizer):
        needle = plain(any_tokenizer, needle_text(prompt, border(any_tokenizer)))
        question = plain(any_tokenizer, f"{PASSKEY_QUESTION}{border(any_tokenizer)}{prompt.key}")
        assert prompt.tokens[prompt.needle : prompt.needle + len(needle)].tolist() == needle
        text = CONTEXT_LENGTH - num_begin - len(needle) - len(question)
        assert prompt.needle - num_begin == round(prompt.depth * text)


def test_a_trial_has_one_text_for_all_depths(tokenizer):
    start, end = make(held_out(tokenizer), tokenizer, depths=(0.0, 1.0), trials=1)
    size = CONTEXT_LENGTH // 3
    behind = len(plain(tokenizer, needle_text(start)))
    np.testing.assert_array_equal(start.tokens[behind : behind + size], end.tokens[:size])
    assert start.key != end.key


def test_the_same_seed_gives_the_same_prompts_and_another_seed_others(tokenizer):
    documents = held_out(tokenizer)
    first, again, other = make(documents, tokenizer), make(documents, tokenizer), make(documents, tokenizer, seed=1)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.tokens, two.tokens)
        assert (one.key, one.needle) == (two.key, two.needle)
    assert not {prompt.key for prompt in first} & {prompt.key for prompt in other}
    assert len({prompt.key for prompt in first}) == len(first)


def test_a_cell_does_not_depend_on_the_rest_of_the_grid(tokenizer):
    documents = held_out(tokenizer)
    grid = make(documents, tokenizer, trials=3)
    alone = make(documents, tokenizer, depths=(0.5,), trials=1)
    (same,) = [prompt for prompt in grid if prompt.depth == 0.5][:1]
    np.testing.assert_array_equal(alone[0].tokens, same.tokens)


def test_keys_have_their_digits_and_no_leading_zero(tokenizer):
    for digits in (2, 5, 9):
        for prompt in make(held_out(tokenizer), tokenizer, digits=digits):
            assert len(prompt.key) == digits and prompt.key.isdecimal() and prompt.key[0] != "0"


def test_a_key_is_written_nowhere_else_in_the_text(tokenizer):
    documents = encoded(tokenizer, ["the 78 dogs of 1234 and 56 logs " * 40] * 2)
    made = make(documents, tokenizer, digits=1)
    assert {prompt.key for prompt in made} == {"9"}
    for prompt in made:
        assert said(tokenizer, prompt.tokens).count("9") == 3  # twice in the needle, once as the answer
    documents = encoded(tokenizer, ["the 98 dogs of 1234 and 567 logs " * 40] * 2)
    with pytest.raises(SettingsError, match=r"retrieval\.digits: 1000 drawn keys of 1 digits all stand in.*raise it"):
        make(documents, tokenizer, digits=1)


@pytest.mark.parametrize("make_tokenizer", [spaces_as_letters, two_in_front_and_an_end])
def test_documents_shorter_than_the_length_are_joined_without_their_end_and_prefix(make_tokenizer):
    tokenizer = make_tokenizer()
    prefix, end = prefix_tokens(tokenizer), tokenizer.eos_token_id
    size = len(prefix)
    assert tokenizer.convert_ids_to_tokens(prefix) in (["<s>"], ["[gMASK]", "<sop>"])
    documents = held_out(tokenizer, num_documents=40, words=12)
    assert max(map(len, documents)) < 40 and all(document[:size].tolist() == prefix for document in documents)
    for prompt in make(documents, tokenizer):
        assert prompt.tokens[:size].tolist() == prefix
        assert not {*prefix, end} & {*prompt.tokens[size:].tolist()}
    ring = np.concatenate([document[size:-1] for document in documents])
    (prompt,) = make(documents, tokenizer, depths=(1.0,), trials=1)
    text = prompt.tokens[size : prompt.needle].tolist()
    twice = np.concatenate([ring, ring]).tolist()
    assert any(twice[start : start + len(text)] == text for start in range(len(ring)))


def test_text_is_never_used_twice_in_a_prompt(tokenizer):
    numbers = np.arange(256, 296, dtype=np.int32)  # 40 different tokens
    documents = [numbers[:7], numbers[7:11], numbers[11:11], numbers[11:]]
    frame = CONTEXT_LENGTH - make(held_out(tokenizer), tokenizer, depths=(1.0,), trials=1)[0].needle
    made = make(documents, tokenizer, context_length=frame + 36, depths=(1.0,), trials=20)
    for prompt in made:
        text = prompt.tokens[: prompt.needle].tolist()
        assert len(set(text)) == len(text) >= 30
        assert all((after - before) % 40 == 1 for before, after in itertools.pairwise(text))
    assert len({prompt.tokens[0] for prompt in made}) > 5  # texts begin anywhere


def test_a_length_that_the_text_cannot_fill_is_refused(tokenizer):
    documents = held_out(tokenizer, num_documents=2, words=60)
    text = sum(len(document) - 1 for document in documents)
    with pytest.raises(ContextLengthError, match=rf"length 4096: all held-out documents together have {text} tokens"):
        make(documents, tokenizer, context_length=4096)
    with pytest.raises(ContextLengthError, match=r"length 16: key, question and answer alone take \d+ tokens"):
        make(documents, tokenizer, context_length=16)
    with pytest.raises(ContextLengthError, match=r"documents together have 0 tokens.*raise data\.validation_share"):
        make([], tokenizer)


def test_a_tokenizer_without_digits_is_named():
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[SEP]": 1, "the": 2, "dog": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", unk_token="[UNK]")
    with pytest.raises(SettingsError, match=r"tokenizer: writes the number \d+ in tokens that say.*knows digits"):
        make([np.full(400, 2, dtype=np.int32)], tokenizer)


def test_a_tokenizer_that_joins_question_and_key_everywhere_is_named():
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[SEP]": 1}, unk_token="[UNK]"))  # a text is one word
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", unk_token="[UNK]")
    with pytest.raises(SettingsError, match="tokenizer: joins words and digits in one token"):
        make([np.full(400, 0, dtype=np.int32)], tokenizer)


def test_depths_outside_the_context_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"depths must lie in \[0, 1\], got \[1\.5\]"):
        make(held_out(tokenizer), tokenizer, depths=(1.5,))


def test_a_model_that_copies_finds_every_key(any_tokenizer):
    made = make(held_out(any_tokenizer), any_tokenizer)
    assert find(Reader(copy, len(any_tokenizer)), made, any_tokenizer) == [True] * len(made)


@pytest.mark.parametrize(("behind", "share"), [(".", 1), (" 4", 1), ("4", 0), ("s", 0), ("_", 0)])
def test_who_knows_the_answers_of_all_tasks_has_them_unless_a_longer_word_is_written(tokenizer, behind, share):
    first = plain(tokenizer, behind)[0]
    model = Oracle(lambda tokens: first, len(tokenizer))
    rows = measure(
        model, many_words(tokenizer), tokenizer, context_lengths=(512,), depths=(0.0, 0.5), trials=2, tasks=tuple(TASKS)
    )
    assert {row.task for row in rows} == set(TASKS)
    assert len(rows) == sum(2 if has_depth else 1 for _, has_depth in TASKS.values())
    assert [row.found / row.trials for row in rows] == [share] * len(rows)


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_of_any_task_is_lost_with_any_token_of_its_answer(tokenizer, task):
    (prompt, *_) = make(many_words(tokenizer), tokenizer, depths=(0.5,), context_length=512, task=task)
    (full_stop,) = plain(tokenizer, ".")
    for place in range(prompt.num_answer_tokens):
        model = Oracle(lambda tokens: full_stop, len(tokenizer), slip=place + 1)
        assert find(model, [prompt], tokenizer) == [False]
    beyond = Oracle(lambda tokens: full_stop, len(tokenizer), slip=prompt.num_answer_tokens + 1)
    assert find(beyond, [prompt], tokenizer) == [True]  # the question is not asked for


def test_guessing_finds_as_many_keys_as_chance_has_it():
    """One digit is one token of 77, and 41 of them do not go on with it: those that say no `##`."""
    tokenizer, trials = pieces_of_words(), 4000
    chance = (1 / 77) * (41 / 77)
    assert len(tokenizer) == 77
    rows = measure(
        Guesser(77, seed=0),
        held_out(tokenizer),
        tokenizer,
        context_lengths=(80,),
        depths=(0.5,),
        trials=trials,
        digits=1,
    )
    low, high = binomial_interval(trials, chance, 0.999)
    assert high < trials / 77  # what would be found without a look behind the answer
    assert low <= rows[0].found <= high
    assert rows[0].trials == trials


def binomial_interval(trials, share, level):
    """Return the smallest and the largest count outside of which less than (1 - level) / 2 lies on either side."""
    chances = [
        math.exp(
            math.lgamma(trials + 1) - math.lgamma(n + 1) - math.lgamma(trials - n + 1)
            + n * math.log(share) + (trials - n) * math.log1p(-share)
        )
        for n in range(trials + 1)
    ]  # fmt: skip
    below = np.cumsum(chances)
    return int(np.searchsorted(below, (1 - level) / 2)), int(np.searchsorted(below, (1 + level) / 2))


def test_other_numbers_in_the_text_lead_only_a_careless_reader_astray(tokenizer):
    documents = encoded(tokenizer, ["the dog is 31415 and the log is 27182 and the door is 16180 . " * 30] * 2)
    made = make(documents, tokenizer, depths=(0.0, 0.5))

    word, question = plain(tokenizer, " is"), plain(tokenizer, PASSKEY_QUESTION)

    def last(piece, tokens):
        return max((at for at in range(len(tokens)) if tokens[at : at + len(piece)] == piece), default=-1)

    def last_number(tokens):
        asked = last(question, tokens)
        if asked < 0:
            return 0  # nothing is asked yet
        seen = last(word, tokens[: asked - 12])  # with a whole number behind it
        return tokens[seen + len(word) + len(tokens) - asked - len(question)]

    assert find(Reader(copy, len(tokenizer)), made, tokenizer) == [True] * len(made)
    assert find(Reader(last_number, len(tokenizer)), made, tokenizer) == [False] * len(made)
    for prompt in made:
        tokens = prompt.tokens[: -prompt.num_answer_tokens].tolist()
        for _ in range(prompt.num_answer_tokens):
            tokens.append(last_number(tokens))
        answered = said(tokenizer, tokens).rpartition(PASSKEY_QUESTION)[2]
        assert answered[:6] in (" 31415", " 27182", " 16180")


def test_one_wrong_answer_token_is_a_miss(tokenizer):
    made = make(held_out(tokenizer), tokenizer, trials=1)
    assert made[0].num_answer_tokens >= 5
    for place in range(1, made[0].num_answer_tokens + 1):
        tokens = made[0].tokens.copy()
        tokens[-place] = 0
        assert find(Reader(copy, len(tokenizer)), [dataclasses.replace(made[0], tokens=tokens)], tokenizer) == [False]


def test_answers_of_different_lengths_are_scored_together(tokenizer):
    """A short answer beside a long one is judged by its own tokens only."""
    prompt, other = make(held_out(tokenizer), tokenizer, depths=(0.5,), trials=2)
    wrong = prompt.tokens.copy()
    wrong[-3] = 0
    shorter = dataclasses.replace(prompt, tokens=wrong, num_answer_tokens=1)

    (full_stop,) = plain(tokenizer, ".")

    def last_token(tokens):
        last = {CONTEXT_LENGTH - 1: prompt.tokens[-1], CONTEXT_LENGTH: full_stop}
        return last[len(tokens)] if len(tokens) in last else copy(tokens)

    rows = [shorter, other, dataclasses.replace(shorter, num_answer_tokens=3)]
    assert find(Reader(last_token, len(tokenizer)), rows, tokenizer) == [
        True,
        other.tokens[-1] == prompt.tokens[-1],
        False,
    ]


def test_a_random_model_finds_no_key_of_five_digits(tokenizer):
    made = make(held_out(tokenizer), tokenizer, trials=8)
    assert find(tiny_llama(len(tokenizer)), made, tokenizer) == [False] * 32


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_one_forward_says_what_greedy_generation_writes(tokenizer, scale):
    model = tiny_llama(len(tokenizer))
    asked, wanted, went_on = [], [], 0
    for number, prompt in enumerate(make(held_out(tokenizer), tokenizer, trials=5)):
        size = prompt.num_answer_tokens
        question = torch.from_numpy(prompt.tokens[:-size])[None]
        hook = RotaryHook(model)
        with torch.inference_mode(), hook.applied(scale):
            written = model.generate(
                question, attention_mask=torch.ones_like(question), max_new_tokens=size + 1, do_sample=False
            )[0, -size - 1 :].numpy()
        answer = written[:-1]
        answer = [answer, prompt.tokens[-size:], np.append(answer[:-1], answer[-1] ^ 1)][number % 3]
        asked.append(dataclasses.replace(prompt, tokens=np.concatenate([prompt.tokens[:-size], answer])))
        same = written[:-1].tolist() == answer.tolist()
        goes_on = tokenizer.decode(written[-1:])[:1].isalnum()  # byte level: a token says the same everywhere
        wanted.append(same and not goes_on)
        went_on += same and goes_on
        said = write(model, hook, asked[-1], encoder_of(tokenizer), scale=scale, device="cpu")
        hook.remove()
        assert said.exact is bool(wanted[-1])
    assert went_on > 0  # else the token behind the answer is not put to the test
    assert set(wanted) == {True, False}
    assert find(model, asked, tokenizer, scale=scale) == wanted
    assert find(model, asked, tokenizer, scale=2 * scale) != wanted  # the scale is not lost on the way


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_an_answers_nll_is_that_of_its_tokens_alone(tokenizer, scale):
    model = tiny_llama(len(tokenizer))
    asked = make(held_out(tokenizer), tokenizer, trials=2)
    hook = RotaryHook(model)
    found = answers(model, hook, asked, encoder_of(tokenizer), scale=scale, batch_tokens=10_000, device="cpu")
    for one, prompt in zip(found, asked, strict=True):
        text, size = torch.from_numpy(prompt.tokens)[None].long(), prompt.num_answer_tokens
        with torch.no_grad(), hook.applied(scale):
            logits = model(input_ids=text, use_cache=False).logits[0, -size - 1 : -1]
        wanted = torch.nn.functional.cross_entropy(logits, text[0, -size:])
        assert one.nll == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, CONTEXT_LENGTH, 5 * CONTEXT_LENGTH + 1, 10**6])
def test_batches_give_the_same_answers_and_hold_no_more_than_asked(tokenizer, batch_tokens):
    made = make(held_out(tokenizer), tokenizer)
    half = [dataclasses.replace(p, tokens=np.append(p.tokens[:-1], 0)) if n % 2 else p for n, p in enumerate(made)]
    model = Reader(copy, len(tokenizer))
    assert find(model, half, tokenizer, batch_tokens=batch_tokens) == [n % 2 == 0 for n in range(len(half))]
    assert max(model.batch_sizes) == min(len(half), max(1, batch_tokens // CONTEXT_LENGTH))
    assert sum(model.batch_sizes) == len(half)


def test_no_prompts_have_no_answers(tokenizer):
    assert find(Reader(copy, len(tokenizer)), [], tokenizer) == []


def test_prompts_of_two_lengths_are_refused(tokenizer):
    made = make(held_out(tokenizer), tokenizer)
    made += make(held_out(tokenizer), tokenizer, context_length=200)
    with pytest.raises(ValueError, match=r"one context length, got \[200, 256\]"):
        find(Reader(copy, len(tokenizer)), made, tokenizer)


def test_measuring_leaves_the_model_as_it_was(tokenizer):
    model = tiny_llama(len(tokenizer)).train()
    made = make(held_out(tokenizer), tokenizer, trials=1)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        untouched = model(tokens).logits
        find(model, made, tokenizer, scale=4.0)
        assert model.training
        torch.testing.assert_close(model(tokens).logits, untouched, rtol=0, atol=0)


def test_a_diverged_model_is_named_and_no_score(tokenizer):
    model = tiny_llama(len(tokenizer))
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(SettingsError, match=r"context length 256, scale 2: logits are NaN.*diverged"):
        find(model, make(held_out(tokenizer), tokenizer, trials=1), tokenizer, scale=2.0)


@pytest.mark.parametrize(("context_length", "scale"), [(128, 1.0), (256, 1.0), (384, 1.5), (512, 2.0)])
def test_each_length_is_read_at_the_scale_it_is_served_with(tokenizer, context_length, scale):
    model = Reader(copy, len(tokenizer))
    rows = measure(
        model, held_out(tokenizer), tokenizer, base_context_length=256, context_lengths=(context_length,), trials=1
    )
    assert {row.scale for row in rows} == {scale}
    torch.testing.assert_close(model.rotary.seen[0], torch.arange(context_length) / scale, rtol=0, atol=1e-4)


def test_a_perfect_reader_has_all_keys_in_every_cell(tokenizer):
    lines = []
    rows = measure(
        Reader(copy, len(tokenizer)), held_out(tokenizer), tokenizer, lines=lines, windows=(128, 256), trials=2
    )
    sure = math.log(math.e + len(tokenizer) - 1) - 1  # of the right token, by 1 more than of each other one
    assert all(row.answer_nll == pytest.approx(sure, rel=1e-5) for row in rows)
    assert [row.model_dump(exclude={"model", "answer_nll"}) for row in rows] == [
        {
            "task": "passkey",
            "context_length": length,
            "depth": depth,
            "scale": length / 128,
            "found": 2,
            "trials": 2,
            "tokens": length,
            "greedy": 0,
            "agreed": 0,
            "contained": None,
        }
        for length in (128, 256)
        for depth in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    assert lines == [
        "retrieval: context length 128, scale 1: 10 of 10 keys found",
        "retrieval: context length 256, scale 2: 10 of 10 keys found",
    ]


def test_hits_are_counted_at_their_own_depth(tokenizer):
    def far_sighted(tokens):  # knows only the second half of the context
        return copy(tokens[128:])

    rows = measure(
        Reader(far_sighted, len(tokenizer)), held_out(tokenizer), tokenizer, context_lengths=(256,), trials=3
    )
    assert {row.depth: row.found for row in rows} == {0.1: 0, 0.3: 0, 0.5: 0, 0.7: 3, 0.9: 3}


def test_a_length_that_cannot_be_filled_is_missing_and_told(tokenizer):
    lines = []
    documents = held_out(tokenizer, num_documents=1, words=100)
    rows = measure(
        Reader(copy, len(tokenizer)), documents, tokenizer, lines=lines, context_lengths=(16, 128, 8192), trials=1
    )
    assert {row.context_length for row in rows} == {128}
    assert lines[0].startswith("left out: retrieval: context length 16: key, question and answer alone take")
    assert lines[2].startswith("left out: retrieval: context length 8192: all held-out documents together have")
    with pytest.raises(ContextLengthError, match="context length 8192"):
        measure(Reader(copy, len(tokenizer)), documents, tokenizer, context_lengths=(8192,))


def test_settings_override_the_windows_and_one_of_them_is_needed(tokenizer):
    model, documents = Reader(copy, len(tokenizer)), held_out(tokenizer)
    rows = measure(model, documents, tokenizer, windows=(256,), context_lengths=(128,), depths=(0.5,), trials=1)
    assert [row.context_length for row in rows] == [128]
    with pytest.raises(SettingsError, match=r"retrieval\.context_lengths: none are named and no windows are known"):
        measure(model, documents, tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (0.5, 1.5)}, r"lie in \[0, 1\]"),
        ({"depths": (-0.1,)}, r"lie in \[0, 1\]"),
        ({"depths": (0.5, 0.5)}, "increasing"),
        ({"depths": ()}, "at least 1 item"),
        ({"context_lengths": (512, 256)}, "increasing"),
        ({"context_lengths": (1,)}, "at least 2"),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"digits": 0}, "greater than or equal to 1"),
        ({"digits": 19}, "less than or equal to 18"),
        ({"seed": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        RetrievalSettings(**changes)


def test_greedy_generation_agrees_with_the_forward_pass(tokenizer):
    lines = []
    rows = accuracy(
        model := tiny_llama(len(tokenizer)),
        RotaryHook(model),
        held_out(tokenizer),
        tokenizer,
        settings=RetrievalSettings(context_lengths=(192, 256), depths=(0.5,), trials=3, greedy=2),
        base_context_length=128,
        batch_tokens=1024,
        device="cpu",
        progress=lines.append,
    )
    assert [(row.greedy, row.agreed, row.contained) for row in rows] == [(2, 2, 0.0)] * 2
    assert not any("disagrees" in line for line in lines)


@pytest.mark.parametrize("task", TASKS)
def test_what_generation_writes_is_scored_by_its_text(tokenizer, task):
    """The model is made to say what stands in the prompt's place of an answer."""
    prompt = make(many_words(tokenizer), tokenizer, depths=(0.5,), trials=1, context_length=512, task=task)[0]
    model = tiny_llama(len(tokenizer))
    hook = RotaryHook(model)
    answer = prompt.tokens[-prompt.num_answer_tokens :].tolist()
    (full_stop,), (digit,), (letter,) = (plain(tokenizer, text) for text in (".", "7", "b"))
    one_less = 1 - 1 / len(prompt.references)
    for said, exact, share in (
        ([*answer, full_stop], True, 1.0),
        ([*answer, tokenizer.eos_token_id], True, 1.0),
        ([*answer, digit], False, one_less),
        ([*answer, letter], False, one_less),
        ([*answer[:-1], answer[-1] ^ 1, full_stop], False, one_less),
    ):

        def speak(module, args, kwargs, output, said=said):
            place = kwargs["position_ids"].max().item() + 1 - (len(prompt.tokens) - len(answer))
            output.logits[...] = 0
            output.logits[..., said[place]] = 1
            return output

        handle = model.register_forward_hook(speak, with_kwargs=True)
        found = write(model, hook, prompt, encoder_of(tokenizer), scale=2.0, device="cpu")
        handle.remove()
        assert (found.exact, found.contained) == (exact, pytest.approx(share))


def test_a_length_that_does_not_fit_into_memory_is_left_out_and_told(tokenizer):
    model, lines = Reader(copy, len(tokenizer)), []
    handle = model.register_forward_pre_hook(_no_room_beyond(128), with_kwargs=True)
    rows = measure(model, held_out(tokenizer), tokenizer, lines=lines, context_lengths=(128, 256), trials=1)
    handle.remove()
    assert {row.context_length for row in rows} == {128}
    assert lines[-1].startswith("left out: retrieval: context length 256: it does not fit into memory")


def _no_room_beyond(length):
    def check(module, args, kwargs):
        if kwargs["input_ids"].shape[1] > length:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return check
