"""Settings that do nothing beside others are told, each in a line that names it."""

import pytest

from e2ray.config.effect import without_effect
from e2ray.config.load import apply_override, validate
from e2ray.config.methods import PRESETS
from e2ray.config.retrieval import WITHOUT_DEPTH, WITHOUT_NUMBERS, RetrievalSettings

L = 64


def told(*assignments):
    recipe = {
        "name": "small",
        "model": {"kind": "llama", "base_context_length": L},
        "data": {"corpus": [{"kind": "python_stdlib"}], "tokenizer": {"kind": "byte_level_bpe"}, "window": L},
        "positions": {"preset": "e2llm", "max_scale": 4},
        "train": {"steps": 100, "batch_sequences": 4},
    }
    for assignment in assignments:
        apply_override(recipe, assignment)
    return without_effect(validate(recipe, source="test"), L)


SEARCH = "search={trials: 6, baselines: [e2llm], repeats: 2, early_stopping: null}"


NATIVE_CHOICE = (
    "positions={scale: {kind: choice, choices: [{scale: 4, weight: 1}], native_share: 1}, placement: {kind: prefix}}"
)


@pytest.mark.parametrize(
    ("assignments", "line"),
    [
        # a warm-up longer than the run, and as long
        (
            ["train.warmup_steps=400"],
            "train.warmup_steps: the warm-up of 400 steps is not over before the 100 steps of train.steps are, so "
            "train.lr reaches 2.5e-06 of 1e-05, and train.schedule and train.final_lr_share are without effect",
        ),
        (["train.warmup_steps=100"], "train.warmup_steps: the warm-up of 100 steps is not over before the 100 steps"),
        (
            ["pretrain={steps: 3, warmup_steps: 9}"],
            "pretrain.warmup_steps: the warm-up of 9 steps is not over before the 3",
        ),
        (
            ["pretrain={steps: 3}", "train.warmup_steps=30", SEARCH, "search.trial={train.steps: 20}"],
            "search.trial: train.warmup_steps: the warm-up of 30 steps is not over before the 20 steps",
        ),
        # no row is shifted
        (
            ["data.window=256"],
            "positions.placement: prefix is without effect, since rows of data.window 256 tokens have no room to shift "
            "below scale 4 times L (256 tokens); raise max_scale, shorten data.window, or take kind none",
        ),
        (
            ["positions={preset: cream, max_scale: 2}", "data.window=200"],
            "positions.placement: head_middle_tail is without",
        ),
        (["positions.placement={kind: prefix, prefix: 0}"], "positions.placement.prefix: 0 is without effect"),
        (["positions.placement={kind: chunks, num_chunks: 1}"], "positions.placement.num_chunks: 1 is without effect"),
        (
            ["positions={preset: pi, max_scale: 8, per: step}"],
            "positions.per: step is without effect, since all rows are",
        ),
        # one scale alone
        (
            ["positions={scale: {kind: uniform, max_scale: 8, native_share: 1}, placement: {kind: none}}"],
            "positions.scale.max_scale: 8 is without effect, since native_share 1 draws every row at scale 1",
        ),
        (
            [NATIVE_CHOICE],
            "positions.scale.choices: 4 is without effect, since native_share 1 draws every row at scale 1",
        ),
        (
            [NATIVE_CHOICE],
            "positions.placement: prefix is without effect, since rows of data.window 64 tokens have no room to shift "
            "below scale 1 times L (64 tokens); lower native_share, or take kind none",
        ),
        (
            ["positions={scale: {kind: choice, choices: [{scale: 4, weight: 3}]}, placement: {kind: none}}"],
            "positions.scale.choices.0.weight: 3.0 is without effect, since there is no other choice",
        ),
        (
            ["train={steps: 9, batch_sequences: 4, schedule: cosine, final_lr_share: 1}"],
            "train.schedule: cosine is without effect, since train.final_lr_share 1 leaves the learning rate",
        ),
        (
            ["positions={scale: {kind: fixed, max_scale: 1, native_share: 0.5}, placement: {kind: none}}"],
            "positions.scale.native_share: 0.5 is without effect, since max_scale 1 leaves no other scale",
        ),
        (
            ["positions={scale: {kind: beta, max_scale: 1, a: 2, b: 2}, placement: {kind: none}}"],
            "positions.scale.kind: beta is without effect, since max_scale 1 leaves no other scale",
        ),
        # the shape of a schedule that has none
        (
            ["train.schedule=constant", "train.final_lr_share=0.1"],
            "train.final_lr_share: 0.1 is without effect, since train.schedule is constant; take linear or cosine",
        ),
        (
            ["pretrain={steps: 9, schedule: constant, final_lr_share: 1}"],
            "pretrain.final_lr_share: 1.0 is without effect",
        ),
        # data
        (["data.pack_waiting=7"], "data.pack_waiting: 7 is without effect, since data.pack is concat"),
        (["data.corpus.0.weight=3"], "data.corpus.0.weight: 3.0 is without effect, since there is no other source"),
        (["data.seed=3", "data.validation_share=0", "evaluate=null"], "data.seed: 3 is without effect"),
        (["data.min_tokens=50", "data.corpus.0.min_tokens=60"], "data.min_tokens: 50 is without effect, since every"),
        (["data.min_tokens=50", "data.corpus.0.min_tokens=40"], "data.corpus.0.min_tokens: 40 is without effect"),
        (
            ["data.corpus=[{kind: hugging_face, path: /there, name: en, revision: main}]"],
            "data.corpus.0.name: en is without effect, since it belongs to a hub id, and data.corpus.0.path is a fo",
        ),
        (
            ["data.tokenizer={kind: pretrained, path: ~/t, revision: v1}"],
            "data.tokenizer.revision: v1 is without effect",
        ),
        (["model={kind: pretrained, path: /model, revision: v1}"], "model.revision: v1 is without effect"),
        # evaluation
        (
            ["evaluate.untrained=[linear, yarn]", "positions={preset: e2llm, max_scale: 4}"],
            "evaluate.untrained: linear is without effect, since positions.method reads the base so anyway",
        ),
        (
            ["evaluate.document_tokens=100", "evaluate.windows=[64, 128, 256]"],
            "evaluate.windows: 128, 256 is without effect",
        ),
        (
            ["evaluate.retrieval={tasks: [common_words, multi_value], depths: [0.5]}"],
            "evaluate.retrieval.depths: [0.5] is without effect, since none of its tasks has a depth",
        ),
        (["evaluate.retrieval={tasks: [frequent_words], digits: 7}"], "evaluate.retrieval.digits: 7 is without effect"),
        (
            ["evaluate.retrieval={trials: 2, greedy: 3}"],
            "evaluate.retrieval.greedy: 3 is without effect, since a cell has 2",
        ),
        (["evaluate.suites={tasks: [piqa], leval: /there}"], "evaluate.suites.leval: /there is without effect"),
        # comparisons and studies
        (
            ["compare={lanes: [e2llm], best: best.yaml}"],
            "compare.best: best.yaml is without effect, since the lane best",
        ),
        (
            ["compare={lanes: [pi_long], seeds: [1], long_window_seeds: 5}"],
            "compare.long_window_seeds: 5 is without effect, since compare.seeds has 1",
        ),
        (
            ["export={scale: paper}", "evaluate=null"],
            "export.scale: paper is without effect, since evaluate is null, so that no other scale is measured",
        ),
        (["train.watch_documents=9"], "train.watch_documents: 9 is without effect, since train.watch_every is null"),
        (
            ["compare={lanes: [], own: {mine: {positions: {preset: pose, max_scale: 4}, seeds: 7}}, seeds: [1, 2]}"],
            "compare.own.mine.seeds: 7 is without effect, since compare.seeds has 2",
        ),
        (
            ["compare={lanes: [], own: {mine: {positions: {preset: e2llm, max_scale: 1}}}}"],
            "compare.own.mine.positions.placement: prefix is without effect, since rows of data.window",
        ),
        (["compare={lanes: [e2llm], long_window_seeds: 2}"], "compare.long_window_seeds: 2 is without effect"),
        (
            ["pretrain={steps: 3}", SEARCH, "search.sampler=random", "search.startup_trials=3"],
            "search.startup_trials: 3 is without effect, since search.sampler is random",
        ),
        (["pretrain={steps: 3}", SEARCH, "search.retrieval.digits=7"], "search.retrieval.digits: 7 is without effect"),
        (
            ["pretrain={steps: 3}", SEARCH, "search.trials=2"],
            "search.trials: 2 are the published methods and repeats, so",
        ),
    ],
)
def test_a_setting_without_effect_is_told_by_its_name(assignments, line):
    found = told(*assignments)
    assert [each for each in found if each.startswith(line)], found
    assert all("\n" not in each for each in found)


@pytest.mark.parametrize(
    "assignments",
    [
        [],
        ["train.warmup_steps=99"],
        ["data.window=255"],
        ["train.schedule=constant"],
        ["positions={preset: native}"],
        ["positions={preset: clex, max_scale: 8}"],
        ["positions={preset: endprompt, max_scale: 8, per: step, placement: {kind: terminal, jump: {kind: uniform}}}"],
        ["positions={scale: {kind: fixed, max_scale: 4, native_share: 0.5}, placement: {kind: none}, per: step}"],
        ["data.corpus=[{kind: text, paths: [a], weight: 1}, {kind: text, paths: [b], weight: 2}]"],
        ["data.min_tokens=50", "data.corpus.0.min_tokens=1"],
        ["model={kind: pretrained, path: a/b, revision: v1}"],
        ["evaluate.retrieval={tasks: [passkey, common_words], depths: [0.5], digits: 7}"],
        ["pretrain={steps: 3}", SEARCH],
    ],
)
def test_what_has_an_effect_is_not_told(assignments):
    assert told(*assignments) == []


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "native"])
def test_published_methods_are_not_told_of(preset):
    assert told(f"positions={{preset: {preset}, max_scale: 4}}", "data.window=128") == []


def test_the_tasks_without_depth_and_without_numbers_are_those_that_are_written_so():
    from e2ray.evaluate.tasks import TASKS

    assert {name for name, (_, has_depth) in TASKS.items() if not has_depth} == set(WITHOUT_DEPTH)
    assert set(WITHOUT_NUMBERS) < set(RetrievalSettings.model_validate({"tasks": list(TASKS)}).tasks)
