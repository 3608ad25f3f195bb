import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from e2ray.config.base import SettingsError
from e2ray.evaluate.weights import weights_digest
from e2ray.files import read_told
from e2ray.records.table import write_table
from e2ray.report.run_files import comparable, difference, read_run
from e2ray.report.run_folder import open_run
from e2ray.testing.runs import SPREAD, TEXT, TOKENS, WINDOWS, asked, begun, evaluated, nll


def read(folder):
    return read_run(open_run(folder))


def test_every_file_of_an_evaluation_is_read(tmp_path):
    record = read(evaluated(tmp_path, retrieval=asked()))
    offset = (TOKENS * SPREAD).sum() / TOKENS.sum()
    assert record.cell("tuned", 64).nll == pytest.approx(nll("tuned", 64, 2.0) + offset)
    assert record.cell("base", 64, 1.0).nll == pytest.approx(nll("base", 64, 1.0) + offset)
    assert record.cell("tuned", 4096) is None
    assert record.best("base", 128).scale == 1.0
    assert (record.windows, record.base_context_length) == ([*WINDOWS], 32)
    np.testing.assert_array_equal(record.sums_of(record.cell("tuned", 64)).tokens, TOKENS)
    assert len(record.retrieval) == len(asked())
    assert record.effective.claimed == 128
    assert record.scored == (TEXT["tokenizer_hash"], TEXT["documents_digest"], 8)
    assert record.suites == ()
    assert {(each.model, each.context_length, each.scale): each.bucket_nll for each in record.by_length}[
        "tuned", 64, 2.0
    ] == pytest.approx(nll("tuned", 64, 2.0) + SPREAD.mean())


def test_a_run_without_an_evaluation_is_empty(tmp_path):
    record = read(begun(tmp_path))
    assert (record.cells, record.sums, record.by_length, record.scales) == ([], [], [], None)
    assert record.retrieval == []
    assert record.cell("tuned", 32) is None
    assert [line.step for line in record.metrics] == [4]


def test_windows_asked_for_and_not_measured_are_known(tmp_path):
    evaluate = {"windows": [32, 64, 128, 4096], "scales": [1, 2, 4]}
    assert read(evaluated(tmp_path, evaluate=evaluate)).windows == [32, 64, 128, 4096]


def test_runs_are_comparable_where_they_scored_the_same_text_the_same_way(tmp_path):
    made = {
        "plain": TEXT,
        "same": TEXT,
        "tokens": TEXT | {"tokenizer_hash": "c" * 64},
        "documents": TEXT | {"documents_digest": "d" * 64},
        "old": {},
        "older": {},
    }
    records = [read(evaluated(tmp_path, name, text=text)) for name, text in made.items()]
    records.append(read(begun(tmp_path, "unfinished")))
    groups = [[record.name for record in group] for group in comparable(records)]
    assert groups == [["plain", "same"], ["tokens"], ["documents"], ["old"], ["older"]]


def test_differences_leave_the_spread_of_the_documents_out(tmp_path):
    one, other = read(evaluated(tmp_path, "one")), read(evaluated(tmp_path, "other", better=0.05))
    found = difference((other, other.cell("tuned", 64)), (one, one.cell("tuned", 64)))
    assert (found.nats, found.low, found.high) == pytest.approx((-0.05, -0.05, -0.05))
    assert found.told_apart
    same = difference((one, one.cell("tuned", 64)), (one, one.cell("tuned", 64)))
    assert (same.nats, same.told_apart) == (0.0, False)
    assert difference((one, None), (other, other.cell("tuned", 64))) is None


def test_without_sums_a_difference_has_no_interval(tmp_path):
    one, other = evaluated(tmp_path, "one"), evaluated(tmp_path, "other", better=0.05)
    (one / "evaluation-documents.parquet").unlink()
    one, other = read(one), read(other)
    found = difference((other, other.cell("tuned", 64)), (one, one.cell("tuned", 64)))
    assert (found.low, found.high, found.told_apart) == (None, None, False)


def cut_rows(path):
    write_table(path, pq.read_table(path).slice(4))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("evaluation.json", lambda path: path.write_text("{"), "is no JSON"),
        ("evaluation.json", lambda path: path.write_text('{"rows": 3}'), "is damaged, rows is 3, wanted a list"),
        (
            "evaluation.json",
            lambda path: path.write_text('{"rows": [], "verdict": {}}'),
            "is damaged, rows is a list, wanted at least 1 item",
        ),
        ("evaluation-documents.parquet", lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
        ("evaluation-lengths.parquet", lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
        ("evaluation-documents.parquet", cut_rows, "is of another evaluation than evaluation.json"),
        (
            "scales.json",
            lambda path: path.write_text("[]"),
            "is damaged, it holds a list; wanted base_context_length and lengths",
        ),
        (
            "effective.json",
            lambda path: path.write_text("{}"),
            "is damaged, it lacks claimed; wanted the effective",
        ),
        (
            "retrieval.json",
            lambda path: path.write_text('{"rows": [{"task": "passkey"}]}'),
            r"it lacks rows\.0\.context_length",
        ),
    ],
)
def test_a_damaged_file_of_an_evaluation_is_named_with_the_next_move(tmp_path, name, damage, message):
    folder = evaluated(tmp_path, retrieval=asked())
    damage(folder / name)
    with pytest.raises(
        SettingsError, match=f"{name}: .*{message}.*; `e2ray evaluate --config .*` measures the run anew"
    ):
        read(folder)


def test_damaged_metrics_and_scores_are_named(tmp_path):
    folder = evaluated(tmp_path)
    scores = folder / "suites.json"
    scores.write_text(json.dumps({"scores": [{"model": "base", "task": "piqa", "metric": "acc"}]}))
    with pytest.raises(SettingsError, match=r"suites\.json: is damaged, it lacks scores\.0\.value; wanted the scores"):
        read(folder)
    scores.unlink()
    (folder / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(SettingsError, match=r"metrics\.jsonl: line 1: is damaged, it lacks step; wanted a logged step"):
        read(folder)
    (folder / "metrics.jsonl").write_text("{\n{}\n")
    with pytest.raises(SettingsError, match=r"metrics\.jsonl: is damaged"):
        read(folder)


def test_metrics_that_end_before_the_run_are_told(tmp_path):
    folder = evaluated(tmp_path)
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(
        SettingsError, match=r"metrics\.jsonl: ends at step 4, the run at step 8: lines are missing; put"
    ):
        read(folder)
    path.write_text('{"step": 8, "tokens": "many", "tokens_per_second": 1.0}\n')
    with pytest.raises(
        SettingsError, match=r"metrics\.jsonl: line 1: is damaged, tokens is 'many', wanted a whole number"
    ):
        read(folder)
    path.unlink()
    assert read(folder).metrics == []


@pytest.mark.parametrize("name", ["evaluation.json", "scales.json"])
def test_an_evaluation_of_other_weights_is_refused(tmp_path, name):
    folder = evaluated(tmp_path)
    save_file({"weight": np.ones(8, np.float32)}, folder / "model" / "model.safetensors")
    read(folder)  # an older one, which names no weights
    content = read_told(folder / name, wanted="it")[0]
    for digest in (weights_digest(folder / "model"), "0" * 64):
        (content if name == "scales.json" else content["verdict"]["protocol"])["weights_digest"] = digest
        (folder / name).write_text(json.dumps(content))
        if digest != "0" * 64:
            read(folder)
    wanted = rf"{name}: was measured with other weights than .*/small/model; `e2ray evaluate --config .*` measures the"
    with pytest.raises(SettingsError, match=wanted) as error:
        read(folder)
    assert "again" not in str(error.value)
