import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib import image as images

from e2ray.config.base import SettingsError
from e2ray.evaluate.perplexity import Cell
from e2ray.evaluate.verdict import verdict
from e2ray.records.evaluation import Evaluation
from e2ray.records.table import schema_of
from e2ray.report.evaluation import write_evaluation
from e2ray.report.sections.surface import draw_evaluation as draw

L = 64


def surface(models=("tuned", "base"), missing=()):
    cells = []
    for model in models:
        for row, window in enumerate((64, 128, 256)):
            for column, scale in enumerate((1.0, 2.0, 4.0)):
                nll = 3.4 + 0.3 * abs(row - column) * (2 if model == "base" else 1)
                if (model, window, scale) not in missing:
                    fields = (model, window, scale, nll, math.exp(nll), 999, 3, 16, 0.05)
                    cells.append(Cell(**dict(zip(Cell.model_fields, fields, strict=False))))
    return cells


def test_rows_survive_json_and_parquet_unchanged(tmp_path):
    cells = surface()
    cells[0] = cells[0].changed(stderr=None)
    found = verdict(cells, L)
    write_evaluation(tmp_path, cells, found)
    written = Evaluation.read(tmp_path / "evaluation.json")
    assert (list(written.rows), written.verdict) == (cells, found)
    table = pq.read_table(tmp_path / "evaluation.parquet")
    assert table.schema.equals(schema_of(Cell))
    assert [Cell(**row) for row in table.to_pylist()] == cells
    assert json.loads((tmp_path / "evaluation.json").read_text())["rows"] == table.to_pylist()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "evaluation.json", "evaluation.parquet", "evaluation.png",
    ]  # fmt: skip


def test_the_picture_is_drawn(tmp_path):
    write_evaluation(tmp_path, surface(), verdict(surface(), L))
    pixels = images.imread(tmp_path / "evaluation.png")
    height, width = pixels.shape[:2]
    assert width >= 1200
    assert height >= 600
    for third in np.array_split(pixels[..., :3], 3, axis=1):  # curves, tuned surface, base surface
        assert len(np.unique((third * 255).astype(int).reshape(-1, 3), axis=0)) > 100
        assert 0.02 < (third.min(axis=2) < 0.9).mean() < 0.98


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_each_cell_shows_its_number_and_the_best_of_a_window_is_starred():
    curves, tuned, base, _ = draw(surface(), L).axes
    assert sorted(texts(tuned)) == sorted(
        ["3.40 ★", "3.70", "4.00", "3.70", "3.40 ★", "3.70", "4.00", "3.70", "3.40 ★"]
    )
    assert "4.60" in texts(base)
    assert [label.get_text() for label in tuned.get_xticklabels()] == ["1", "2", "4"]
    assert [label.get_text() for label in tuned.get_yticklabels()] == ["64", "128", "256"]
    assert [text.get_text() for text in curves.get_legend().get_texts()] == [
        "base, untouched (g = 1)", "base, g = W/L without training", "tuned, g = W/L", "tuned, best g",
    ]  # fmt: skip


def test_curves_show_the_cells_they_name():
    curves = draw(surface(), L).axes[0]
    lines = {container.get_label(): container[0] for container in curves.containers}
    np.testing.assert_allclose(lines["tuned, g = W/L"].get_xydata(), [[64, 3.4], [128, 3.4], [256, 3.4]])
    np.testing.assert_allclose(lines["base, untouched (g = 1)"].get_xydata(), [[64, 3.4], [128, 4.0], [256, 4.6]])


def test_a_further_method_without_training_is_a_curve_and_no_part_of_a_surface():
    linear = [
        surface()[0].changed(model="base_linear", window=window, scale=window / L, nll=9.0, perplexity=math.exp(9.0))
        for window in (64, 128, 256)
    ]
    curves, tuned, _, bar = draw([*surface(), *linear], L, method="YaRN").axes
    names = [text.get_text() for text in curves.get_legend().get_texts()]
    assert names[1:3] == ["base, linear, g = W/L without training", "base, YaRN, g = W/L without training"]
    assert len(texts(tuned)) == 9 and bar.get_ylim()[1] < 9
    lines = {container.get_label(): container[0] for container in curves.containers}
    np.testing.assert_allclose(lines[names[1]].get_xydata(), [[64, 9.0], [128, 9.0], [256, 9.0]])


def hatched(axis):
    return sorted(patch.get_xy() for patch in axis.patches if patch.get_hatch())


def test_missing_cells_and_windows_look_missing():
    cells = surface(missing={("base", 128, 4.0)})
    _, tuned, base, _ = draw(cells, L, missing_windows=(512,)).axes
    assert hatched(tuned) == [(-0.5, 2.5), (0.5, 2.5), (1.5, 2.5)]
    assert hatched(base) == [(-0.5, 2.5), (0.5, 2.5), (1.5, 0.5), (1.5, 2.5)]
    assert len(texts(base)) == 8


def test_one_model_alone_is_drawn_without_the_other():
    figure = draw(surface(models=("tuned",)), L)
    assert [axis.get_title(loc="left") for axis in figure.axes[:2]] == ["NLL by window", "tuned model"]


def test_one_cell_is_a_picture_too(tmp_path):
    cells = surface()[:1]
    write_evaluation(tmp_path, cells, verdict(cells, L))
    assert images.imread(tmp_path / "evaluation.png").std() > 0.05


def test_a_second_writing_replaces_the_first(tmp_path):
    write_evaluation(tmp_path, surface(), verdict(surface(), L))
    write_evaluation(tmp_path, surface(models=("tuned",)), verdict(surface(models=("tuned",)), L))
    assert len(Evaluation.read(tmp_path / "evaluation.json").rows) == 9
    assert pq.read_table(tmp_path / "evaluation.parquet").num_rows == 9


def test_bad_input_is_named(tmp_path):
    with pytest.raises(SettingsError, match="no measured cells to write"):
        write_evaluation(tmp_path, [], verdict(surface(), L))
    with pytest.raises(FileNotFoundError, match=r"evaluation\.json: not found; wanted an evaluation; run `e2ray"):
        Evaluation.read(tmp_path / "evaluation.json")
    (tmp_path / "other.json").write_text('{"rows": [{"window": 3}], "verdict": {}}')
    with pytest.raises(SettingsError, match=r"is damaged, it lacks rows\.0\.model; wanted an evaluation; run `e2ray"):
        Evaluation.read(tmp_path / "other.json")
