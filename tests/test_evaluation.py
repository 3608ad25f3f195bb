"""The evaluate stage on figures from closed forms; what measures them has tests of its own."""

import json

import pytest
from report.made_runs import TEXT, L, asked, passes, settings, surface

from e2ray import evaluation
from e2ray.config.base import SettingsError
from e2ray.run import Run


@pytest.fixture
def run(tmp_path, monkeypatch):
    config = settings(tmp_path, evaluate={"documents": 4, "stride": 8, "retrieval": {"trials": 4}})
    made = Run(config, L)
    (made.folder / "model").mkdir(parents=True)
    monkeypatch.setattr(evaluation, "_surface", lambda *arguments: (surface(), passes(), TEXT))
    monkeypatch.setattr(evaluation, "tuned_model", lambda *arguments: None)
    return made


def read(run, name):
    return json.loads((run.folder / name).read_text())


def test_retrieval_stands_beside_the_surface(run, monkeypatch, capsys):
    rows = [row | {"tokens": row["context_length"]} for row in asked(4)]
    monkeypatch.setattr(evaluation, "_retrieval", lambda *arguments: rows)
    found = evaluation.evaluate(run, "shards", None)
    assert read(run, "retrieval.json")["rows"] == rows
    effective = read(run, "effective.json")
    assert (effective["effective"], effective["retrieval_lengths"]) == (128, [64, 128])
    assert (effective["criterion"], effective["last"]) == ("last_tokens", 8)
    told = [line for line in found["verdict"]["sentences"] if line.startswith("Claimed")]
    assert len(told) == 1 and "effective 128" in told[0] and told[0] in capsys.readouterr().out


def test_retrieval_that_cannot_be_asked_is_one_line_and_the_rest_is_written(run, monkeypatch, capsys):
    def refuse(*arguments):
        raise SettingsError("retrieval: the tokenizer has no digits")

    monkeypatch.setattr(evaluation, "_retrieval", refuse)
    found = evaluation.evaluate(run, "shards", None)
    assert "retrieval left out: retrieval: the tokenizer has no digits\n" in capsys.readouterr().out
    assert found["rows"] and (run.folder / "evaluation-lengths.parquet").exists()
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
