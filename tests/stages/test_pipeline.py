"""The whole chain on real parts: text files in, a served model out, with a restart in the middle."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.load import validate
from e2ray.stages import pipeline
from e2ray.stages.check import check
from e2ray.testing.recipes import PRETRAIN
from e2ray.train.record import read_metrics, read_status

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.ray


@pytest.fixture
def recipe(small):
    """A recipe of the whole chain in miniature."""
    training = {"steps": 8, "batch_sequences": 8, "micro_batch_sequences": 4, "log_every": 1, "checkpoint_every": 4}
    return small | {
        "pretrain": dict(PRETRAIN),
        "train": training | {"lr": 1e-3},
        "cluster": {"max_failures": 0},
    }


def config_of(recipe):
    return validate(recipe, source="test")


def own_suites(folder, *names):
    """Return settings that ask tasks of one's own: one of two prompts, and one whose prompt no model may read."""
    prompts = {"short": ["def", "def write(path): " * 3], "long": ["def write(path): " * 100]}
    place = folder / "tasks"
    place.mkdir()
    for name in names:
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in prompts[name]))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{text}}",
            "doc_to_choice": [" return", " with open"],
            "doc_to_target": 0,
        }
        (place / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return {"tasks": list(names), "include_path": str(place)}


def test_wrong_suites_are_refused_before_anything_is_done(recipe):
    recipe["evaluate"]["suites"] = {"tasks": ["leval:tpo"], "leval": "/gone"}
    for stage in (pipeline.execute, check):
        with pytest.raises(SettingsError, match=r"evaluate\.suites\.leval: /gone: no such folder"):
            stage(config_of(recipe))
    assert not (Path(recipe["storage"]) / "shards").exists()
    recipe["evaluate"] = None
    with pytest.raises(SettingsError, match=r"evaluate\.suites: is null, so there is nothing to ask"):
        pipeline.suites_only(config_of(recipe))


def test_an_unknown_task_beside_others_is_told_before_anything_is_done(recipe, tmp_path, capsys, own_tasks_only):
    recipe["evaluate"]["suites"] = own_suites(tmp_path, "short") | {"tasks": ["short", "shrot"]}
    check(config_of(recipe))
    told, sound = capsys.readouterr().out.splitlines()
    assert told.startswith("evaluate.suites.tasks: 'shrot' is no task, wanted one such as short")
    assert told.endswith("; it will have no score") and sound.startswith("small: sound.")


def prefixed_tokenizer(folder, single, *, end="<|endoftext|>"):
    """Save a tokenizer that puts around a text what `single` says, of `[gMASK]` and `<sop>`, and return it."""
    from tokenizers import processors

    from e2ray.config.data import ByteLevelBpe
    from e2ray.data.tokenizer import train_byte_level_bpe

    tokenizer = train_byte_level_bpe(["some text"], ByteLevelBpe(vocab_size=260))
    tokenizer.eos_token = end
    tokenizer.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<sop>"]})
    specials = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[gMASK]", "<sop>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=specials)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize(
    ("single", "end", "message"),
    [
        (
            "<sop> " * 32 + "$A",
            "<|endoftext|>",
            r"data\.window: 32 tokens, of which .* puts 32 before each text",
        ),
        ("$A <sop> $A", "<|endoftext|>", r"tokenizer .*: its post_processor puts tokens into a text"),
        ("<sop> $A", None, r"has no end-of-text token; set eos_token"),
    ],
    ids=["no room", "inside", "no end"],
)
def test_a_tokenizer_that_rows_cannot_be_made_with_is_told_by_check(recipe, tmp_path, single, end, message):
    prefixed_tokenizer(tmp_path / "tokenizer", single, end=end)
    recipe["data"]["tokenizer"] = {"kind": "pretrained", "path": str(tmp_path / "tokenizer")}
    with pytest.raises(SettingsError, match=message):
        check(config_of(recipe))


def test_shards_that_an_earlier_version_made_without_the_whole_prefix_are_refused(recipe, tmp_path, capsys):
    from e2ray.data import tokenizer as tokenizers
    from e2ray.records.manifest import Manifest, spelled

    made = prefixed_tokenizer(tmp_path / "tokenizer", "[gMASK] <sop> $A")
    recipe["data"]["tokenizer"] = {"kind": "pretrained", "path": str(tmp_path / "tokenizer")}
    recipe["data"]["shards"] = (tmp_path / "mine").as_uri()
    (tmp_path / "mine").mkdir()
    manifest = {"schema_version": Manifest.schema_version, "window": 32, "rows": 0, "rows_per_batch": 1}
    manifest |= {"shards": [], "validation": []}
    content = json.loads(made.backend_tokenizer.to_str())
    plain = {key: content[key] for key in content if key not in ("version", "padding", "truncation")}
    named = {"tokenizer": plain, "end": made.eos_token_id, "size": len(made)}
    for begin, sound in ((None, False), (tokenizers.prefix_tokens(made), True)):
        manifest["tokenizer_hash"] = files.digest(named | {"begin": begin})
        (tmp_path / "mine" / "manifest.json").write_text(spelled(manifest))
        if sound:
            check(config_of(recipe))
            assert capsys.readouterr().out.startswith("small: sound.")
        else:
            with pytest.raises(SettingsError, match=r"shards were made with tokenizer .*; rerun prepare with"):
                check(config_of(recipe))


def test_chain_leaves_what_the_contract_lists(chain, capsys, tmp_path):
    recipe, folder = json.loads(json.dumps(chain.recipe)), chain.folder
    status = read_status(folder)
    assert (status.state, status.step, status.error) == ("succeeded", 8, None)
    assert status.ended_at >= status.started_at
    metrics = read_metrics(folder)
    assert [line.step for line in metrics] == list(range(1, 9))
    assert metrics[-1].tokens == 8 * 8 * 32
    assert all(1 <= line.scale_mean <= 4 and set(line.loss_by_scale) <= {"1", "2", "4"} for line in metrics)
    assert (folder / "checkpoints" / "latest").read_text() == "step-8\n"
    assert json.loads((folder / "environment.json").read_text())["versions"]["ray"]
    assert list((folder / "tensorboard").glob("events*"))
    evaluation = json.loads((folder / "evaluation.json").read_text())
    surface = {(model, window, scale) for model in ("base", "tuned") for window in (32, 64, 128) for scale in (1, 2, 4)}
    untrained = {("base_yarn", window, window // 32) for window in (32, 64, 128)}
    assert {(row["model"], row["window"], row["scale"]) for row in evaluation["rows"]} == surface | untrained
    for name in (
        "evaluation.parquet",
        "evaluation-documents.parquet",
        "evaluation-lengths.parquet",
        "evaluation-lengths.png",
        "evaluation.png",
        "effective.json",
        "scales.json",
        "model/model.safetensors",
        "export/README.md",
        "export/scales.json",
        "report.html",
        "report.md",
    ):
        assert (folder / name).stat().st_size > 0, name
    told = chain.told
    assert told[-3:-1] == [status.result, f"page: {folder / 'report.html'}"]
    assert told[-1].startswith("next: ") and told[-1].endswith(
        f"e2ray generate {folder} --prompt-file TEXT; to serve it: {folder / 'export/serving/128/README.md'}"
    )
    assert sorted(path.name for path in (folder / "export" / "serving").iterdir()) == ["128", "32", "64"]

    # The resolved settings reproduce the run, and a finished run says so and does nothing.
    again = yaml.safe_load((folder / "config.yaml").read_text())
    capsys.readouterr()
    pipeline.execute(config_of(again))
    assert "is finished" in capsys.readouterr().out
    (folder / "report.html").unlink()  # as where it was stopped before the page was written
    pipeline.execute(config_of(again))
    assert capsys.readouterr().out.splitlines()[-1] == f"page: {folder / 'report.html'}"
    assert (folder / "report.html").stat().st_size > 10_000

    # Evaluation and export can be done again with other settings of their own.
    recipe["evaluate"] = {"documents": 1, "document_tokens": 100, "windows": [32, 64], "scales": [1, 2], "stride": 16}
    recipe["evaluate"]["retrieval"] = {"context_lengths": [128, 192], "tasks": ["passkey", "key_value"], "trials": 1}
    recipe["export"] = {"context_lengths": [64]}
    pipeline.evaluate_only(config_of(recipe))
    assert f"{folder / 'export'}: serves by an earlier evaluation; `e2ray export` writes it" in capsys.readouterr().out
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert {(row["window"], row["scale"]) for row in evaluation["rows"]} == {(32, 1), (32, 2), (64, 1), (64, 2)}
    asked = json.loads((folder / "retrieval.json").read_text())["rows"]
    assert {(row["model"], row["task"], row["context_length"]) for row in asked} == {
        (model, task, length)
        for model in ("base", "tuned")
        for task in ("passkey", "key_value")
        for length in (128, 192)
    }
    assert all(row["agreed"] == row["greedy"] == 1 for row in asked)
    assert (folder / "retrieval.png").stat().st_size > 0
    effective = json.loads((folder / "effective.json").read_text())
    assert (effective["claimed"], [row["context_length"] for row in effective["lengths"]]) == (64, [32, 64])
    assert (effective["criterion"], effective["last"], effective["retrieval_lengths"]) == ("last_tokens", 16, [])

    # Tasks of suites are asked by themselves; what was measured stays.
    recipe["evaluate"]["suites"] = own_suites(tmp_path, "short", "long")
    before = (folder / "evaluation.json").read_bytes()
    pipeline.suites_only(config_of(recipe))
    assert (folder / "evaluation.json").read_bytes() == before
    suites = json.loads((folder / "suites.json").read_text())
    assert {(row["model"], row["task"], row["metric"]) for row in suites["scores"]} == {
        (model, "short", metric) for model in ("base", "tuned") for metric in ("acc", "acc_norm")
    }
    assert [(row["model"], row["task"]) for row in suites["missing"]] == [("base", "long"), ("tuned", "long")]
    assert (suites["max_context_length"], suites["settings"]["seed"]) == (128, 1234)
    assert {"lm_eval", "datasets", "torch", "transformers"} <= suites["versions"].keys()
    samples = [json.loads(line) for line in (folder / "suites-samples.jsonl").read_text().splitlines()]
    assert [(each["model"], each["document"]) for each in samples] == [
        (model, document) for model in ("base", "tuned") for document in (0, 1)
    ]
    assert not list(folder.glob("suites-samples-*"))
    read = {each["model"]: each["requests"][0] for each in samples if each["document"] == 1}
    assert 32 < read["base"]["tokens"] == read["tuned"]["tokens"] <= 64
    assert read["base"]["scale"] == read["base"]["tokens"] / 32
    served = json.loads((folder / "scales.json").read_text())["lengths"][1]
    assert (served["context_length"], served["served"]) == (64, read["tuned"]["scale"])

    pipeline.export_only(config_of(recipe))
    assert [path.name for path in (folder / "export" / "serving").iterdir()] == ["64"]
    assert (folder / "export" / "scales.json").read_bytes() == (folder / "scales.json").read_bytes()
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert (resolved["evaluate"]["windows"], resolved["export"]["context_lengths"]) == ([32, 64], [64])
    assert resolved["evaluate"]["suites"]["tasks"] == ["short", "long"]
    pipeline.execute(config_of(resolved))
    assert "is finished" in capsys.readouterr().out

    # The same name with other settings is refused by name.
    recipe["train"]["lr"] = 2e-3
    with pytest.raises(SettingsError, match=r"train\.lr: 0\.001 in the run, 0\.002 asked for"):
        pipeline.execute(config_of(recipe))


def test_a_bad_document_fails_the_run_in_one_line(ray_cluster, recipe, tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 50)
    recipe["data"]["corpus"].append({"kind": "text", "paths": [str(tmp_path / "latin.txt")]})
    with pytest.raises(SettingsError, match=r"latin\.txt.*UTF-8.*on_bad: skip"):
        pipeline.execute(config_of(recipe))
    folder = Path(recipe["storage"]) / "small"
    status = read_status(folder)
    assert status.state == "failed"
    assert "latin.txt" in status.error
    assert not (folder / "model").exists()
    assert not [path for path in (Path(recipe["storage"]) / "shards").iterdir() if path.is_dir()]


@pytest.mark.slow
def test_a_run_that_has_trained_nothing_may_go_on_with_other_settings(ray_cluster, recipe, tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 50)
    recipe["data"]["corpus"].append({"kind": "text", "paths": [str(tmp_path / "latin.txt")]})
    recipe |= {"pretrain": None, "evaluate": None, "export": None}
    with pytest.raises(SettingsError, match=r"latin\.txt.*UTF-8.*on_bad: skip"):
        pipeline.execute(config_of(recipe))
    recipe["data"]["on_bad"] = "skip"  # as the line advises
    pipeline.execute(config_of(recipe))
    assert read_status(Path(recipe["storage"]) / "small").state == "succeeded"


@pytest.mark.slow
def test_shards_in_an_object_store_train_as_those_of_the_folder(ray_cluster, recipe, tmp_path, store):
    recipe["data"]["shards"] = str(tmp_path / "mine")
    recipe |= {"pretrain": None, "export": None}
    pipeline.execute(config_of(recipe))
    recipe["data"]["shards"] = store[0](tmp_path / "mine", "mine")
    recipe["name"] = "remote"
    check(config_of(recipe))
    pipeline.execute(config_of(recipe))
    here, there = (read_metrics(Path(recipe["storage"]) / name) for name in ("small", "remote"))
    assert [line.loss for line in here] == [line.loss for line in there]
    assert (Path(recipe["storage"]) / "remote" / "model" / "tokenizer.json").exists()
    with pytest.raises(SettingsError, match=r"data\.shards: .* is read, not written"):
        pipeline.prepare_only(config_of(recipe))


def test_shards_of_another_window_or_tokenizer_are_refused(ray_cluster, recipe, tmp_path):
    recipe["data"]["shards"] = str(tmp_path / "mine")
    recipe["pretrain"] = None
    pipeline.prepare_only(config_of(recipe))
    recipe["data"]["window"] = 16
    with pytest.raises(SettingsError, match="32-token rows, the run wants 16; rerun prepare"):
        pipeline.execute(config_of(recipe))
    recipe["data"] |= {"window": 32, "tokenizer": {"kind": "pretrained", "path": other_tokenizer(tmp_path)}}
    recipe["name"] = "other"
    with pytest.raises(SettingsError, match="tokenizer"):
        pipeline.execute(config_of(recipe))
    assert read_status(Path(recipe["storage"]) / "other").state == "failed"


def other_tokenizer(tmp_path):
    from transformers import PreTrainedTokenizerFast

    from e2ray.config.data import ByteLevelBpe
    from e2ray.data.tokenizer import train_byte_level_bpe

    tokenizer = train_byte_level_bpe(["another text"], ByteLevelBpe(vocab_size=260))
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def losses(folder):
    return [(line.step, line.loss, line.grad_norm, line.loss_by_scale) for line in read_metrics(folder)]


def start(recipe_path, ray_folder):
    environment = os.environ | {"E2RAY_RAY_FOLDER": ray_folder}
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), "--config", str(recipe_path)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def wait_until(condition, *, process, timeout_s=120):
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "the run did not get there in time"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_run_continues_with_the_losses_of_an_unbroken_one(tmp_path, recipe, ray_cluster, ray_folder):
    recipe |= {"evaluate": None, "export": None, "pretrain": None}
    recipe["train"] |= {"steps": 60, "checkpoint_every": 10}
    unbroken = recipe | {"name": "unbroken"}
    pipeline.execute(config_of(unbroken))
    folder = Path(recipe["storage"]) / "small"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))

    process = start(path, ray_folder)
    try:
        wait_until(lambda: (folder / "checkpoints" / "step-20").exists(), process=process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert read_status(folder).state == "running"  # nobody was left to write anything else

    pipeline.execute(config_of(recipe))
    assert read_status(folder).state == "succeeded"
    assert losses(folder) == losses(Path(recipe["storage"]) / "unbroken")


ONE_AFTER_THE_OTHER = """
import json, os, runpy, sys
from pathlib import Path

job, recipe, storage, addresses = sys.argv[1:]
for number, address in enumerate(json.loads(addresses)):
    os.environ["RAY_ADDRESS"] = address
    sys.argv = [job, "--config", recipe, "--set", f"storage={storage}/{number}"]
    try:
        runpy.run_path(job, run_name="__main__")
    except SystemExit as end:
        print(f"exit code {end.code}", file=sys.stderr, flush=True)
"""


def test_an_address_without_a_cluster_is_told_in_one_line(tmp_path, recipe):
    """The job is run for each address, all in one process, of which most time goes into its start."""
    told = {
        "http://127.0.0.1:8265": r"RAY_ADDRESS: .* is where jobs are submitted; use `ray job submit",
        "127.0.0.1:9": r"RAY_ADDRESS: no Ray cluster answers at 127\.0\.0\.1:9",
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER, ROOT / "jobs" / "train.py", path, tmp_path, json.dumps([*told])],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "Traceback" not in done.stderr
    first, second, rest = re.split(r"^exit code 2$", done.stderr, flags=re.MULTILINE)
    assert rest == "\n"
    for number, (errors, message) in enumerate(zip((first, second), told.values(), strict=True)):
        assert re.search(message, errors.splitlines()[-1])
        assert read_status(tmp_path / str(number) / "small").state == "failed"
