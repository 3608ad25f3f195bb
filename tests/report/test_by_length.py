import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e2ray.config.base import SettingsError
from e2ray.records.lengths import LengthCell
from e2ray.records.table import schema_of
from e2ray.report.evaluation import write_by_length
from e2ray.report.run_files import read_by_length
from e2ray.report.sections.lengths import draw_by_length
from e2ray.testing.runs import SCALES, SPREAD, WINDOWS, by_length, nll


def test_cells_survive_the_file(tmp_path):
    write_by_length(tmp_path, by_length())
    path = tmp_path / "evaluation-lengths.parquet"
    assert pq.read_schema(path).equals(schema_of(LengthCell))
    assert read_by_length(path) == by_length()
    assert (tmp_path / "evaluation-lengths.png").stat().st_size > 5000


def test_without_a_cell_nothing_is_left_of_an_earlier_time(tmp_path):
    write_by_length(tmp_path, by_length())
    write_by_length(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_something_else_is_refused(tmp_path):
    path = tmp_path / "evaluation-lengths.parquet"
    path.write_text("no table")
    with pytest.raises(SettingsError, match=r"evaluation-lengths\.parquet: is damaged \("):
        read_by_length(path)
    pq.write_table(pa.table({"window": [1]}), path)
    with pytest.raises(SettingsError, match=r"holds the columns \['window'\], wanted \['model', 'context_length'"):
        read_by_length(path)


def test_a_panel_for_each_model_has_a_curve_for_each_scale():
    figure = draw_by_length(by_length())
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["tuned model", "base model"]
    tuned = {line.get_label(): line for line in figure.axes[0].lines}
    assert [*tuned] == [f"{scale:g}" for scale in SCALES]
    wanted = [nll("tuned", window, 2.0) + SPREAD.mean() for window in WINDOWS]
    assert list(tuned["2"].get_ydata()) == pytest.approx(wanted)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1\nto 32", "33\nto 64", "65\nto 128"]


def test_a_scale_that_was_left_out_has_no_curve_and_the_others_keep_their_looks():
    whole = draw_by_length(by_length()).axes[0].lines
    partly = draw_by_length([cell for cell in by_length() if (cell.model, cell.scale) != ("tuned", 2.0)]).axes[0].lines
    assert len(partly[1].get_xdata()) == 0
    assert [line.get_color() for line in partly] == [line.get_color() for line in whole]
