"""Settings that are sound by themselves and bound to fail together are refused when they are read, in one line."""

import pytest

from e2ray.config.base import SettingsError
from e2ray.config.load import apply_override, validate

PRETRAINED = "model={kind: pretrained, path: a/b, attention: flash_attention_2}"
BPE = "data.tokenizer={kind: byte_level_bpe, "


def changed(*assignments):
    recipe = {
        "name": "small",
        "model": {"kind": "llama", "base_context_length": 64},
        "data": {"corpus": [{"kind": "python_stdlib"}], "tokenizer": {"kind": "byte_level_bpe"}, "window": 128},
        "positions": {"preset": "e2llm", "max_scale": 4},
        "train": {"steps": 100, "batch_sequences": 4},
    }
    for assignment in assignments:
        apply_override(recipe, assignment)
    return validate(recipe, source="test")


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        # text that no path and no file can hold, whichever setting it is
        (['storage="/tmp/a\\0b"'], r"storage: holds NUL, which no path and no name may"),
        (['data.shards="/tmp/a\\0b"'], r"data\.shards: holds NUL"),
        (['data.corpus=[{kind: text, paths: ["a\\0b"]}]'], r"data\.corpus\.0\.paths: holds NUL"),
        (['evaluate.suites={tasks: [a], include_path: "b\\0"}'], r"evaluate\.suites\.include_path: holds NUL"),
        (['storage="/tmp/\\ud800"'], r"storage: is no Unicode text"),
        # places that a job cannot find, or that mean the working folder
        (["data.shards=shards"], r"data\.shards: must be absolute, from ~/, or a URI, .* got 'shards'"),
        (["data.shards=./shards"], r"data\.shards: must be absolute"),
        (["data.shards=''"], r"data\.shards: must be absolute"),
        (
            ["evaluate.suites={tasks: [a], include_path: ''}"],
            r"evaluate\.suites\.include_path: got '', wanted at least 1",
        ),
        (["evaluate.suites={tasks: [''], leval: /a}"], r"evaluate\.suites\.tasks\.0: got '', wanted at least 1"),
        (["compare={best: ''}"], r"compare\.best: got '', wanted at least 1"),
        (["model={kind: pretrained, path: a/b, revision: ''}"], r"model\.revision: got '', wanted at least 1"),
        (["model.lora={targets: ['']}"], r"model\.lora\.targets\.0: got '', wanted at least 1"),
        # a method on top of another one
        (
            ["model={kind: pretrained, path: a/b, base_scaling: keep}", "evaluate.untrained=[linear]"],
            r"evaluate\.untrained: extends plain RoPE, and model\.base_scaling is keep; set it to replace",
        ),
        (["evaluate.untrained=[linear, linear]"], r"evaluate\.untrained: must name each once"),
        # tokens that no text makes
        ([f"{BPE}vocab_size: 100000000}}"], r"data\.tokenizer\.vocab_size: got 100000000, wanted at most 1048576"),
        (
            [f"{BPE}vocab_size: 9000, training_bytes: 8000}}"],
            r"vocab_size: 8000 bytes \(training_bytes\) make fewer tokens",
        ),
        (
            ["data.min_tokens=90", "data.corpus.0.max_tokens=80"],
            r"corpus\.0\.max_tokens: 80 is below data\.min_tokens \(90\)",
        ),
        (
            ["data.corpus=[{kind: passkey, text: {kind: python_stdlib, min_tokens: 9}}]"],
            r"data\.corpus\.0: text\.min_tokens: says nothing about made documents; set min_tokens beside text",
        ),
        (
            ["data.corpus=[{kind: passkey, text: {kind: text, paths: [a], weight: 2}}]"],
            r"data\.corpus\.0: text\.weight: says nothing about made documents",
        ),
        # evaluation without held-out text
        (["data.validation_share=0"], r"data\.validation_share: 0 holds out no document, and evaluate scores held-out"),
        # attention that nothing here can run
        (
            [PRETRAINED, "cluster.use_gpu=false"],
            r"model\.attention: flash_attention_2 needs a GPU, cluster\.use_gpu is false",
        ),
        ([PRETRAINED, "train.precision=fp32"], r"flash_attention_2 needs bf16 weights, train\.precision is fp32"),
        ([PRETRAINED, "train.zero_stage=0"], r"flash_attention_2 needs bf16 weights, train\.zero_stage is 0"),
        # a scale that a preset does not take, and draws beyond what 64 bits hold
        (
            ["positions={preset: native, max_scale: 16}"],
            r"positions\.max_scale: 16 is without effect beside preset native",
        ),
        (["positions={preset: pi, max_scale: 1.0e+300}"], r"positions\.max_scale: got 1e\+300, wanted at most 1048576"),
        (["evaluate.scales=[1, 1.0e+9]"], r"evaluate\.scales: must be at most 1048576, got 1e\+09"),
        (["train.steps=1000000000000"], r"train\.steps: got 1000000000000, wanted at most 1000000000"),
        # weights by distance are of rows of one text
        (
            ["train.objective={distance_weights: true}", "data.pack=document"],
            r"train\.objective\.distance_weights: are made for rows of one text, data\.pack is document",
        ),
        (
            [
                "compare={lanes: [], own: {a: {positions: {preset: pi, max_scale: 4}}}}",
                "compare.own.a.objective={distance_weights: true}",
                "data.pack=best_fit",
            ],
            r"compare\.own: a: objective\.distance_weights: are made for rows of one text, data\.pack is best_fit",
        ),
        # lanes that cannot be trained
        (["compare={lanes: [best]}"], r"compare: best: is null, the lane best needs the recipe of a study"),
        (["compare={seeds: [-1]}"], r"compare\.seeds\.0: got -1, wanted at least 0"),
        (["compare={seeds: [4294967296]}"], r"compare\.seeds\.0: got 4294967296, wanted less than 4294967296"),
        (
            ["compare={lanes: [cream]}", "data.window=64"],
            r"compare\.lanes: cream: head_middle_tail needs 2 \* tokens below the window.*; leave it out of the list",
        ),
        (
            ["compare={lanes: [e2llm]}", "positions={preset: pi, max_scale: 2.5}"],
            r"compare\.lanes: e2llm: .*whole number for uniform_int, got 2\.5; leave it out of the list",
        ),
        (
            ["pretrain={steps: 1}", "data.window=64", "search={trials: 20}", "positions={preset: pi, max_scale: 2.5}"],
            r"search\.baselines: e2llm: .*whole number for uniform_int, got 2\.5; leave it out of the list",
        ),
    ],
)
def test_settings_that_are_bound_to_fail_are_refused(assignments, message):
    with pytest.raises(SettingsError, match=message) as caught:
        changed(*assignments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "assignments",
    [
        ["data.shards=/there"],
        ["data.shards=~/there"],
        ["data.shards=s3://bucket/there"],
        ["data.validation_share=0", "data.validation_corpus=[{kind: text, paths: [a]}]"],
        ["data.validation_share=0", "evaluate=null"],
        ["data.validation_share=0", "data.shards=/there"],
        [PRETRAINED],
        [PRETRAINED, "cluster.use_gpu=true", "train.precision=bf16"],
        ["positions={preset: native}"],
        ["positions={preset: native, max_scale: 1}"],
        ["compare={lanes: [best, cream], best: best.yaml, seeds: [0]}"],
        [f"{BPE}vocab_size: 8000, training_bytes: 8000}}"],
    ],
)
def test_what_may_be_meant_is_not_refused(assignments):
    assert changed(*assignments).name == "small"


def test_a_recipe_alone_has_no_sections_of_other_commands():
    config = changed(
        "pretrain={steps: 1}", "data.window=64", "search={trials: 4, baselines: [e2llm]}", "compare={lanes: [pi_long]}"
    )
    assert config.search is not None and config.compare is not None
    assert config.alone().search is None and config.alone().compare is None
    assert config.alone().train == config.train
