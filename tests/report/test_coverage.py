import numpy as np
import pytest
from matplotlib import image as images

from e2ray.config.base import SettingsError
from e2ray.config.positions import PositionSettings
from e2ray.core.coverage import SEEN_PAIRS_PER_ROW, measure
from e2ray.report.sections.coverage import draw_coverage, write_coverage

L = 32


def found(name="e2llm", max_scale=8, scales=(1, 2, 4, 8), window=L):
    positions = PositionSettings.model_validate({"preset": name, "max_scale": max_scale})
    return measure(
        positions,
        window=window,
        base_context_length=L,
        scales=tuple(map(float, scales)),
        steps=50,
        batch_sequences=4,
        seed=0,
    )


def drawn_values(axis):
    (mesh,) = axis.collections[:1]
    return np.ma.asarray(mesh.get_array()).reshape(-1, L // 2)


def test_the_maps_show_the_pairs_and_leave_out_what_is_not_shown():
    coverage = found()
    every, ordinary, *_ = draw_coverage(coverage, title="a title").axes
    for axis, pairs in ((every, coverage.pairs), (ordinary, coverage.pairs_ordinary)):
        values = drawn_values(axis)
        hidden = pairs < SEEN_PAIRS_PER_ROW
        np.testing.assert_array_equal(np.ma.getmaskarray(values), hidden)
        np.testing.assert_array_equal(values.data[~hidden], pairs[~hidden])
        assert axis.get_xlim() == (0, L)
        assert [patch.get_hatch() for patch in axis.patches] == ["////"]
    assert drawn_values(ordinary).mask.sum() > drawn_values(every).mask.sum() + 10
    assert [label.get_text() for label in every.get_yticklabels()] == [
        "g = 1\n32 tokens", "g = 2\n64 tokens", "g = 4\n128 tokens", "g = 8\n256 tokens",
    ]  # fmt: skip


@pytest.mark.parametrize(("window", "limits"), [(L, [32, 16, 8, 4]), (2 * L, [32, 32, 16, 8])])
def test_the_line_stands_at_r_over_g_in_every_row(window, limits):
    axis = draw_coverage(found(window=window), title="a title").axes[0]
    (line,) = axis.lines
    wanted = [[limit, y] for row, limit in enumerate(limits) for y in (row - 0.5, row + 0.5)]
    np.testing.assert_allclose(line.get_xydata(), wanted)


def test_the_bars_are_the_shares_of_each_scale():
    coverage = found("pose", scales=(1, 8))
    bars = draw_coverage(coverage, title="a title").axes[2]
    widths = {bar.get_label(): [patch.get_width() for patch in bar] for bar in bars.containers}
    assert widths == {
        "distances shown (reach)": [row.reach for row in coverage.scales],
        "... between ordinary tokens": [row.reach_ordinary for row in coverage.scales],
        "overlap with real text": [row.overlap for row in coverage.scales],
        "share of the rows drawn": [0, 1],
    }
    assert [text.get_text() for text in bars.texts].count("no rows are drawn here") == 1


def test_the_title_and_the_number_of_the_whole_stand_above():
    coverage = found()
    above = draw_coverage(coverage, title="what is drawn").get_suptitle()
    assert above.splitlines()[0] == "what is drawn"
    assert " ".join(above.splitlines()[1:]) == coverage.headline


@pytest.mark.parametrize("scales", [(1,), (1, 2, 4, 8), (64,)])
def test_the_file_is_a_picture_with_maps_and_bars(tmp_path, scales):
    write_coverage(tmp_path / "coverage.png", found(scales=scales), title="a title")
    assert [path.name for path in tmp_path.iterdir()] == ["coverage.png"]
    pixels = images.imread(tmp_path / "coverage.png")[..., :3]
    height, width = pixels.shape[:2]
    assert width >= 1800
    assert height >= 400
    for third in np.array_split(pixels, 3, axis=1):
        assert 0.02 < (third.min(axis=2) < 0.9).mean() < 0.9


def test_a_name_that_is_no_png_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"coverage\.svg: the picture is a PNG; give it a name that ends in \.png"):
        write_coverage(tmp_path / "coverage.svg", found(), title="a title")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"file/coverage\.png"):
        write_coverage(tmp_path / "file" / "coverage.png", found(), title="a title")
