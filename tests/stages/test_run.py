"""What a run says of how it went, whose tokenizer it has, and which base it names."""

import signal

import pytest
from transformers import AutoTokenizer

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.data import ByteLevelBpe
from e2ray.config.load import validate
from e2ray.data.identity import shards_digest
from e2ray.data.tokenizer import load_tokenizer, tokenizer_hash, train_byte_level_bpe
from e2ray.evaluate.perplexity import cell
from e2ray.evaluate.verdict import verdict
from e2ray.records.evaluation import Evaluation
from e2ray.records.manifest import Manifest
from e2ray.stages import train as training
from e2ray.stages.run import Preempted, ResolvedRun, ray_address, reporting, resolve, result_line, run_tokenizer
from e2ray.testing.runs import L, settings, surface
from e2ray.train.record import KILLED, read_status, write_status


@pytest.fixture
def run(tmp_path):
    made = ResolvedRun(settings(tmp_path), L)
    made.folder.mkdir()
    return made


@pytest.mark.parametrize(
    ("error", "state", "words"),
    [
        (SettingsError("train.lr: got 3"), "failed", "train.lr: got 3"),
        (RuntimeError("first\n  second"), "failed", "first second"),
        (KeyError(), "failed", "KeyError"),
        (MemoryError(), "failed", "MemoryError"),
        (KeyboardInterrupt(), "preempted", "interrupted"),
        (SystemExit(3), "preempted", "interrupted"),
    ],
)
def test_how_a_block_ends_stands_in_the_status(run, error, state, words):
    wanted = KeyboardInterrupt if state == "preempted" else type(error)

    def fail():
        with reporting(run):
            assert read_status(run.folder).state == "running"
            raise error

    with pytest.raises(wanted):
        fail()
    status = read_status(run.folder)
    assert (status.state, status.error) == (state, words) and status.ended_at


def test_sigterm_is_written_down_at_once(run):
    before = signal.getsignal(signal.SIGTERM)

    def be_stopped():
        with reporting(run):
            try:
                signal.raise_signal(signal.SIGTERM)
            except Preempted:
                assert read_status(run.folder).state == "preempted"
                write_status(run.folder, step=5, state="running")  # a worker that read the status before
                raise

    with pytest.raises(KeyboardInterrupt):
        be_stopped()
    assert read_status(run.folder).state == "preempted"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_damaged_status_hides_no_error(run):
    def fail():
        with reporting(run):
            (run.folder / "status.json").write_text("[" * 100_000)
            raise RuntimeError("the real one")

    with pytest.raises(RuntimeError, match="the real one"):
        fail()
    assert read_status(run.folder).error == "the real one"


def test_a_run_that_was_killed_is_told_by_the_next(run, capsys):
    write_status(run.folder, state="running", step=4)
    with files.lock(run.folder / ".lock", what="testing"), reporting(run):
        assert read_status(run.folder).error is None
    assert capsys.readouterr().out == (
        f"{run.folder}: ended at step 4 without a word: {KILLED}; it goes on from what it left\n"
    )


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"verdict": []}', '{"verdict": {}}', '{"verdict": {"sentences": "a"}}', "[" * 100_000]
)
def test_an_evaluation_of_another_shape_is_one_line(run, content):
    (run.folder / "evaluation.json").write_text(content)
    with pytest.raises(SettingsError, match=r"evaluation\.json: is .*; run `e2ray evaluate` again"):
        result_line(run)
    cells = [cell(each) for each in surface()]
    told = verdict(cells, L).changed(sentences=("Reads far.",))
    Evaluation(rows=tuple(cells), verdict=told).write(run.folder / "evaluation.json")
    assert result_line(run) == f"Reads far. Model: {run.folder / 'model'}"


TOOLS = {"default": "{{ messages }}", "tool_use": "TOOLS {{ messages }}"}


@pytest.fixture
def saved_tokenizer(tmp_path):
    """A function that saves the same tokens beside another chat template, and returns the folder."""
    tokenizer = train_byte_level_bpe(["some words to learn from"] * 9, ByteLevelBpe(vocab_size=280))

    def save(name, template):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def shards(tmp_path, saved_tokenizer):
    """What is read of shards here: a manifest, and the tokenizer of whoever prepared them."""
    folder = tmp_path / "shards"
    place = saved_tokenizer("shards/tokenizer", {"default": "first", "rag": "first of all"})
    named = tokenizer_hash(load_tokenizer(place))
    nothing = Manifest(tokenizer_hash=named, window=1, rows=0, rows_per_batch=1, shards=(), validation=())
    nothing.write(folder / "manifest.json")
    return folder


def run_of(small, tokenizer):
    small["data"]["tokenizer"] = tokenizer
    small["train"] = {"steps": 2, "batch_sequences": 2, "lr": 1e-3}
    return ResolvedRun(validate(small, source="test"), 32)


def templates(folder):
    return AutoTokenizer.from_pretrained(folder).chat_template


def test_a_run_has_the_chat_templates_of_its_own_tokenizer_and_not_of_the_shards(small, saved_tokenizer, shards):
    sources = {name: saved_tokenizer(name, template) for name, template in (("one", "{{ 1 }}"), ("two", TOOLS))}
    runs = {name: run_of(small, {"kind": "pretrained", "path": str(path)}) for name, path in sources.items()}
    found = {name: run_tokenizer(run, shards) for name, run in runs.items()}
    assert {name: templates(folder) for name, folder in found.items()} == {"one": "{{ 1 }}", "two": TOOLS}
    assert len({tokenizer_hash(load_tokenizer(path)) for path in (*found.values(), shards / "tokenizer")}) == 1
    digests = {shards_digest(run.config.data, tokenizer_source=run.config.data.tokenizer) for run in runs.values()}
    assert len(digests) == 1  # which is why the shards cannot say whose template it is
    assert found == {name: run_tokenizer(run, shards) for name, run in runs.items()}  # once for all stages
    saved_tokenizer("two", TOOLS | {"default": "another"})
    assert templates(run_tokenizer(runs["two"], shards)) == TOOLS | {"default": "another"}
    assert templates(found["two"]) == TOOLS


def test_a_tokenizer_that_prepare_trained_lies_with_the_shards_and_comes_whole_from_a_store(small, shards):
    run = run_of(small, {"kind": "byte_level_bpe", "vocab_size": 320})
    assert run_tokenizer(run, shards) == shards / "tokenizer"
    fetched = run_tokenizer(run, shards.as_uri())
    assert fetched.is_relative_to(run.storage)
    assert templates(fetched) == {"default": "first", "rag": "first of all"}


def test_a_tokenizer_that_is_gone_is_one_line(small, shards, tmp_path):
    run = run_of(small, {"kind": "pretrained", "path": str(tmp_path / "gone")})
    with pytest.raises(SettingsError, match=r"^tokenizer .*/gone: not found, wanted a folder with tokenizer\.json$"):
        run_tokenizer(run, shards)


@pytest.fixture
def base(small):
    """Return a function that tells the base's folder of a recipe with changes in some of its sections."""
    training = {"steps": 8, "batch_sequences": 8}

    def of(**changes):
        recipe = small | {"pretrain": training, "train": training}
        for section, values in changes.items():
            recipe[section] = recipe[section] | values
        return resolve(validate(recipe, source="test")).base

    return of


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"lora": {"rank": 4}}},
        {"model": {"checkpoint_share": 0.5}},
        {"model": {"attention": "eager"}},
        {"pretrain": {"keep_checkpoints": 7}},
        {"pretrain": {"progress_s": 0.5}},
        {"pretrain": {"micro_batch_sequences": 2}},
        {"pretrain": {"zero_stage": 1, "offload": "optimizer"}},
        {"data": {"ledger": True, "prefetch_mib": 3}},
        {"train": {"lr": 0.5}},
        {"positions": {"max_scale": 8}},
    ],
)
def test_what_the_base_does_not_follow_from_names_no_other(base, change):
    assert base(**change) == base()


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"num_layers": 3}},
        {"pretrain": {"lr": 0.5}},
        {"pretrain": {"steps": 9}},
        {"pretrain": {"precision": "bf16"}},
        {"data": {"validation_share": 0.1}},
        {"data": {"shuffle_shards": 2}},
    ],
)
def test_what_the_base_follows_from_names_another(base, change):
    assert base(**change) != base()


def test_a_base_is_pretrained_without_the_adapters_of_the_recipe(small, monkeypatch):
    steps = {"steps": 8, "batch_sequences": 8}
    recipe = small | {"pretrain": steps, "train": steps, "model": small["model"] | {"lora": {"rank": 4}}}
    run, trained = resolve(validate(recipe, source="test")), []
    monkeypatch.setattr(training, "task_of", lambda run, folder, shards, model, *_: model)
    monkeypatch.setattr(training, "_train", lambda run, model: trained.append(model))
    base = training.base_of(run, "shards")
    assert [model.lora for model in trained] == [None]
    assert base.lora is not None  # the adapters are the fine-tuning's own


@pytest.mark.parametrize("named", [None, "", "local"])
def test_a_ray_of_this_machine_is_no_named_cluster(monkeypatch, named):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if named is not None:
        monkeypatch.setenv("RAY_ADDRESS", named)
    assert ray_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert ray_address() == "auto"
