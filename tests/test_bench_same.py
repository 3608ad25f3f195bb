"""What the comparison of two commits notices, on folders made by hand: the last bit, a key, a file, a tensor."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "jobs"))

from bench_same import NOT_COMPARED, Explanation, differences, sorted_out

NLL = 2.25


@pytest.fixture
def sides(tmp_path):
    """Two folders of one run, alike in all that is compared and unlike in the rest."""
    for name, seconds in (("old", 1.5), ("new", 2.5)):
        run = tmp_path / name / "full"
        run.mkdir(parents=True)
        (tmp_path / name / "bases" / f"{name}-{seconds!r}0123456789abcdef").mkdir(parents=True)
        told = {"commit": name, "rows": [{"nll": NLL, "stderr": math.nan}], "eval_seconds": seconds, "digest": name}
        (run / "evaluation.json").write_text(json.dumps(told))
        lines = [{"step": n, "loss": 3.0 / n, "data_wait_s": seconds, "peak_memory_mib": seconds} for n in (1, 2, 3)]
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        (run / "trials.csv").write_text('number,value,positions\n0,1.25,"{""kind"": ""pose""}"\n')
        (run / "config.yaml").write_text("train: {lr: 0.001}\n")
        (run / "report.html").write_text(f"drawn in {seconds} s")
        table = pa.table({"window": [64, 128], "nll": [1.0, 2.0]})
        pq.write_table(table, run / "evaluation.parquet")
        with ipc.new_file(run / "0123456789abcdef.arrow", table.schema) as file:
            file.write_table(table)
        save_file({"weight": np.ones((2, 2), np.float32)}, run / "model.safetensors")
    return tmp_path / "old", tmp_path / "new"


def changed(sides, name, change):
    path = sides[1] / "full" / name
    path.write_text(change(path.read_text()))
    return differences(*sides)[0]


def test_what_tells_of_time_memory_and_commit_is_no_difference(sides):
    found, compared = differences(*sides)
    assert found == [] and compared > 20


@pytest.mark.parametrize(
    ("name", "old", "new", "key"),
    [
        ("evaluation.json", "2.25", repr(math.nextafter(NLL, 3)), "rows[0].nll"),
        ("evaluation.json", "NaN", "0.0", "rows[0].stderr"),
        ("evaluation.json", '"stderr": NaN', '"stderr": NaN, "more": 1', "rows[0].more"),
        ("evaluation.json", "2.25", "2", "rows[0].nll"),
        ("metrics.jsonl", '"step": 1', '"step": 1, "more": 0', "[0].more"),
        ("trials.csv", "pose", "cream", "[0].positions.kind"),
        ("config.yaml", "lr: 0.001", "lr: 1", "train.lr"),
    ],
)
def test_a_value_that_changes_in_its_last_bit_its_type_or_its_place_is_one(sides, name, old, new, key):
    found = changed(sides, name, lambda text: text.replace(old, new, 1))
    assert [(each.file, each.key) for each in found] == [(f"full/{name}", key)]


def test_a_tensor_a_table_and_shards_are_compared_by_what_they_hold(sides):
    run = sides[1] / "full"
    save_file({"weight": np.ones((2, 2), np.float64)}, run / "model.safetensors")
    table = pa.table({"window": [64, 128], "nll": [1.0, 2.5]})
    pq.write_table(table, run / "evaluation.parquet")
    with ipc.new_file(run / "0123456789abcdef.arrow", table.schema) as file:
        file.write_table(table)
    keys = {(each.file, each.key) for each in differences(*sides)[0]}
    assert keys == {
        ("full/model.safetensors", "weight.dtype"),
        ("full/model.safetensors", "weight.sha256"),
        ("full/evaluation.parquet", "[1].nll"),
        ("full/#.arrow", "rows"),
    }


def test_a_file_that_only_one_side_left_is_one_whatever_it_holds(sides):
    (sides[1] / "full" / "report.html").unlink()
    (sides[1] / "full" / "trackers.json").write_text("{}")
    found = {each.file: (each.old, each.new) for each in differences(*sides)[0]}
    assert found == {"full/report.html": ("present", None), "full/trackers.json": (None, "present")}


def test_a_reason_covers_what_it_names_and_nothing_else(sides):
    found = changed(sides, "metrics.jsonl", lambda text: text.replace("loss", "nll"))
    losses = Explanation(r".*/metrics\.jsonl", r"\[\d+\]\.loss", "losses are called NLL")
    left, explained = sorted_out(found, [losses, Explanation("none", ".*", "covers nothing")])
    assert [(group["key"], group["values"]) for group in left] == [("[*].nll", 3)]
    assert [each["reason"] for each in explained] == ["losses are called NLL"]
    assert explained[0]["differences"][0]["values"] == 3
    assert explained[0]["differences"][0]["first"]["old"] == "3.0"


@pytest.mark.parametrize("key", ["rows[3].nll", "digests.model", "rows[0].scale", "timed.loss", "items", "documents"])
def test_figures_are_not_left_out_by_their_names(key):
    assert not NOT_COMPARED.search(key)


@pytest.mark.parametrize(
    "key", ["digest", "[4].digest", "rows[3].eval_s", "schema_version", "hardware", "a.started_at"]
)
def test_what_changes_from_run_to_run_is_left_out(key):
    assert NOT_COMPARED.search(key)
