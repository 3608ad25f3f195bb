"""The evaluate stage on figures from closed forms; what measures them has tests of its own."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from e2ray.config.base import SettingsError
from e2ray.config.suites import SuiteSettings
from e2ray.core.model_folder import seal
from e2ray.evaluate.plausible import ImplausibleError
from e2ray.evaluate.weights import weights_digest
from e2ray.records.model import ModelTraining
from e2ray.records.retrieval import RetrievalRow
from e2ray.records.run import Training
from e2ray.stages import evaluate as evaluation
from e2ray.stages import export as exporting
from e2ray.stages import suites
from e2ray.stages.run import ResolvedRun
from e2ray.testing.runs import TEXT, L, asked, passes, settings, surface
from e2ray.train.record import note_training


@pytest.fixture
def run(tmp_path, monkeypatch):
    config = settings(tmp_path, evaluate={"documents": 4, "stride": 8, "retrieval": {"trials": 4}})
    made = ResolvedRun(config, L)
    (made.folder / "model").mkdir(parents=True)
    save_file({"weight": np.ones(8, np.float32)}, made.folder / "model" / "model.safetensors")
    monkeypatch.setattr(evaluation, "_surface", lambda *arguments: (surface(), passes(), TEXT))
    monkeypatch.setattr(evaluation, "models_of", lambda *arguments: {"base": None, "tuned": None})
    return made


def read(run, name):
    return json.loads((run.folder / name).read_text())


def rows_asked():
    return [RetrievalRow.model_validate(row | {"tokens": row["context_length"]}) for row in asked(4)]


def test_retrieval_stands_beside_the_surface(run, monkeypatch, capsys):
    rows = rows_asked()
    monkeypatch.setattr(evaluation, "_retrieval", lambda *arguments: rows)
    found = evaluation.evaluate(run, "shards", None)
    assert read(run, "retrieval.json")["rows"] == [row.plain() for row in rows]
    effective = read(run, "effective.json")
    assert (effective["effective"], effective["retrieval_lengths"]) == (128, [64, 128])
    assert (effective["criterion"], effective["last"]) == ("last_tokens", 8)
    told = [line for line in found.verdict.sentences if line.startswith("Claimed")]
    assert len(told) == 1 and "effective 128" in told[0] and told[0] in capsys.readouterr().out


def test_retrieval_that_cannot_be_asked_is_one_line_and_the_rest_is_written(run, monkeypatch, capsys):
    def refuse(*arguments):
        raise SettingsError("retrieval: the tokenizer has no digits")

    monkeypatch.setattr(evaluation, "_retrieval", refuse)
    found = evaluation.evaluate(run, "shards", None)
    assert "retrieval left out: retrieval: the tokenizer has no digits\n" in capsys.readouterr().out
    assert found.rows and (run.folder / "evaluation-lengths.parquet").exists()
    assert not (run.folder / "retrieval.json").exists()
    assert (read(run, "effective.json")["effective"], read(run, "effective.json")["retrieval_lengths"]) == (None, [])


def test_the_surface_is_written_before_retrieval_fails(run, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("retrieval failed: a worker died")

    monkeypatch.setattr(evaluation, "_retrieval", fail)
    with pytest.raises(RuntimeError, match="a worker died"):
        evaluation.evaluate(run, "shards", None)
    for name in ("evaluation.json", "scales.json", "effective.json", "evaluation-lengths.parquet"):
        assert (run.folder / name).exists()


@pytest.fixture
def measured(run, monkeypatch):
    monkeypatch.setattr(evaluation, "_retrieval", lambda *arguments: rows_asked())
    evaluation.evaluate(run, "shards", None)
    return run


@pytest.mark.parametrize(
    ("named", "device", "read_with", "said"),
    [
        ("auto", "cpu", "sdpa", ""),
        ("sdpa", "cpu", "sdpa", ""),
        ("eager", "cpu", "eager", "model.attention: eager here, sdpa in the training\n"),
        ("auto", "cuda", "auto", ""),  # of the other device, on which there is another choice
    ],
)
def test_both_models_are_read_with_the_attention_of_the_training_unless_the_recipe_names_one(
    tmp_path, monkeypatch, capsys, named, device, read_with, said
):
    monkeypatch.setattr(evaluation, "wants_gpu", lambda settings: False)
    monkeypatch.setattr(
        evaluation, "remote", lambda name, function, *arguments, use_gpu, tells=False: function(*arguments)
    )
    sizes = settings(tmp_path).model.model_dump() | {"attention": named}
    run = ResolvedRun(settings(tmp_path, model=sizes), L)
    run.folder.mkdir(parents=True)
    models = evaluation.models_of(run, run.config.model)
    assert {each.attention for each in models.values()} == {named}
    note_training(run.folder, Training(device=device, dtype="float32", attention="sdpa"))
    capsys.readouterr()
    models = evaluation.models_of(run, run.config.model)
    assert {name: each.attention for name, each in models.items()} == {"base": read_with, "tuned": read_with}
    assert capsys.readouterr().out == said or device == "cuda"


def test_an_evaluation_names_the_weights_it_measured(measured):
    named = weights_digest(measured.folder / "model")
    assert read(measured, "evaluation.json")["verdict"]["protocol"]["weights_digest"] == named
    assert read(measured, "scales.json")["weights_digest"] == named


@pytest.mark.parametrize("file", ["evaluation.json", "scales.json"])
def test_nothing_is_exported_with_an_evaluation_of_other_weights(measured, file):
    save_file({"weight": np.zeros(8, np.float32)}, measured.folder / "model" / "model.safetensors")
    if file == "scales.json":
        (measured.folder / "evaluation.json").unlink()
    wanted = rf"{file}: was measured with other weights than .*/small/model; run `e2ray evaluate` again"
    with pytest.raises(SettingsError, match=wanted):
        exporting.exporting(measured, None)


@pytest.mark.parametrize("stopped", [False, True])
def test_the_card_says_how_many_steps_a_training_made_and_what_ended_it(measured, monkeypatch, stopped):
    model = measured.folder / "model"
    seal(model, None, training=ModelTraining(settings={}, step=17, tokens=1234, stopped=stopped))
    told = []
    monkeypatch.setattr(exporting, "write_export", lambda *arguments, run, **options: told.append(run.facts))
    exporting.exporting(measured, measured.config.model)()
    assert told == [{"steps": 17, "tokens": 1234} | ({"ended by": "train.stop"} if stopped else {})]


def test_no_suite_is_asked_at_scales_of_other_weights(measured, monkeypatch):
    save_file({"weight": np.zeros(8, np.float32)}, measured.folder / "model" / "model.safetensors")
    monkeypatch.setattr(suites, "remote_each", lambda *arguments, **options: pytest.fail("was asked"))
    asking = measured.config.evaluate.model_copy(update={"suites": SuiteSettings(tasks=("piqa",))})
    run = ResolvedRun(measured.config.model_copy(update={"evaluate": asking}), L)
    with pytest.raises(SettingsError, match=r"scales\.json: was measured with other weights than .*/small/model"):
        suites.suites(run, asking.suites, "shards", None)


def test_an_export_of_an_earlier_evaluation_is_told(measured, capsys):
    exporting.tell_old_export(measured)  # there is none
    export = measured.folder / "export"
    export.mkdir()
    (export / "scales.json").write_bytes((measured.folder / "scales.json").read_bytes())
    exporting.tell_old_export(measured)
    assert "export" not in capsys.readouterr().out
    (export / "scales.json").write_text("{}")
    exporting.tell_old_export(measured)
    assert capsys.readouterr().out == f"{export}: serves by an earlier evaluation; `e2ray export` writes it anew\n"
    paper = measured.config.export.model_copy(update={"scale": "paper"})
    exporting.tell_old_export(ResolvedRun(measured.config.model_copy(update={"export": paper}), L))
    assert capsys.readouterr().out == ""


def test_a_tuned_model_that_cannot_be_the_trained_one_fails_and_its_figures_stay(run):
    nll = next(each.mean for each in surface() if (each.model, each.window, each.scale) == ("tuned", L, 1.0))
    line = {"step": 6, "tokens": 1536, "tokens_per_second": 1.0, "loss_by_scale": {"1": nll - 3.5}}
    (run.folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    run = replace(run, config=run.config.model_copy(update={"evaluate": plain(run.config.evaluate)}))
    with pytest.raises(ImplausibleError, match=rf"is {nll:.3f}, its last training loss was {nll - 3.5:.3f}"):
        evaluation.evaluate(run, "shards", None)
    assert read(run, "evaluation.json")["rows"]


def plain(settings):
    return settings.model_copy(update={"retrieval": None})
