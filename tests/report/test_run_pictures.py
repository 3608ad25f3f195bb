import dataclasses

import numpy as np
import pytest

from e2ray.report.run_files import read_run
from e2ray.report.run_folder import open_run
from e2ray.report.sections.nll import draw_nll, nll_table
from e2ray.report.sections.surface import draw_surfaces
from e2ray.testing.runs import evaluated


def read(folder):
    return read_run(open_run(folder))


def labels(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def line(axis, label):
    return next(line for line in axis.get_lines() if line.get_label() == label).get_xydata()


def test_one_run_is_drawn_beside_its_base_and_against_it(tmp_path):
    record = read(evaluated(tmp_path))
    left, right = draw_nll([record]).axes
    assert labels(left) == ["small, at W/L", "base, untouched"]
    wanted = [[window, record.cell("tuned", window).nll] for window in record.windows]
    np.testing.assert_allclose(line(left, "small, at W/L"), wanted)
    assert labels(right) == ["minus the untouched base", "minus the base at W/L, untrained"]
    bars = right.containers[0]
    np.testing.assert_allclose(bars[0].get_xydata(), [[32, 0.0], [64, -0.4], [128, -0.8]], atol=1e-9)


def test_several_runs_are_drawn_against_the_first_and_their_base_once(tmp_path):
    records = [read(evaluated(tmp_path, name, better=better)) for name, better in (("one", 0.0), ("two", 0.05))]
    left, right = draw_nll(records).axes
    assert labels(left) == ["one, at W/L", "two, at W/L", "base, untouched"]
    assert labels(right) == ["one", "two"]
    assert list(right.containers[0][0].get_ydata()) == pytest.approx([-0.05] * 3)


def test_bases_that_differ_are_drawn_each(tmp_path):
    one, two = (read(evaluated(tmp_path, name)) for name in ("one", "two"))
    cells = [c.changed(nll=c.nll + 0.01) if c.model == "base" else c for c in two.cells]
    left, _ = draw_nll([one, dataclasses.replace(two, cells=cells)]).axes
    assert labels(left)[2:] == ["one: base, untouched", "two: base, untouched"]


def test_the_runs_own_method_without_training_stands_beside_the_others(tmp_path):
    record = read(evaluated(tmp_path))
    served = [cell for cell in record.cells if cell.model == "base" and cell.scale == cell.window / 32]
    more = [cell.changed(model="base_linear", nll=cell.nll + 0.5) for cell in served]
    beside = dataclasses.replace(record, cells=[*record.cells, *more], verdict=record.verdict.changed(method="YaRN"))
    left, right = draw_nll([beside]).axes
    names = ["base at W/L, untrained YaRN", "base at W/L, untrained linear"]
    assert labels(left) == ["small, at W/L", "base, untouched", *names]
    for name, cells in zip(names, (served, more), strict=True):
        np.testing.assert_allclose(line(left, name), [[cell.window, cell.nll] for cell in cells])
    assert labels(right)[1] == "minus the base at W/L, untrained YaRN"
    assert [column.title for column in nll_table([beside]).columns][-2:] == ["base at W/L, YaRN", "base at W/L, linear"]


@pytest.mark.parametrize("kept", [{"tuned"}, {"base"}])
def test_one_model_alone_is_drawn_without_the_other(tmp_path, kept):
    record = read(evaluated(tmp_path))
    alone = dataclasses.replace(record, cells=[cell for cell in record.cells if cell.model in kept])
    left, right = draw_nll([alone]).axes
    assert labels(left) == ["small, at W/L" if "tuned" in kept else "base, untouched"]
    assert [text.get_text() for text in right.texts] == ["not measured"]
    assert len(draw_surfaces(alone, [alone]).axes) == 2  # its surface and the bar of colours


def test_windows_and_scales_that_were_not_measured_are_hatched(tmp_path):
    record = read(evaluated(tmp_path, evaluate={"windows": [32, 64, 128, 4096], "scales": [1, 2, 4, 8]}))
    tuned, base, _ = draw_surfaces(record, [record]).axes
    for axis in (tuned, base):
        hatched = {patch.get_xy() for patch in axis.patches if patch.get_hatch()}
        assert hatched == {(2.5, row - 0.5) for row in range(4)} | {(column - 0.5, 2.5) for column in range(4)}
    assert tuned.get_title(loc="left") == "small, tuned"
