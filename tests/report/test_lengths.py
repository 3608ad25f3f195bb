import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.patches import Rectangle

from e2ray.config.base import SettingsError
from e2ray.evaluate.effective import effective_length, scale_table
from e2ray.evaluate.perplexity import Sums, cell
from e2ray.records.lengths import DocumentRow
from e2ray.records.retrieval import RetrievalRow
from e2ray.records.table import schema_of
from e2ray.report.evaluation import write_lengths
from e2ray.report.run_files import read_sums
from e2ray.report.sections.retrieval import draw_retrieval

TOKENS = np.array([100, 120])


def surface():
    return [
        Sums(model, window, window / 64, 16, np.array([0, 1]), TOKENS * 3.4, TOKENS)
        for model in ("base", "tuned")
        for window in (64, 128)
    ]


def rows(**changes):
    return [
        RetrievalRow(
            model=model, task=task, context_length=length, depth=depth, scale=length / 64, found=found, trials=4
        )
        for model, found in (("base", 0), ("tuned", 3))
        for task, depths in (("passkey", (0.1, 0.9)), ("common_words", (None,)))
        for length in (64, 128)
        for depth in depths
    ]


def write(folder, retrieval):
    sums = surface()
    write_lengths(folder, sums, scales=scale_table(sums, 64), effective=effective_length(sums, 64), retrieval=retrieval)


def test_files_hold_what_was_measured(tmp_path):
    write(tmp_path, rows())
    table = pq.read_table(tmp_path / "evaluation-documents.parquet")
    assert table.schema.equals(schema_of(DocumentRow))
    assert table.num_rows == 8
    one = table.to_pylist()[-1]
    assert one == {
        "model": "tuned",
        "window": 128,
        "scale": 2.0,
        "document": 1,
        "nll": pytest.approx(408.0),
        "tokens": 120,
    }
    assert json.loads((tmp_path / "effective.json").read_text())["effective"] == 128
    assert [row["served"] for row in json.loads((tmp_path / "scales.json").read_text())["lengths"]] == [1.0, 2.0]
    assert json.loads((tmp_path / "retrieval.json").read_text())["rows"] == [row.plain() for row in rows()]
    assert (tmp_path / "retrieval.png").stat().st_size > 5000


def test_sums_are_read_back_as_they_were(tmp_path):
    write(tmp_path, [])
    read = read_sums(tmp_path / "evaluation-documents.parquet", [cell(sums) for sums in surface()])
    assert [each.key for each in read] == [each.key for each in surface()]
    for one, other in zip(read, surface(), strict=True):
        assert one.stride == other.stride
        for name in ("documents", "nll", "tokens"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_sums_of_another_evaluation_are_refused(tmp_path):
    write(tmp_path, [])
    cells = [cell(sums) for sums in surface()]
    with pytest.raises(SettingsError, match=r"is of another evaluation than evaluation\.json beside it"):
        read_sums(tmp_path / "evaluation-documents.parquet", [cells[0].changed(scale=8.0), *cells[1:]])
    pq.write_table(pq.read_table(tmp_path / "evaluation-documents.parquet").drop(["nll"]), tmp_path / "less.parquet")
    with pytest.raises(SettingsError, match=r"less\.parquet: holds the columns .*, wanted \['model', 'window'"):
        read_sums(tmp_path / "less.parquet", cells)


def test_nothing_is_said_of_retrieval_that_was_not_asked(tmp_path):
    write(tmp_path, rows())
    write(tmp_path, [])  # nothing is left of an earlier measurement
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "effective.json",
        "evaluation-documents.parquet",
        "scales.json",
    ]


def panels(figure):
    return {axis.get_title(loc="left"): axis for axis in figure.axes if axis.get_title(loc="left")}


def test_a_panel_for_each_task_and_model_shows_each_share():
    found = panels(draw_retrieval(rows()))
    assert [*found] == ["base: passkey", "tuned: passkey", "base: common words", "tuned: common words"]
    assert [text.get_text() for text in found["tuned: passkey"].texts] == ["75%"] * 4
    assert [text.get_text() for text in found["base: common words"].texts] == ["0%"] * 2
    assert [label.get_text() for label in found["tuned: common words"].get_yticklabels()] == ["all"]
    assert [label.get_text() for label in found["tuned: passkey"].get_yticklabels()] == ["10%", "90%"]


def test_a_length_that_was_asked_for_has_a_column_of_its_own():
    axis = panels(draw_retrieval(rows(), context_lengths=(64, 512)))["tuned: common words"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["64", "128", "512"]
    assert len([patch for patch in axis.patches if isinstance(patch, Rectangle) and patch.get_hatch()]) == 1


def test_what_was_not_asked_is_hatched_not_zero():
    missing = [row for row in rows() if not (row.model == "tuned" and row.context_length == 128)]
    axis = panels(draw_retrieval(missing))["tuned: passkey"]
    assert [text.get_text() for text in axis.texts] == ["75%"] * 2
    hatched = [patch for patch in axis.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    assert len(hatched) == 2
