"""The real harness on tiny models: task files and data are written here, nothing is fetched."""

import json
import logging
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from e2ray.config.base import SettingsError
from e2ray.config.suites import SuiteSettings
from e2ray.evaluate import suites
from e2ray.evaluate.harness import RefusedError, ScaledLM
from e2ray.serve.generate import Generator
from e2ray.testing.models import inverse_frequencies_divided
from e2ray.testing.served import TEXT, write_served_run

CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: [" dog", " log", " porter what"]
doc_to_target: "{{{{answer}}}}"
metadata: {{version: 3.0}}
"""
WRITING = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{word}}}}"
generation_kwargs: {{until: ["qqq"], max_gen_toks: 8, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
WHOLE = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
"""
AWAY = """\
task: {name}
dataset_path: nobody/has-such-data
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: [" dog", " log"]
doc_to_target: 0
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_served_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def generator(run):
    return Generator(run, device="cpu")


@pytest.fixture(scope="module")
def plain(run):
    """The same weights in plain transformers."""
    return AutoModelForCausalLM.from_pretrained(run / "model").eval()


@pytest.fixture(autouse=True)
def _quiet():
    level = logging.getLogger("lm_eval").level
    yield
    logging.getLogger("lm_eval").setLevel(level)


@pytest.fixture
def folder(tmp_path):
    """Task files of one's own: three kinds, a group, and one whose data nobody has."""
    place = tmp_path / "tasks"
    place.mkdir()
    rows = [
        {"text": " ".join(TEXT.split()[:words]), "answer": answer, "word": "dog"}
        for words, answer in ((3, 0), (9, 1), (15, 2), (5, 0))
    ]
    rows[3]["text"] = f"{TEXT} {TEXT}"
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("own_choice", CHOICE), ("own_writing", WRITING), ("own_whole", WHOLE), ("own_away", AWAY)):
        (place / f"{name}.yaml").write_text(text.format(name=name, data=data))
    (place / "group.yaml").write_text(
        "group: own_group\ntask: [own_choice, own_away]\n"
        "aggregate_metric_list:\n  - {metric: acc, weight_by_size: true}\n"
    )
    return place


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def request(kind, *arguments, document=0):
    return Instance(kind, {}, arguments, 0, ("task", document, 1))


def asked(generator, folder, tasks, **changes):
    """Return everything that comes out of some tasks, put together, and the lines told meanwhile."""
    options = {name: changes.pop(name) for name in ("max_context_length", "too_long") if name in changes}
    settings = SuiteSettings(tasks=tuple(tasks), include_path=str(folder) if folder else None, **changes)
    selection = suites.checked(settings)
    told = []
    found = suites.Found()
    for part in suites.run(ScaledLM(generator, **options), settings, selection, progress=told.append):
        found.scores += part.scores
        found.missing += part.missing
        found.samples += part.samples
    return found, told


def samples_of(found):
    return [sample.plain() for sample in found.samples]


def naive(plain, tokens, first, scale):
    """Return log-likelihood and greediness of tokens[first:], with the frequencies divided in place."""
    with torch.no_grad(), inverse_frequencies_divided(plain, scale):
        logits = plain(torch.tensor([tokens])).logits[0, :-1].double()
    wanted = torch.tensor(tokens[1:])
    each = logits.log_softmax(-1).gather(1, wanted[:, None])[first - 1 :, 0]
    return float(each.sum()), bool((logits.argmax(-1) == wanted)[first - 1 :].all())


PAIRS = [
    ("the dog", " sat"),
    ("the dog sat on", " the log"),
    (TEXT, " porter and what"),
    (f"{TEXT} {TEXT} {TEXT}", " is"),
    ("", "the dog sat"),
    (" ".join([TEXT] * 5), " he is, and looked"),
    (" ".join([TEXT] * 10), " what he is"),
]


@pytest.mark.parametrize("batch_tokens", [1, 64, 10_000])
def test_likelihoods_equal_plain_transformers_at_the_requests_own_scale(generator, plain, batch_tokens):
    model = ScaledLM(generator, batch_tokens=batch_tokens)
    found = model.loglikelihood([request("loglikelihood", *pair, document=n) for n, pair in enumerate(PAIRS)])
    scales = set()
    for number, (context, answer) in enumerate(PAIRS):
        tokens = generator.tokenizer(context + answer)["input_ids"]
        first = len(generator.tokenizer(context)["input_ids"])
        if not context:
            tokens, first = [generator.tokenizer.eos_token_id, *tokens], 1
        placed = model.placed["task", number, context, answer]
        assert (placed.tokens, placed.scale) == (len(tokens), generator.scale_of(len(tokens)))
        scales.add(placed.scale)
        score, greedy = naive(plain, tokens, first, placed.scale)
        assert found[number][0] == pytest.approx(score, abs=2e-4)  # float32 over some hundred tokens
        assert found[number][1] is greedy
        if placed.scale > 1:  # the comparison would notice another scale
            assert abs(found[number][0] - naive(plain, tokens, first, 1.0)[0]) > 1e-2
    assert {1.0, 3.0, 5.0} <= scales and max(scales) > 5


def test_a_greedy_answer_is_told_from_others(generator, plain):
    prompt = generator.tokenizer(TEXT)["input_ids"]
    scale = generator.scale_of(len(prompt) + 1)
    with torch.no_grad(), inverse_frequencies_divided(plain, scale):
        order = plain(torch.tensor([prompt])).logits[0, -1].argsort(descending=True).tolist()
    assert [greedy for _, greedy in ScaledLM(generator)._scored([(prompt, [token]) for token in order[:3]])] == [
        True,
        False,
        False,
    ]


def test_one_prompt_with_answers_of_one_token_is_read_once(generator, plain):
    prompts = [generator.tokenizer(text)["input_ids"] for text in (TEXT, "the dog", f"{TEXT} {TEXT}")]
    rows = [(prompt, [token]) for token in (5, 70, 200) for prompt in prompts]
    calls = []
    layers = generator.model.model.layers[0].register_forward_hook(
        lambda module, arguments, output: calls.append(arguments[0].shape[0])
    )
    found = ScaledLM(generator)._scored(rows)
    layers.remove()
    assert sorted(calls) == [1, 2]  # two prompts of scale 1 in one forward, one of scale 3
    for (prompt, answer), (score, greedy) in zip(rows, found, strict=True):
        wanted = naive(plain, prompt + answer, len(prompt), generator.scale_of(len(prompt) + 1))
        assert (score, greedy) == (pytest.approx(wanted[0], abs=1e-4), wanted[1])


def test_requests_of_unlike_scale_share_no_forward_pass(generator):
    model = ScaledLM(generator, batch_tokens=10_000)
    seen = []
    layers = generator.model.model.layers[0].register_forward_hook(
        lambda module, arguments, output: seen.append((arguments[0].shape[0], float(generator.hook._scale)))
    )
    model.loglikelihood([request("loglikelihood", *pair) for pair in [*PAIRS, ("the log", " sat")]])
    layers.remove()
    rows = Counter()
    for num_rows, scale in seen:
        rows[scale] += num_rows
    assert rows == Counter(placed.scale for placed in model.placed.values())
    assert max(num_rows for num_rows, _ in seen) > 1


def test_a_whole_text_is_read_in_windows_that_predict_each_token_once(generator, plain):
    text = f"{TEXT} {TEXT} {TEXT}"
    tokens = [generator.tokenizer.eos_token_id, *generator.tokenizer(text)["input_ids"]]
    whole = ScaledLM(generator)
    one = whole.loglikelihood_rolling([request("loglikelihood_rolling", text)])
    assert one[0] == pytest.approx(naive(plain, tokens, 1, generator.scale_of(len(tokens)))[0], abs=1e-3)
    assert whole.placed["task", 0, text, ""].windows == 1

    windowed = ScaledLM(generator, max_context_length=40)
    several = windowed.loglikelihood_rolling([request("loglikelihood_rolling", text)])
    total, start = naive(plain, tokens[:40], 1, 3.0)[0], 40
    while start < len(tokens):  # the last window is as long as the others and scores what is left
        end = min(len(tokens), start + 39)
        window = tokens[end - 40 : end]
        total += naive(plain, window, 40 - (end - start), 3.0)[0]
        start = end
    assert several[0] == pytest.approx(total, abs=1e-3)
    placed = windowed.placed["task", 0, text, ""]
    assert (placed.tokens, placed.scale, placed.windows) == (40, 3.0, -(-(len(tokens) - 1) // 39))
    assert whole.loglikelihood_rolling([request("loglikelihood_rolling", "")]) == [0]


@pytest.mark.parametrize("prompt", ["the dog", TEXT, f"{TEXT} {TEXT} {TEXT}"], ids=["short", "middle", "long"])
def test_answers_are_those_of_generation_at_the_scale_of_prompt_and_room(generator, prompt):
    model = ScaledLM(generator, prefill_tokens=16)
    wanted = {"until": [], "max_gen_toks": 12, "do_sample": False}
    said = model.generate_until([request("generate_until", prompt, wanted)])
    assert said == [generator.generate(prompt, max_new_tokens=12)]
    placed = model.placed["task", 0, prompt, ""]
    length = len(generator.tokenizer(prompt)["input_ids"])
    assert (placed.tokens, placed.room, placed.scale) == (length, 12, generator.scale_of(length + 12))


def test_an_answer_ends_before_its_stop_sequence(generator):
    model = ScaledLM(generator)
    (said,) = model.generate_until([request("generate_until", TEXT, {"until": [], "max_gen_toks": 12})])
    stop = said[3:5]
    (cut,) = model.generate_until([request("generate_until", TEXT, {"until": ["", stop], "max_gen_toks": 12})])
    assert cut == said.split(stop)[0]


def test_sampled_answers_follow_from_the_seed(generator):
    how = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0, "top_p": 0.95}
    requests = [request("generate_until", TEXT, how)] * 3
    first = ScaledLM(generator, seed=1).generate_until(requests)
    assert first == ScaledLM(generator, seed=1).generate_until(requests)
    assert len(set(first)) > 1  # repeats of one request differ
    assert first != ScaledLM(generator, seed=100).generate_until(requests)


def test_an_option_that_is_not_known_is_refused_not_ignored(generator):
    with pytest.raises(RefusedError, match=r"generation_kwargs: asks for \{'penalty_alpha': 0.6\}"):
        ScaledLM(generator).generate_until([request("generate_until", TEXT, {"penalty_alpha": 0.6})])


def test_too_long_a_prompt_is_refused_before_anything_is_computed(generator):
    model = ScaledLM(generator, max_context_length=20)
    calls = []
    handle = generator.model.register_forward_hook(lambda *call: calls.append(1))
    with pytest.raises(
        RefusedError, match=r"^2 of 3 prompts are too long: up to \d+ tokens with the answer, 20 may be read"
    ):
        model.loglikelihood([request("loglikelihood", *pair) for pair in (PAIRS[0], PAIRS[3], PAIRS[5])])
    room = 21 - len(generator.tokenizer("the dog")["input_ids"])
    with pytest.raises(RefusedError, match=r"^1 of 1 prompts are too long: up to 21 tokens"):
        model.generate_until([request("generate_until", "the dog", {"max_gen_toks": room})])
    handle.remove()
    assert calls == []


def test_a_cut_prompt_keeps_its_end_and_is_noted(generator, plain):
    model = ScaledLM(generator, max_context_length=20, too_long="truncate")
    context, answer = PAIRS[3]
    found = model.loglikelihood([request("loglikelihood", context, answer), request("loglikelihood", *PAIRS[0])])
    tokens = generator.tokenizer(context + answer)["input_ids"]
    size = len(generator.tokenizer(answer)["input_ids"])
    assert found[0][0] == pytest.approx(naive(plain, tokens[-20:], 20 - size, 1.0)[0], abs=1e-4)
    placed = model.placed["task", 0, context, answer]
    assert (placed.tokens, placed.cut, placed.scale) == (20, len(tokens) - 20, 1.0)
    assert model.placed["task", 0, *PAIRS[0]].cut == 0
    with pytest.raises(RefusedError, match="answers of up to 20 tokens leave no room for a prompt, 20 may be read"):
        model.generate_until([request("generate_until", TEXT, {"max_gen_toks": 20})])


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory):
    """A run whose tokenizer puts two specials before a text, none of them a BOS, and its end-of-text token behind."""
    folder = tmp_path_factory.mktemp("prefixed")
    return Generator(write_served_run(folder, template="[gMASK] <sop> $A <|endoftext|>"), device="cpu")


@pytest.fixture(scope="module")
def prefixed_plain(prefixed):
    return AutoModelForCausalLM.from_pretrained(prefixed.tokenizer.name_or_path).eval()


def beginning(reader):
    """Return what stands before a text that has no context."""
    names = ["[gMASK]", "<sop>"] if "<sop>" in reader.tokenizer.get_vocab() else ["<|endoftext|>"]
    return reader.tokenizer.convert_tokens_to_ids(names)


@pytest.fixture(params=["plain", "prefixed"])
def either(request):
    """A reader with and without a prefix, and the same weights in plain transformers."""
    names = {"plain": ("generator", "plain"), "prefixed": ("prefixed", "prefixed_plain")}[request.param]
    return tuple(request.getfixturevalue(name) for name in names)


def test_a_prompt_begins_with_the_whole_prefix_once_and_never_ends(prefixed, prefixed_plain):
    model, front = ScaledLM(prefixed), beginning(prefixed)
    bare = prefixed.tokenizer.encode(f"{TEXT} porter and what", add_special_tokens=False)
    start = len(prefixed.tokenizer.encode(TEXT, add_special_tokens=False))
    assert model.tok_encode(TEXT) == [*front, *bare[:start]] == model.tok_encode(f"[gMASK]<sop>{TEXT}")
    wanted = naive(prefixed_plain, [*front, *bare], 2 + start, prefixed.scale_of(2 + len(bare)))
    for context in (TEXT, f"[gMASK]<sop>{TEXT}"):
        ((score, greedy),) = model.loglikelihood([request("loglikelihood", context, " porter and what")])
        assert (score, greedy) == (pytest.approx(wanted[0], abs=2e-4), wanted[1])
    (said,) = model.generate_until([request("generate_until", TEXT, {"until": [], "max_gen_toks": 9})])
    assert said == prefixed.generate(TEXT, max_new_tokens=9)


@pytest.mark.parametrize("context", ["", " ", "\n\n"])
def test_without_context_an_answer_stands_behind_the_prefix_or_the_end_token(either, context):
    reader, plain = either
    front = beginning(reader)
    text = f"{context}the dog sat"
    tokens = [*front, *reader.tokenizer.encode(text, add_special_tokens=False)]
    ((score, greedy),) = ScaledLM(reader).loglikelihood([request("loglikelihood", context, "the dog sat")])
    wanted = naive(plain, tokens, len(front), reader.scale_of(len(tokens)))
    assert (score, greedy) == (pytest.approx(wanted[0], abs=2e-4), wanted[1])


def test_an_empty_prompt_is_written_on_from_the_prefix_or_the_end_token(either):
    reader, plain = either
    model, front = ScaledLM(reader), beginning(reader)
    (said,) = model.generate_until([request("generate_until", "", {"until": [], "max_gen_toks": 7})])
    placed = model.placed["task", 0, "", ""]
    assert (placed.tokens, placed.scale) == (len(front), reader.scale_of(len(front) + 7))
    tokens = torch.tensor([front])
    with torch.no_grad(), inverse_frequencies_divided(plain, placed.scale):
        for _ in range(7):
            tokens = torch.cat([tokens, plain(tokens).logits[:, -1:].argmax(-1)], dim=1)
    assert said == reader.tokenizer.decode(tokens[0, len(front) :], skip_special_tokens=True)
    assert said == reader.generate("", max_new_tokens=7)


@pytest.mark.parametrize("longest", [None, 40, 4])
def test_a_whole_text_stands_behind_the_prefix_of_which_nothing_is_predicted(prefixed, prefixed_plain, longest):
    front = beginning(prefixed)
    tokens = [*front, *prefixed.tokenizer.encode(TEXT * 3, add_special_tokens=False)]
    model = ScaledLM(prefixed, max_context_length=longest)
    texts = (TEXT * 3, f"[gMASK]<sop>{TEXT * 3}")
    found = [model.loglikelihood_rolling([request("loglikelihood_rolling", text)]) for text in texts]
    total, done, end = 0.0, len(front), min(len(tokens), longest or len(tokens))
    while done < len(tokens):
        window = tokens[max(0, end - (longest or end)) : end]
        total += naive(prefixed_plain, window, len(window) - (end - done), prefixed.scale_of(len(window)))[0]
        done, end = end, min(len(tokens), end + (longest or 0) - 1)
    assert found == [[pytest.approx(total, abs=2e-3)]] * 2
    assert model.loglikelihood_rolling([request("loglikelihood_rolling", "")]) == [0]


def test_a_prefix_that_fills_the_longest_context_is_refused(prefixed):
    model = ScaledLM(prefixed, max_context_length=2, too_long="truncate")
    with pytest.raises(
        RefusedError, match="the tokenizer puts 2 tokens before a text, 2 may be read; raise max_context"
    ):
        model.loglikelihood_rolling([request("loglikelihood_rolling", TEXT)])
    with pytest.raises(RefusedError, match="leave no room for a prompt, 2 may be read"):
        model.generate_until([request("generate_until", TEXT, {"max_gen_toks": 1})])


def test_a_cut_prompt_keeps_the_whole_prefix(prefixed):
    model, front = ScaledLM(prefixed, max_context_length=20, too_long="truncate"), beginning(prefixed)
    whole = model.tok_encode(TEXT)
    assert model._fitted([(whole, 4)]) == [([*front, *whole[-14:]], len(whole) + 4 - 20)]


GREEDY = [
    {"do_sample": True, "temperature": 0},
    {"do_sample": True, "temperature": "0", "top_k": 5, "top_p": 0.9},
    {"do_sample": "true", "temperature": 0.0, "min_p": 0.1},
    {"do_sample": True, "temperature": 1e-30, "typical_p": 0.9},
    {"temperature": "1e-8", "top_k": 0},
    {"do_sample": False, "temperature": 0.7, "top_p": 0.9},
    {"do_sample": None, "temperature": None, "top_k": None},
    {"top_p": 0.9},
]


@pytest.mark.parametrize("how", GREEDY, ids=str)
def test_temperature_0_is_greedy_in_any_spelling_and_without_a_warning(generator, how, caplog, monkeypatch):
    for logger in ("transformers", "lm_eval"):
        monkeypatch.setattr(logging.getLogger(logger), "propagate", True)
    wanted = generator.generate(TEXT, max_new_tokens=8)
    (said,) = ScaledLM(generator).generate_until([request("generate_until", TEXT, {"max_gen_toks": 8, **how})])
    assert said == wanted
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    "how", [{"do_sample": True}, {"do_sample": 1, "temperature": "2"}, {"temperature": 3}], ids=str
)
def test_what_asks_for_drawn_tokens_gets_them(generator, how):
    asked = [request("generate_until", TEXT, {"max_gen_toks": 8, **how})] * 4
    assert len(set(ScaledLM(generator).generate_until(asked))) > 1


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": "maybe"},
        {"temperature": -1},
        {"temperature": "hot"},
        {"do_sample": True, "temperature": float("nan")},
    ],
    ids=str,
)
def test_a_temperature_that_is_none_is_refused(generator, how):
    with pytest.raises(
        RefusedError, match=r"^generation_kwargs: .*, wanted true or false and a temperature of at least 0$"
    ):
        ScaledLM(generator).generate_until([request("generate_until", TEXT, how)])


def test_the_begin_token_stays_when_a_prompt_is_cut_and_is_put_once(generator, run):
    import copy

    from tokenizers import processors

    tokenizer = copy.deepcopy(generator.tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )

    class Reader:
        model, hook, device = generator.model, generator.hook, generator.device
        scale_of = staticmethod(generator.scale_of)

    Reader.tokenizer = tokenizer
    model = ScaledLM(Reader(), max_context_length=20, too_long="truncate")
    assert model.tok_encode("the dog")[0] == begin != model.tok_encode("the dog", add_special_tokens=False)[0]
    assert model.tok_encode("<s>the dog") == model.tok_encode("the dog")
    (prompt, cut) = model._fitted([(model.tok_encode(TEXT), 4)])[0]
    whole = model.tok_encode(TEXT)
    assert prompt == [begin, *whole[-15:]]
    assert cut == len(whole) + 4 - 20


def test_a_model_that_gives_nan_is_named(run):
    broken = Generator(run, device="cpu")
    with torch.no_grad():
        broken.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(SettingsError, match="the model gives NaN, wanted finite numbers"):
        ScaledLM(broken).loglikelihood([request("loglikelihood", *PAIRS[0])])


def test_scores_come_with_prompts_lengths_scales_seeds_and_versions(generator, plain, folder):
    found, told = asked(generator, folder, ["own_choice", "own_writing", "own_whole"], seed=7)
    assert found.missing == []
    assert {(row.task, row.metric) for row in found.scores} == {
        ("own_choice", "acc"),
        ("own_choice", "acc_norm"),
        ("own_writing", "exact_match"),
        ("own_whole", "word_perplexity"),
    }
    (row,) = [row for row in found.scores if row.metric == "acc"]
    assert (row.version, row.seed, row.num_fewshot, row.documents, row.requests) == (3.0, 7, 0, 4, 12)
    assert (row.truncated, row.limit, row.higher_is_better, row.scale_min) == (0, None, True, 1.0)

    samples = [sample for sample in samples_of(found) if sample["task"] == "own_choice"]
    right = 0
    for sample in samples:
        (prompt,) = sample["prompts"]
        scores = []
        for each in sample["requests"]:
            tokens = generator.tokenizer(prompt + each["asked"])["input_ids"]
            first = len(generator.tokenizer(prompt)["input_ids"])
            assert (each["tokens"], each["scale"]) == (len(tokens), generator.scale_of(len(tokens)))
            scores.append(naive(plain, tokens, first, each["scale"])[0])
            assert each["answers"][0][0] == pytest.approx(scores[-1], abs=2e-4)
        right += scores.index(max(scores)) == sample["target"]
        assert sample["scores"]["none"]["acc"] == (scores.index(max(scores)) == sample["target"])
    assert row.value == right / 4
    assert row.tokens_max == max(each["tokens"] for sample in samples for each in sample["requests"])
    assert row.scale_max == generator.scale_of(row.tokens_max) == 3.0
    assert told[0].startswith(f"own_choice: acc {right / 4:.4f}") and "scale 1 to 3" in told[0]
    json.dumps(samples_of(found), allow_nan=False)
    json.dumps([score.plain() for score in found.scores], allow_nan=False)
    assert set(suites.versions()) == {"lm_eval", "datasets"}


def test_a_document_counts_once_whatever_the_number_of_filters(generator, folder):
    filters = """\
filter_list:
  - {name: first, filter: [{function: take_first}]}
  - name: word
    filter: [{function: regex, regex_pattern: "(dog)", fallback: dog}, {function: take_first}]
"""
    text = (folder / "own_writing.yaml").read_text().replace("own_writing", "own_filters")
    (folder / "own_filters.yaml").write_text(text + filters)
    found, _ = asked(generator, folder, ["own_filters"])
    assert {(row.filter, row.value, row.documents, row.requests) for row in found.scores} == {
        ("first", 0.0, 4, 4),
        ("word", 1.0, 4, 4),
    }
    assert [sample["document"] for sample in samples_of(found)] == [0, 1, 2, 3]
    assert samples_of(found)[0]["scores"] == {"first": {"exact_match": 0.0}, "word": {"exact_match": 1.0}}


def test_the_harness_takes_the_model_as_its_own(generator, folder):
    from lm_eval.tasks import TaskManager

    found, _ = asked(generator, folder, ["own_choice"])
    whole = simple_evaluate(
        ScaledLM(generator),
        tasks=["own_choice"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    assert whole["results"]["own_choice"]["acc,none"] == found.scores[0].value


def test_a_limit_takes_the_first_documents(generator, folder):
    found, _ = asked(generator, folder, ["own_choice"], limit=2)
    assert sorted(sample["document"] for sample in samples_of(found)) == [0, 1]
    assert {row.documents for row in found.scores} == {2}


def test_truncated_prompts_are_counted_beside_the_score(generator, folder):
    found, told = asked(generator, folder, ["own_choice"], max_context_length=30, too_long="truncate")
    (sample,) = [sample for sample in samples_of(found) if sample["truncated"]]
    assert sample["document"] == 3
    assert sample["prompts"] == [f"{TEXT} {TEXT}"]  # as it was written, not as it was read
    assert {each["tokens"] for each in sample["requests"]} == {30}
    assert {(row.truncated, row.tokens_max) for row in found.scores} == {(3, 30)}
    assert all("3 truncated" in line for line in told)


def test_too_long_a_task_is_missing_and_the_others_come_out(generator, folder):
    found, told = asked(generator, folder, ["own_choice", "own_whole"], max_context_length=30)
    assert [row.task for row in found.scores] == ["own_whole"]
    assert [each.task for each in found.missing] == ["own_choice"]
    assert told[0].startswith("own_choice: no score: 3 of 12 prompts are too long")


def test_data_that_has_to_be_fetched_is_one_line_and_never_a_score(generator, folder):
    found, told = asked(generator, folder, ["own_away", "own_choice"])
    assert {row.task for row in found.scores} == {"own_choice"}
    assert [each.task for each in found.missing] == ["own_away"]
    assert told[0].startswith("own_away: no score: its data has to be fetched and the network does not give it (")
    assert "nobody/has-such-data" in told[0] and "\n" not in told[0]


def test_a_broken_task_is_one_line(generator, folder):
    (folder / "own_broken.yaml").write_text(
        (folder / "own_choice.yaml").read_text().replace("own_choice", "own_broken").replace("{{text}}", "{{1 / 0}}")
    )
    found, _ = asked(generator, folder, ["own_broken", "own_choice"])
    assert [each.reason for each in found.missing] == ["ZeroDivisionError: division by zero"]
    assert {row.task for row in found.scores} == {"own_choice"}


def test_code_of_the_models_is_run_only_where_the_recipe_says_so(generator, folder):
    text = (folder / "own_choice.yaml").read_text().replace("own_choice", "own_code")
    (folder / "own_code.yaml").write_text(f"{text}unsafe_code: true\n")
    found, _ = asked(generator, folder, ["own_code"])
    assert found.scores == [] and "set evaluate.suites.unsafe_code: true" in found.missing[0].reason
    found, _ = asked(generator, folder, ["own_code"], unsafe_code=True)
    assert found.missing == [] and found.scores


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConnectionError("Couldn't reach 'x'"), "its data has to be fetched and the network does not give it (Coul"),
        (ImportError("No module named 'wonderwords'"), "needs a package (No module named 'wonderwords')"),
        (KeyError("a\nb"), "KeyError: 'a\\nb'"),
        (MemoryError(), "it does not fit into memory; lower evaluate.batch_tokens"),
        (RefusedError("too long"), "too long"),
    ],
)
def test_reasons_are_one_line(error, line):
    assert suites.reason(error).startswith(line)


def test_a_network_error_is_seen_behind_another():
    error = ValueError("no data")
    error.__cause__ = TimeoutError()
    error.__cause__.__context__ = ConnectionResetError("gone")
    assert suites.reason(error).startswith("its data has to be fetched")


def test_without_the_harness_one_line_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        SettingsError, match=r"^evaluate\.suites: needs the package lm_eval; pip install 'e2ray\[eval\]'$"
    ):
        suites.checked(SuiteSettings(tasks=("piqa",)))


@pytest.fixture(scope="module")
def everything():
    """The index of some of the harness's own folders of tasks, read once: that of all takes ten seconds."""
    import lm_eval.tasks

    real, own = lm_eval.tasks.TaskManager, Path(lm_eval.tasks.__file__).parent
    some = [str(own / name) for name in ("ruler", "hellaswag", "mmlu", "longbench", "piqa", "arc", "leaderboard")]
    with pytest.MonkeyPatch.context() as patch:
        only = {"include_defaults": False, "include_path": some}
        patch.setattr(lm_eval.tasks, "TaskManager", lambda **given: real(**given | only))
        return suites.checked(SuiteSettings(tasks=("ruler", "hellaswag", "mmlu", "longbench", "piqa")))


def test_the_harness_knows_the_tasks_that_the_settings_name_as_examples(everything):
    assert {"ruler", "hellaswag", "mmlu", "longbench", "piqa"} <= set(everything.manager.all_tasks)
    assert everything.missing == [] and everything.names[:3] == ["ruler", "hellaswag", "mmlu"]
    assert suites._children("ruler", everything.manager)[:2] == ["niah_single_1", "niah_single_2"]


def test_of_a_group_without_its_data_only_the_group_is_missing(generator, everything):
    settings = SuiteSettings(tasks=("arc_easy", "leaderboard_math_hard"))
    tasks = suites.Selection(everything.manager, list(settings.tasks), [])
    parts = list(suites.run(ScaledLM(generator), settings, tasks))
    assert [len(part.missing) for part in parts] == [1, 1]
    assert all(not part.scores for part in parts)


def test_unknown_names_bring_near_ones(monkeypatch, everything):
    import lm_eval.tasks

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **options: everything.manager)
    for wrong, near in (
        ("hellaswga", "hellaswag"),
        ("leval:corsera", "leval:coursera"),
        ("longproc:tom_2k", "longproc:tom"),
    ):
        with pytest.raises(
            SettingsError, match=rf"^evaluate\.suites\.tasks: '{wrong}' is no task, wanted one .*{near}"
        ):
            suites.checked(SuiteSettings(tasks=(wrong,), leval="/", longproc="/"))
    with pytest.raises(
        SettingsError, match="'0123456789' is no task, and none has a name like it; 'hellaswga' is no task, wanted"
    ):
        suites.checked(SuiteSettings(tasks=("0123456789", "hellaswga")))


def test_an_unknown_name_is_missing_and_the_others_come_out(generator, folder, tmp_path, own_tasks_only):
    names = ["own_chioce", "own_choice", "leval:quality", "leval:all"]
    found, told = asked(generator, folder, names, leval=str(tmp_path))
    assert {row.task for row in found.scores} == {"own_choice"}
    reasons = {each.task: each.reason for each in found.missing}
    wanted = "wanted quality.jsonl of L-Eval's Closed-ended-tasks"
    assert reasons == {
        "own_chioce": "is no task, wanted one such as own_choice, own_whole",
        "leval:quality": f"is not there: {tmp_path} holds no quality; {wanted}",
        "leval:all": f"is not there: {tmp_path} holds no file of any of its tasks",
    }
    assert told[0] == "own_chioce: no score: is no task, wanted one such as own_choice, own_whole"
    assert [line.partition(":")[0] for line in told[3:]] == ["own_choice", "own_choice"]


def test_of_a_group_with_one_task_missing_the_others_come_out(generator, folder, own_tasks_only):
    found, _ = asked(generator, folder, ["own_group"])
    assert {row.task for row in found.scores} == {"own_choice"}
    assert [each.task for each in found.missing] == ["own_group", "own_away"]
    (folder / "group.yaml").write_text(
        "group: own_group\ntask: [own_choice]\naggregate_metric_list:\n  - {metric: acc, weight_by_size: true}\n"
    )
    found, _ = asked(generator, folder, ["own_group"])
    whole = {(row.task, row.metric): row for row in found.scores}
    assert whole["own_group", "acc"].value == whole["own_choice", "acc"].value
    assert (whole["own_group", "acc"].tasks, whole["own_group", "acc"].documents) == (("own_choice",), 4)


@pytest.mark.parametrize("key", ["include_path", "leval", "longproc"])
def test_a_folder_that_is_not_there_is_named_before_anything_is_loaded(key):
    with pytest.raises(SettingsError, match=rf"^evaluate\.suites\.{key}: /gone: no such folder$"):
        suites.checked(SuiteSettings(tasks=("piqa",), **{key: "/gone"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "at least 1 item"),
        ({"tasks": ("piqa", "piqa")}, "must name each once"),
        ({"tasks": ("leval:coursera",)}, "leval: is null, leval:coursera reads its files; name their folder"),
        ({"context_lengths": (8192, 4096)}, "must be increasing"),
        ({"limit": 0}, "greater than or equal to 1"),
        ({"num_fewshots": 1}, "Extra inputs are not permitted"),
        ({"too_long": "skip"}, "'refuse' or 'truncate'"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValidationError, match=message):
        SuiteSettings(**({"tasks": ("piqa",)} | changes))


@pytest.mark.parametrize(
    ("longest", "lengths"), [(2048, ()), (4096, (4096,)), (20_000, (4096, 8192, 16_384)), (10**7, None)]
)
def test_prompts_are_written_up_to_the_longest_context_length(longest, lengths):
    found = SuiteSettings(tasks=("ruler",)).written_lengths(longest)
    assert found == (lengths if lengths is not None else tuple(4096 * 2**power for power in range(6)))
    assert SuiteSettings(tasks=("ruler",), context_lengths=[512]).written_lengths(longest) == (512,)


def test_local_files_are_asked_like_any_task(generator, tmp_path):
    line = {
        "input": "the dog sat",
        "instructions": ["Who sat?\nA. dog\nB. log"],
        "outputs": ["A"],
        "evaluation": "exam",
    }
    (tmp_path / "quality.jsonl").write_text(json.dumps(line | {"source": "made up"}) + "\n")
    found, _ = asked(generator, None, ["leval:all"], leval=str(tmp_path))
    assert found.missing == []
    assert {(row.task, row.metric, row.value) for row in found.scores if "rate" not in row.metric} == {
        ("leval:quality", "exact_match", 0.0),
    }
    (exam,) = samples_of(found)
    assert exam["prompts"][0].startswith("the dog sat\n\nWho sat?\nA. dog\nB. log\n")
    assert (exam["target"], exam["requests"][0]["room"]) == ("A", 16)


COUNTED = """Here it is:
# Search Procedure
Initial number set: [1, 2, 3, 4], target: 10.
<Solution>
2 + 1 = 3
3 + 3 = 6
6 + 4 = 10
</Solution>"""


def write_data_set(folder, *names):
    """Write what a copy of LongProc's data set looks like: a card that names the files of each task, and the files."""
    card = "".join(
        f"- config_name: {name}\n  data_files:\n  - {{split: test, path: {name}/test.jsonl}}\n" for name in names
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    for name in names:
        (folder / name).mkdir()
        row = {
            "input_prompt": "the dog sat",
            "reference_output": COUNTED,
            "metadata": json.dumps({"nums": [1, 2, 3, 4], "target": 10}),
        }
        (folder / name / "test.jsonl").write_text(json.dumps(row) + "\n")


def test_a_copy_of_longprocs_data_set_is_asked_by_the_harness(generator, tmp_path):
    write_data_set(tmp_path, "countdown_0.5k")
    found, _ = asked(generator, None, ["longproc:all"], longproc=str(tmp_path), unsafe_code=True)
    assert found.missing == []
    assert {(row.task, row.metric) for row in found.scores} == {
        ("longproc:countdown_0.5k", name) for name in ("accuracy", "extraction_rate", "partial_accuracy", "score")
    }
    (sample,) = samples_of(found)
    assert (sample["prompts"], sample["target"]) == (["the dog sat"], COUNTED)
    assert sample["requests"][0]["room"] == 1024
    assert sample["requests"][0]["scale"] == generator.scale_of(sample["requests"][0]["tokens"] + 1024)
    assert {row.metric: row.value for row in found.scores}["accuracy"] == 0


def test_what_runs_code_of_the_models_says_so(generator, tmp_path):
    write_data_set(tmp_path, "countdown_0.5k")
    found, _ = asked(generator, None, ["longproc:countdown_0.5k"], longproc=str(tmp_path))
    assert [(each.task, "unsafe_code: true" in each.reason) for each in found.missing] == [
        ("longproc:countdown_0.5k", True)
    ]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("leval:quality", "quality.jsonl of L-Eval's Closed-ended-tasks"),
        ("longproc:tom_tracking_2k", "a copy of the data set PrincetonPli/LongProc; a checkout"),
        ("longproc:countdown_2k", "a copy of the data set PrincetonPli/LongProc; a checkout"),
    ],
)
def test_a_task_that_a_folder_does_not_hold_is_named_before_anything_is_loaded(tmp_path, name, wanted):
    (tmp_path / "countdown").mkdir()
    with pytest.raises(SettingsError, match=rf"holds no {name.split(':')[1]}; wanted {wanted}"):
        suites.checked(SuiteSettings(tasks=(name,), leval=str(tmp_path), longproc=str(tmp_path)))
