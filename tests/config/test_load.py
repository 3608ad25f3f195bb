"""Recipes and `--set`: what strict YAML reads, what it refuses, and that every refusal is one line."""

import json
import math
import os
import pickle
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from e2ray.config.base import SettingsError
from e2ray.config.load import (
    MAX_DEPTH,
    MAX_RECIPE_BYTES,
    apply_override,
    dump,
    load,
    parse_yaml,
    read_recipe,
    schema,
    validate,
)
from e2ray.config.methods import PRESETS
from e2ray.config.run import FREE_ON_RESUME, RunConfig, differences

RECIPES = sorted((Path(__file__).parents[2] / "jobs" / "recipes").glob("*.yaml"))
SMALL = {
    "name": "small",
    "model": {"kind": "llama", "base_context_length": 64},
    "data": {"corpus": [{"kind": "python_stdlib"}], "tokenizer": {"kind": "byte_level_bpe"}, "window": 64},
    "positions": {"preset": "e2llm", "max_scale": 4},
    "train": {"steps": 10, "batch_sequences": 4},
}
SCHEMA = jsonschema.Draft202012Validator(schema())


def small(**sections):
    """Return a plain recipe with sections replaced."""
    return json.loads(json.dumps(SMALL)) | sections


def changed(*assignments):
    """Return the settings of the small recipe with `--set` values applied."""
    recipe = small()
    for assignment in assignments:
        apply_override(recipe, assignment)
    return validate(recipe, source="recipe.yaml")


def refusal(call, *arguments, **named):
    """Return the message of the SettingsError a call raises, which has to be one line."""
    with pytest.raises(SettingsError, match=r"\A[^\n\r]+\Z") as caught:
        call(*arguments, **named)
    return str(caught.value)


@pytest.fixture
def recipe(tmp_path):
    """Return a function that writes a recipe file and returns its path."""

    def write(content):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# ---- what YAML means --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("1.5e+3", 1500.0),
        (".5", 0.5),
        ("-3.", -3.0),
        ("010", 10),
        ("1_000_000", 1_000_000),
        ("+7", 7),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("0x1F", "0x1F"),
        ("0o17", "0o17"),
        ("12:30:45", "12:30:45"),
        ("2026-01-01", "2026-01-01"),
        ("1e", "1e"),
        ("'1e-5'", "1e-5"),
        ('"true"', "true"),
        ("[1, no, {a: 1e3}]", [1, "no", {"a": 1000.0}]),
        ("{1: a, true: b, null: c}", {"1": "a", "true": "b", "null": "c"}),
        ("a:\n  b: 1\n", {"a": {"b": 1}}),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_plain_values_are_read_as_yaml_1_2_reads_them(text, value):
    found = parse_yaml(text, source="x")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "x line 4, column 3: key 'c' stands twice"),
        ("{a: 1, 'a': 2}", "x line 1, column 8: key 'a' stands twice"),
        ("a: !!python/object/apply:os.getcwd []", "x line 1, column 4: tags are refused, got tag:yaml.org,2002:python"),
        ("a: !custom 1", "tags are refused, got !custom"),
        ("a: !!str 1", "tags are refused"),
        ("? !!str a\n: 1", "tags are refused"),
        ("a: &big [1]\nb: *big", "x line 1, column 4: anchors and aliases are refused"),
        ("a: *nowhere", "anchors and aliases are refused"),
        ("<<: {a: 1}\nb: *x", "anchors and aliases are refused"),
        ("? [1, 2]\n: a", "keys must be plain text"),
        ("? {a: 1}\n: a", "keys must be plain text"),
        ("lr: .nan", "x: lr: got nan, wanted a finite number"),
        ("a: {b: [1, -.INF]}", "x: a.b.1: got -inf, wanted a finite number"),
        ("1e999", "x: value: got inf, wanted a finite number"),
        ("9" * 5000, "x: not YAML: Exceeds the limit"),
        ("a: 1\n---\nb: 2", "x line 2, column 1: expected a single document in the stream: but found another document"),
        ("a: [1, 2", "x line 1, column 9: while parsing a flow sequence: expected ',' or ']'"),
        ("a: b: c", "x line 1, column 5: mapping values are not allowed here"),
        ("\tb: 1", "found character '\\t' that cannot start any token"),
        ("a: \x00", "x: not YAML: unacceptable character #x0000"),
        ("%YAML 3.0\n---\na: 1", "found incompatible YAML document"),
    ],
)
def test_what_a_recipe_never_needs_is_refused_with_its_place(text, message):
    assert message in refusal(parse_yaml, text, source="x")


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}"), ("- ", "")])
def test_deep_nesting_is_refused_before_it_costs_anything(opening, closing):
    assert parse_yaml(opening * (MAX_DEPTH - 1) + "1" + closing * (MAX_DEPTH - 1), source="x") is not None
    for depth in (MAX_DEPTH, 100_000):
        message = refusal(parse_yaml, opening * depth + "1" + closing * depth, source="x")
        assert f"deeper than {MAX_DEPTH} levels" in message


def test_an_alias_bomb_is_refused_at_its_first_anchor():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert "x line 1, column 5: anchors and aliases are refused" in refusal(parse_yaml, "\n".join(lines), source="x")


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60) | st.text("[]{}:,-?&*!|>'\"%@` \n\tax1.#~", max_size=30))
def test_any_text_is_a_value_or_one_line(text):
    try:
        parse_yaml(text, source="x")
        message = "x: fine"
    except SettingsError as error:
        message = str(error)
    assert message.startswith("x")
    assert len(message.splitlines()) == 1


# ---- recipe files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; wanted a mapping of settings"),
        ("# nothing but a comment\n", "is empty; wanted a mapping of settings"),
        ("- a\n- b\n", "got a list, wanted a mapping of settings"),
        ("train", "got a str, wanted a mapping of settings"),
        (b"\x7fELF\x02\x01\x01\x00\xff\xfe", "is not UTF-8 text: invalid start byte at byte 8"),
        (bytes(range(32)) * 10, "not YAML: unacceptable character"),
        (b"a: 1\n" + b"#" * MAX_RECIPE_BYTES, f"larger than {MAX_RECIPE_BYTES} bytes"),
    ],
)
def test_a_file_that_is_no_recipe_is_named_in_one_line(recipe, content, message):
    path = recipe(content)
    found = refusal(read_recipe, path)
    assert found.startswith(str(path))
    assert message in found


def test_a_path_that_is_no_file_is_named_in_one_line(tmp_path):
    assert refusal(read_recipe, tmp_path / "gone.yaml").endswith(
        "gone.yaml: no such recipe; jobs/recipes/ holds some to start from"
    )
    assert refusal(read_recipe, tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    assert "no such recipe" in refusal(read_recipe, tmp_path / "two\nlines")
    assert "cannot be read" in refusal(read_recipe, "~nobody-of-that-name/recipe.yaml")
    assert f"larger than {MAX_RECIPE_BYTES} bytes" in refusal(read_recipe, "/dev/zero")


def test_a_recipe_may_come_through_a_pipe():
    reader, writer = os.pipe()
    os.write(writer, yaml.safe_dump(SMALL).encode())
    os.close(writer)
    try:
        assert load(f"/dev/fd/{reader}").name == "small"
    finally:
        os.close(reader)


def test_errors_of_a_recipe_survive_pickling():
    error = SettingsError("two\nlines")
    assert str(error) == "two lines"
    assert str(pickle.loads(pickle.dumps(error))) == "two lines"


# ---- --set ------------------------------------------------------------------------------------------------------


def test_overrides_replace_values_in_order(recipe):
    path = recipe(yaml.safe_dump(SMALL))
    config = load(path, ["train.lr=1e-4", "name=first", "name=second", "data.corpus.0={kind: text, paths: [a, b]}"])
    assert (config.train.lr, config.name, config.data.corpus[0].paths) == (1e-4, "second", ("a", "b"))
    assert load(path).name == "small"


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("a.b.c=1", "a", {"b": {"c": 1}}),
        ("list.1=x", "list", [1, "x"]),
        ("nested.0.a=[1, {b: 2}]", "nested", [{"a": [1, {"b": 2}]}]),
        ("empty.a=1", "empty", {"a": 1}),
        ("text=a=b=c", "text", "a=b=c"),
        ("text=", "text", None),
        ("text=''", "text", ""),
        ("text=no", "text", "no"),
        ("text=1e-5", "text", 1e-5),
    ],
)
def test_an_override_reaches_its_place(assignment, key, value):
    recipe = {"list": [1, 2], "nested": [{"a": 0}], "empty": None, "text": "old"}
    apply_override(recipe, assignment)
    assert recipe[key] == value


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.lr", "--set train.lr: wanted key.path=value, e.g. --set train.lr=1e-4"),
        ("=1", "wanted key.path=value"),
        ("", "wanted key.path=value"),
        ("a..b=1", "wanted key.path=value"),
        (".a=1", "wanted key.path=value"),
        ("a.=1", "wanted key.path=value"),
        (".".join("a" * (MAX_DEPTH + 1)) + "=1", "wanted key.path=value"),
        ("a\nb", "--set a b: wanted key.path=value"),
        ("text.a=1", "--set text.a=1: text is 'old', not a section"),
        ("text.a.b=1", "--set text.a.b=1: text is 'old', not a section"),
        ("list.0.a=1", "list.0 is 1, not a section"),
        ("list.2=1", "--set list.2=1: list has entries 0 to 1, got '2'"),
        ("list.-1=1", "list has entries 0 to 1, got '-1'"),
        ("list.²=1", "list has entries 0 to 1, got '²'"),
        ("list." + "9" * 5000 + "=1", "list has entries 0 to 1, got '999"),
        ("list.x.y=1", "list has entries 0 to 1, got 'x'"),
        ("none.0=1", "none is an empty list, got '0'"),
        ("a=[1", "--set a line 1, column 3: while parsing a flow sequence: expected ',' or ']'"),
        ("a=.inf", "--set a: value: got inf, wanted a finite number"),
        ("a=!!int 3", "tags are refused"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(assignment, message):
    recipe = {"list": [1, 2], "none": [], "text": "old"}
    assert message in refusal(apply_override, recipe, assignment)
    assert recipe["text"] == "old"


# ---- errors of settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.stepz=3", "train.stepz: unknown setting (value 3); `e2ray schema` lists the known ones"),
        ("data.corpus.0.paths=[a]", "data.corpus.0.paths: unknown setting (value ['a'])"),
        ("positions.placement={kind: none, jump: {kind: uniform}}", "positions.placement.jump: unknown setting"),
        ("train={lr: 1e-4}", "train.steps: is missing; the recipe must set it"),
        ("train=", "train: got None, wanted a section"),
        ("data=3", "data: got 3, wanted a section"),
        ("data.corpus.0=a", "data.corpus.0: got 'a', wanted a section"),
        ("train.steps=0", "train.steps: got 0, wanted at least 1"),
        ("train.steps=1.5", "train.steps: got 1.5, wanted a whole number"),
        ("train.steps='10'", "train.steps: got '10', wanted a whole number"),
        ("train.steps=true", "train.steps: got True, wanted a whole number"),
        ("train.zero_stage=true", "train.zero_stage: got True, wanted a whole number"),
        ("train.zero_stage=4", "train.zero_stage: got 4, wanted at most 3"),
        ("train.lr=fast", "train.lr: got 'fast', wanted a number"),
        ("train.lr=0", "train.lr: got 0, wanted more than 0"),
        ("train.lr=" + "9" * 400, "wanted a number"),
        ("train.schedule=poly", "train.schedule: got 'poly', wanted 'constant', 'linear' or 'cosine'"),
        ("train.betas=[0.1, 0.2, 0.3]", "train.betas: got [0.1, 0.2, 0.3], wanted at most 2 items"),
        ("train.betas=[0.5]", "train.betas.1: is missing"),
        ("name=", "name: got None, wanted text"),
        ("name=" + "a" * 101, "wanted at most 100 characters"),
        (
            "name=../up",
            "name: must be letters, digits, '.', '_' and '-', and none of shards, bases, tokenizers, prompts, got ",
        ),
        ("name=prompts", "tokenizers, prompts, got 'prompts'"),
        ("storage=s3://bucket/x", "storage: must be a folder of a shared file system, not a URI, got 's3://bucket/x'"),
        ("storage=runs", "storage: must be absolute, since jobs run in a copy of the working folder, got 'runs'"),
        ("seed=4294967296", "seed: got 4294967296, wanted less than 4294967296"),
        ("evaluate.windows=128", "evaluate.windows: got 128, wanted a list"),
        ("evaluate.windows=['128']", "evaluate.windows.0: got '128', wanted a whole number"),
        ("evaluate.windows=[]", "evaluate.windows: got [], wanted at least 1 item"),
        ("evaluate.windows=[256, 128]", "evaluate.windows: must be increasing and at least 1, got [256, 128]"),
        ("data.corpus=[]", "data.corpus: got [], wanted at least 1 item"),
        ("data.corpus=[{kind: text, paths: {a: 1}}]", "data.corpus.0.paths: got {'a': 1}, wanted a list"),
        ("data.validation_share=1", "data.validation_share: got 1, wanted less than 1"),
        ("cluster.use_gpu=3", "cluster.use_gpu: got 3, wanted 'auto' or true or false"),
        ("cluster.use_gpu='yes'", "cluster.use_gpu: got 'yes', wanted 'auto' or true or false"),
        ("model.kind=gpt", "model: kind is 'gpt', wanted one of 'pretrained', 'llama'"),
        ("model={hidden_size: 8}", "model: got {'hidden_size': 8}, wanted a section with `kind`"),
        ("model.num_heads=0", "model.num_heads: got 0, wanted at least 1"),
        ("positions.max_scale=2.5", "positions.max_scale: must be a whole number for uniform_int, got 2.5"),
        ("positions.max_scale=" + "9" * 400, "positions.max_scale: got 999"),
        ("positions.preset=yarn", "positions: preset must be one of e2llm, pose, randpos, cream, clex, endprompt, pi"),
        ("positions.preset=[a]", "recommended, got ['a']"),
        ("positions.placement={kind: prefix, prefix: -1}", "positions.placement.prefix: got -1, wanted at least 0"),
        (
            "positions={scale: {kind: beta, max_scale: 0.5, a: 1, b: 1}, placement: {kind: none}}",
            "positions.scale.max_scale: got 0.5, wanted at least 1",
        ),
        (
            "positions={scale: {kind: choice, choices: [{scale: 0, weight: 1}]}, placement: {kind: none}}",
            "positions.scale.choices.0.scale: got 0, wanted at least 1",
        ),
        (
            "positions.placement={kind: terminal, jump: {kind: ends, p: 2}}",
            "positions.placement.jump.p: got 2, wanted at most 1",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_with_key_path_value_found_and_value_wanted(assignment, message):
    found = refusal(changed, assignment)
    assert found.startswith("recipe.yaml: ")
    assert message in found
    assert not found.endswith("more)")


def test_several_errors_name_the_first_and_count_the_rest():
    found = refusal(changed, "train.steps=0", "train.lr=2", "cluster.use_gpu=3", "seed=-1")
    assert found == "recipe.yaml: seed: got -1, wanted at least 0 (and 3 more)"


def test_a_long_value_is_cut_in_the_message():
    assert len(refusal(changed, f"train.lr={'x' * 10_000}")) < 150


# ---- checks across sections -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["positions.placement={kind: terminal, tokens: 64}"], "positions.placement: terminal needs tokens below"),
        (["cluster.num_workers=3"], "train.batch_sequences: must be a multiple of cluster.num_workers (3), got 4"),
        (
            ["pretrain={steps: 1, batch_sequences: 3}", "cluster.num_workers=2"],
            "pretrain.batch_sequences: must be a multiple of cluster.num_workers (2), got 3",
        ),
        (
            ["pretrain={steps: 1}", "model={kind: pretrained, path: a/b}"],
            "pretrain: belongs to model.kind llama",
        ),
        (["data.tokenizer="], "data.tokenizer: a model built from its sizes has none of its own; name one"),
        (
            ["pretrain={steps: 1}", "data.window=32"],
            "data.window: must equal model.base_context_length (64) where the recipe pretrains",
        ),
        (
            ["data.corpus=[{kind: text, paths: [a], weight: 1}, {kind: text, paths: [b]}]"],
            "data: corpus.1.weight: is missing where others have one",
        ),
        (
            ["data.validation_corpus=[{kind: text, paths: [a], weight: 1}]"],
            "data: validation_corpus.0.weight: held-out documents are not mixed",
        ),
        (
            ["data.corpus=[{kind: passkey, min_characters: 9, max_characters: 8}]"],
            "data.corpus.0: max_characters: must be at least min_characters (9), got 8",
        ),
        (
            ["data.corpus=[{kind: passkey, digits: 2}]"],
            "data.corpus.0: digits: 2 leave no number that a text of max_characters is sure not to hold",
        ),
        (
            ["data.corpus=[{kind: text, paths: [a], min_tokens: 9, max_tokens: 8}]"],
            "data.corpus.0: max_tokens: must be at least min_tokens (9), got 8",
        ),
        (["train.checkpoint_every=7"], "train: checkpoint_every must be a multiple of log_every (10)"),
        (["train.betas=[0.9, 1.0]"], "train: betas must lie in [0, 1), got (0.9, 1.0)"),
        (["train.offload=all"], "train: offload: all needs zero_stage 3, got 2"),
        (["train.offload=optimizer", "train.zero_stage=0"], "offload: optimizer needs zero_stage 1, 2 or 3, got 0"),
        (["train.precision=bf16", "train.zero_stage=0"], "precision: bf16 needs zero_stage 1, 2 or 3, got 0"),
        (["model.num_heads=3"], "model: hidden_size must be a multiple of 2 * num_heads (6), got 128"),
        (["model.num_key_value_heads=3"], "model: num_key_value_heads must divide num_heads (4), got 3"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(assignments, message):
    assert message in refusal(changed, *assignments)


def test_stages_can_be_left_out():
    config = changed("evaluate=null", "export=null")
    assert config.evaluate is None
    assert config.export is None


def test_a_pretrained_model_brings_its_own_tokenizer():
    assert changed("model={kind: pretrained, path: a/b}", "data.tokenizer=").data.tokenizer is None


# ---- round trips ------------------------------------------------------------------------------------------------

UNIT = st.floats(0, 1)
SHAPE = st.floats(0.001, 100)
REAL_SCALES = st.floats(1, 1e6)
JUMPS = st.one_of(
    st.just({"kind": "uniform"}),
    st.builds(lambda a, b: {"kind": "beta", "a": a, "b": b}, SHAPE, SHAPE),
    st.builds(lambda p: {"kind": "ends", "p": p}, UNIT),
)


@st.composite
def scales(draw):
    """Draw a `scale` section of any kind."""
    kind = draw(st.sampled_from(["fixed", "uniform_int", "uniform", "log_uniform", "power", "beta", "choice"]))
    section = {"kind": kind} | draw(st.sampled_from([{}, {"native_share": draw(UNIT)}]))
    if kind == "choice":
        listed = draw(st.lists(REAL_SCALES, min_size=1, max_size=4, unique=True))
        return section | {"choices": [{"scale": scale, "weight": draw(SHAPE)} for scale in listed]}
    section["max_scale"] = draw(st.integers(1, 10**6) if kind == "uniform_int" else REAL_SCALES)
    if kind == "power":
        section["exponent"] = draw(st.floats(-10, 10))
    if kind == "beta":
        section |= {"a": draw(SHAPE), "b": draw(SHAPE)}
    return section


@st.composite
def placements(draw):
    """Draw a `placement` section of any kind that fits a window of 64."""
    kinds = {
        "none": {},
        "prefix": {"prefix": st.integers(0, 63), "jump": JUMPS},
        "random_breaks": {"num_breaks": st.integers(1, 63), "jump": JUMPS},
        "sorted_random": {"pin_first": st.booleans(), "pin_last": st.booleans()},
        "head_middle_tail": {"tokens": st.integers(1, 31), "sigma": st.floats(0.001, 10)},
        "terminal": {"tokens": st.integers(1, 63), "jump": JUMPS},
        "chunks": {"num_chunks": st.sampled_from([1, 2, 4, 8, 16, 32, 64])},
    }
    kind = draw(st.sampled_from(sorted(kinds)))
    return {"kind": kind} | {key: draw(value) for key, value in kinds[kind].items()}


@st.composite
def positions(draw):
    """Draw a `positions` section: a preset, with or without parts of its own, or scale and placement."""
    section = {"per": draw(st.sampled_from(["sequence", "step"]))} if draw(st.booleans()) else {}
    if draw(st.booleans()):
        section["preset"] = draw(st.sampled_from(PRESETS))
        if section["preset"] != "native":
            section["max_scale"] = draw(st.integers(1, 1000))
        # cream's and endprompt's own 32 tokens at the ends need a longer window
        if section["preset"] in ("cream", "endprompt") or draw(st.booleans()):
            section["placement"] = draw(placements())
        return section
    return section | {"scale": draw(scales()), "placement": draw(placements())}


@settings(deadline=None, max_examples=150)
@given(section=positions())
def test_any_position_settings_come_back_from_their_dump(section):
    recipe = small(positions=section)
    config = validate(recipe, source="generated")
    again = validate(parse_yaml(dump(config), source="dump"), source="dump")
    assert again == config
    assert dump(again) == dump(config)
    SCHEMA.validate(recipe)
    SCHEMA.validate(parse_yaml(dump(config), source="dump"))


@settings(deadline=None, max_examples=300)
@given(text=st.text(min_size=1, max_size=40) | st.from_regex(r"[-+]?[0-9_]{0,5}\.?[0-9]{0,3}([eE][-+]?[0-9]{1,3})?"))
def test_text_stays_the_same_text_through_a_dump(text):
    if not text or any(c == "\0" or 0xD800 <= ord(c) <= 0xDFFF for c in text):
        return
    tokenizer = {"kind": "pretrained", "path": text}
    config = validate(small(data=SMALL["data"] | {"tokenizer": tokenizer}), source="generated")
    assert validate(parse_yaml(dump(config), source="dump"), source="dump").data.tokenizer.path == text


@pytest.mark.parametrize("text", ["1e5", "1234e567", "no", "null", "~", "1_0", "0o17", "2026-01-01", "a: b", "# x"])
def test_text_that_looks_like_something_else_is_quoted(text):
    config = changed("model={kind: pretrained, path: a/b}", f"model.revision='{text}'")
    assert validate(parse_yaml(dump(config), source="dump"), source="dump").model.revision == text


@settings(deadline=None, max_examples=100)
@given(st.floats(1e-300, 1, exclude_min=True))
def test_numbers_stay_the_same_numbers_through_a_dump(lr):
    config = validate(small(train={"steps": 1, "lr": lr}), source="generated")
    assert math.isclose(validate(parse_yaml(dump(config), source="d"), source="d").train.lr, lr, rel_tol=0, abs_tol=0)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_config_of_a_run_reproduces_itself(path, tmp_path):
    config = load(path)
    copy = tmp_path / "config.yaml"
    copy.write_text(dump(config), encoding="utf-8")
    assert load(copy) == config
    assert dump(load(copy)) == copy.read_text(encoding="utf-8")
    assert "preset" not in read_recipe(copy)["positions"]


# ---- what a continued run may change ------------------------------------------------------------------------------


def flat(value, prefix=""):
    """Return {dotted key: value} of nested sections, sections included."""
    found = {}
    for key, item in value.items():
        found[f"{prefix}{key}"] = item
        if isinstance(item, dict):
            found |= flat(item, f"{prefix}{key}.")
    return found


def test_every_setting_that_is_free_on_resume_exists():
    config = changed("pretrain={steps: 1}").model_dump(mode="json")
    assert set(FREE_ON_RESUME) <= flat(config).keys()


def test_equal_settings_do_not_differ():
    assert differences(changed().model_dump(mode="json"), changed().model_dump(mode="json")) == []


@pytest.mark.parametrize(
    "assignment",
    [
        "cluster.num_workers=2",
        "storage=/elsewhere",
        "train.zero_stage=1",
        "train.offload=optimizer",
        "train.micro_batch_sequences=1",
        "train.progress_s=1",
        "train.keep_checkpoints=7",
        "model.checkpoint_share=0.5",
    ],
)
def test_a_continued_run_may_run_elsewhere_and_faster(assignment):
    old, new = changed().model_dump(mode="json"), changed(assignment).model_dump(mode="json")
    assert old != new
    assert differences(old, new) == []


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.lr=0.5", "train.lr: 1e-05 in the run, 0.5 asked for"),
        ("seed=1", "seed: 0 in the run, 1 asked for"),
        ("evaluate=null", "evaluate: {"),
        ("positions.max_scale=8", "positions.scale.max_scale: 4.0 in the run, 8.0 asked for"),
        (
            "data.corpus.0={kind: text, paths: [a]}",
            "data.corpus: [{'weight': None, 'min_tokens': 1, 'max_tokens': None, 'kind': 'python_stdlib'}] in ",
        ),
        (
            "positions.placement={kind: none}",
            "positions.placement.jump: {'kind': 'uniform'} in the run, None",
        ),
    ],
)
def test_a_continued_run_may_not_compute_something_else(assignment, message):
    found = differences(changed().model_dump(mode="json"), changed(assignment).model_dump(mode="json"))
    assert found
    assert found[0].startswith(message)


# ---- the JSON schema --------------------------------------------------------------------------------------------


def test_the_schema_is_a_json_schema():
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_and_its_resolved_form_fit_the_schema(path):
    SCHEMA.validate(read_recipe(path))
    SCHEMA.validate(parse_yaml(dump(load(path)), source="dump"))


@pytest.mark.parametrize(
    "sections",
    [
        {"surplus": 1},
        {"train": {"steps": 0}},
        {"train": {"steps": 1, "zero_stage": 4}},
        {"train": {}},
        {"positions": {"preset": "e2llm"}},
        {"positions": {"preset": "yarn", "max_scale": 4}},
        {"positions": {"preset": "e2llm", "max_scale": 0}},
        {"positions": {"preset": "e2llm", "max_scale": 4, "scale": {"kind": "fixed", "max_scale": 4}}},
        {"positions": {"placement": {"kind": "none"}}},
        {"model": {"kind": "gpt"}},
    ],
)
def test_the_schema_refuses_what_loading_refuses(sections):
    assert not SCHEMA.is_valid(small(**sections))
    assert refusal(validate, small(**sections), source="x")


def test_the_schema_takes_the_native_preset_alone():
    SCHEMA.validate(small(positions={"preset": "native"}))
    assert validate(small(positions={"preset": "native"}), source="x").positions.max_scale == 1


def test_every_setting_is_described():
    def fields(model, path=""):
        for name, field in model.model_fields.items():
            yield f"{path}{name}", field

    sections = {"model", "data", "positions", "train", "cluster"}
    described = {name for name, field in fields(RunConfig) if field.description}
    assert described | sections >= set(RunConfig.model_fields)
    for section in ("data", "positions", "train", "cluster"):
        for name, field in fields(RunConfig.model_fields[section].annotation, f"{section}."):
            assert field.description, name
