"""A study from its recipe to its exports, on real parts; killed, resumed, and refused where it must be."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from e2ray.config.base import SettingsError
from e2ray.config.load import dump, load, validate
from e2ray.report.run_files import comparable, read_run
from e2ray.report.run_folder import open_runs
from e2ray.report.runs import write_report
from e2ray.report.sections.cost import cost
from e2ray.report.sections.settings import differing
from e2ray.search.journal import Journal, end_path
from e2ray.stages import pipeline
from e2ray.stages import tune as tuning
from e2ray.stages.check import check
from e2ray.stages.run import resolve
from e2ray.testing.recipes import PRETRAIN
from e2ray.train.record import read_status

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.ray


@pytest.fixture
def recipe(small):
    """A study in miniature: a pretrained base, ten trials of nine steps."""
    training = {"steps": 9, "batch_sequences": 4, "micro_batch_sequences": 4, "log_every": 1, "checkpoint_every": 9}
    return small | {
        "pretrain": dict(PRETRAIN),
        "train": training | {"lr": 1e-3},
        "search": {
            "trials": 10,
            "baselines": ["e2llm", "pose", "native"],
            "repeats": 3,
            "startup_trials": 3,
            "concurrency": 1,  # the start of a second actor takes longer than all trials
            "progress_s": 1.0,
            "early_stopping": {"kind": "asha", "min_steps": 3},
        },
    }


def config_of(recipe):
    return validate(recipe, source="test")


def rows_of(folder):
    return {row["number"]: row for row in pq.read_table(folder / "export" / "trials.parquet").to_pylist()}


def made_by_content(storage):
    """Return the folders of shards and bases of a storage."""
    return {path for kind in ("shards", "bases") for path in (Path(storage) / kind).iterdir() if path.is_dir()}


def test_a_study_leaves_its_exports_and_they_can_be_trained(chain, recipe, storage, capsys):
    recipe |= {"storage": storage, "name": "study"}
    tuning.tune(config_of(recipe), resume=False)
    folder = Path(storage) / "study"
    export = folder / "export"
    names = {path.name for path in export.iterdir()}
    wanted = {
        "trials.parquet",
        "trials.csv",
        "curves.parquet",
        "pareto.json",
        "ranges.json",
        "report.html",
        "best.yaml",
    }
    assert wanted | {"best-balanced.yaml", "best-long-first.yaml", "study.journal", "front"} <= names
    assert (export / "study.journal").read_bytes() == (folder / "study.journal").read_bytes()
    rows = rows_of(folder)
    assert sorted(rows) == list(range(10))
    curves = pq.read_table(export / "curves.parquet").to_pylist()
    for number, row in rows.items():
        mine = [cell for cell in curves if cell["number"] == number and cell["step"] == row["step"]]
        served = {cell["window"]: cell["nll"] for cell in mine if cell["scale"] == cell["window"] / 32}
        assert served.pop(32)  # L, which the short objective is about
        assert row["long"] == pytest.approx(sum(served.values()) / len(served), rel=1e-12)
    status = read_status(folder)
    assert status.state == "succeeded" and "report.html" in status.result
    printed = capsys.readouterr().out
    assert f"optuna-dashboard {export / 'study.journal'}" in printed
    assert "10 of 10 trials" in printed

    best = load(export / "best.yaml")
    assert best.search is None and best.evaluate.skip_documents == 2
    front = json.loads((export / "pareto.json").read_text())
    chosen = rows[front["chosen"]["balanced"]]
    assert best.positions.model_dump(mode="json") == json.loads(chosen["positions"])
    assert best.train.lr == chosen["lr"]
    made = made_by_content(storage)
    assert {resolve(best).base, resolve(best).made_shards} <= made
    pipeline.execute(best.model_copy(update={"export": None}))
    assert read_status(Path(recipe["storage"]) / best.name).state == "succeeded"
    assert made_by_content(storage) == made  # everything but the tuned weights is shared with other runs

    def exported():
        files = [path for path in export.iterdir() if path.is_file() and path.suffix != ".journal"]
        return {path.name: path.read_bytes() for path in files}

    before = exported()
    with pytest.raises(SettingsError, match=r"holds a study of that name; --resume continues it"):
        tuning.tune(config_of(recipe), resume=False)
    tuning.tune(config_of(recipe), resume=True)
    assert exported() == before
    recipe["search"]["space"] = {"train.lr": {"kind": "float", "low": 1e-4, "high": 1e-3}}
    with pytest.raises(SettingsError, match=r"the study 'study' was begun with other settings: search\.space: None"):
        tuning.tune(config_of(recipe), resume=True)
    (folder / "config.yaml").unlink()
    with pytest.raises(SettingsError, match=r"config\.yaml: is missing beside the journal of a study"):
        tuning.tune(config_of(recipe), resume=True)

    # Measured on the same documents, it and a run of another recipe are compared, document by document, in one report.
    documents = {"documents": 1, "document_tokens": 100, "windows": [32, 64], "scales": [1, 2], "stride": 16}
    trained = dump(best.model_copy(update={"export": None}))
    for run in (yaml.safe_load(trained), chain.recipe):
        pipeline.evaluate_only(config_of(run | {"evaluate": documents}))
    records = [read_run(run) for run in open_runs([chain.folder, folder.parent / best.name])]
    assert [[record.name for record in group] for group in comparable(records)] == [["small", best.name]]
    protocol = records[0].verdict.protocol
    manifest = json.loads((resolve(best).made_shards / "manifest.json").read_text())
    assert protocol.tokenizer_hash == manifest["tokenizer_hash"]
    costs = [cost(record) for record in records]
    assert [(each.steps, each.tokens) for each in costs] == [(8, 8 * 8 * 32), (9, 9 * 4 * 32)]
    assert all(each.peak_mib > 50 and each.train_s > 0 for each in costs)
    decides = {path for path, _, decides in differing(records) if decides}
    assert {"positions.scale.kind", "train.lr"} <= decides
    assert "train.weight_decay" not in decides
    text = write_report(folder.parent / "report.html", [record.run for record in records])
    assert "### Settings that differ" in text.read_text()


def test_a_recipe_without_a_search_is_refused(recipe):
    with pytest.raises(SettingsError, match=r"search: the recipe has no such section"):
        tuning.tune(config_of(recipe | {"search": None}), resume=True)


def test_a_study_and_a_run_take_no_comparisons_name(recipe):
    (Path(recipe["storage"]) / "small" / "lanes").mkdir(parents=True)
    for command in (lambda config: tuning.tune(config, resume=True), pipeline.execute):
        with pytest.raises(SettingsError, match=r"small: holds a comparison of that name; choose another name"):
            command(config_of(recipe | ({"search": None} if command is pipeline.execute else {})))


def test_a_study_takes_no_runs_name(recipe):
    (Path(recipe["storage"]) / "small" / "model").mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"small: holds a training run of that name; choose another name"):
        tuning.tune(config_of(recipe), resume=True)


def test_a_damaged_journal_is_told_before_anything_is_done(recipe):
    config = config_of(recipe)
    run = resolve(config)
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(dump(run.config))
    journal = run.folder / "study.journal"
    Journal(journal).append_logs([{"op_code": 0, "study_name": "small"}, {"op_code": 2}])
    journal.write_bytes(journal.read_bytes().replace(b"small", b"smalk"))
    for command in (check, lambda config: tuning.tune(config, resume=True)):
        with pytest.raises(
            SettingsError, match=r"study\.journal: line 1 of 2 is damaged, its seal does not match; put it"
        ):
            command(config)
    journal.unlink()
    with pytest.raises(SettingsError, match=r"study\.journal: is missing, 2 lines were written; put it and study"):
        tuning.tune(config, resume=True)
    end_path(journal).unlink()
    (run.folder / "export").mkdir()
    (run.folder / "export" / "best.yaml").touch()
    with pytest.raises(SettingsError, match=r"study\.journal: is missing beside the exports of a study; put it back"):
        tuning.tune(config, resume=True)
    assert sorted(path.name for path in run.storage.iterdir()) == ["small"]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"cluster": {"cpus_per_worker": 64}}, r"cluster: is too small for one trial"),
        ({"evaluate": {"documents": 2, "windows": [32, 1_000_000]}}, r"the longest of .* held-out documents has"),
    ],
)
def test_what_no_trial_could_mend_ends_the_study_in_one_line(ray_cluster, recipe, changes, wanted):
    with pytest.raises(SettingsError, match=wanted):
        tuning.tune(config_of(recipe | changes), resume=False)
    assert read_status(Path(recipe["storage"]) / "small").state == "failed"


def start(path, ray_folder):
    command = [sys.executable, str(ROOT / "jobs" / "tune.py"), "--config", str(path), "--resume"]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"E2RAY_RAY_FOLDER": ray_folder, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def kill_at(path, journal, lines, ray_folder):
    """Start a study, kill its driver when its journal has so many lines, and later what the driver left."""
    process = start(path, ray_folder)
    end = time.monotonic() + 240
    try:
        while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < end, "the study did not get there in time"
            time.sleep(0.01)
        process.kill()
        process.wait()
        time.sleep(2)  # trials that outlive the driver have time to do harm
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def finished(study_folder, recipe):
    """Return the rows of the trials that a killed study has finished, exported from its journal alone."""
    from e2ray.search.study import Study
    from e2ray.stages.run import resolve

    run = resolve(config_of(recipe))
    copy = study_folder.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    shutil.copyfile(study_folder / "study.journal", copy / "study.journal")
    study = Study(copy, run.config, run.base_context_length)
    tuning.export_tables(type(run)(run.config.model_copy(update={"name": "copy"}), run.base_context_length), study)
    lines = (copy / "export" / "trials.csv").read_text().splitlines()
    done = {record.number for record in study.records() if record.finished}
    return {line for line in lines[1:] if int(line.split(",")[0]) in done}


def killed_and_resumed(recipe, tmp_path, ray_folder, points):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    folder = Path(recipe["storage"]) / "small"
    kept = set()
    for lines in points:
        kill_at(path, folder / "study.journal", lines, ray_folder)
        now = finished(folder, recipe)
        assert kept <= now, "a finished trial changed or was lost"
        kept = now
    tuning.tune(config_of(recipe), resume=True)
    exported = (folder / "export" / "trials.csv").read_text().splitlines()[1:]
    assert len(exported) == recipe["search"]["trials"] and kept <= set(exported)
    assert sorted(int(line.split(",")[0]) for line in exported) == list(range(recipe["search"]["trials"]))


@pytest.mark.slow
def test_a_study_killed_twice_ends_as_asked(ray_cluster, recipe, tmp_path, ray_folder):
    killed_and_resumed(recipe, tmp_path, ray_folder, (60, 110))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_study_killed_at_ten_random_points_ends_as_asked(ray_cluster, recipe, tmp_path, ray_folder):
    recipe["search"]["trials"] = 24
    points = sorted(random.Random(7).sample(range(2, 330), 10))
    killed_and_resumed(recipe, tmp_path, ray_folder, points)
