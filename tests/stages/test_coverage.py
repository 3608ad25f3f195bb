import pytest

from e2ray.config.base import SettingsError
from e2ray.config.positions import PositionSettings
from e2ray.core.coverage import measure
from e2ray.report.sections.coverage import lines, sentences
from e2ray.stages.coverage import coverage

L = 128


def positions(name="e2llm", max_scale=16, **rest):
    return PositionSettings.model_validate({"preset": name, "max_scale": max_scale, **rest})


def found(settings, *, window=L, scales=(1, 2, 4, 8, 16)):
    return measure(
        settings,
        window=window,
        base_context_length=L,
        scales=tuple(map(float, scales)),
        steps=100,
        batch_sequences=8,
        seed=0,
    )


def plan(settings=None, **changes):
    shown = []
    where = {
        "name": "a-run", "window": L, "base_context_length": L, "steps": 100, "batch_sequences": 8, "seed": 0,
    }  # fmt: skip
    result = coverage(settings or positions(), **(where | changes), show=shown.append)
    return result, shown


def test_the_plan_shows_a_row_per_served_scale_and_says_what_it_means(tmp_path):
    result, shown = plan(out=tmp_path / "coverage.png")
    assert [row.scale for row in result.scales] == [1, 2, 4, 8, 16]
    assert shown[:-1] == lines(result, "a-run")
    assert shown[0] == f"a-run: {result.headline}"
    header, *rows = shown[2:8]
    assert header.split()[:6] == ["scale", "g", "window", "W", "rows", "reach"]
    assert len({len(line) for line in (header, *rows)}) == 1
    assert [row.split()[:2] for row in rows] == [
        ["1", "128"], ["2", "256"], ["4", "512"], ["8", "1,024"], ["16", "2,048"],
    ]  # fmt: skip
    assert shown[-1] == f"picture: {tmp_path / 'coverage.png'}"
    assert (tmp_path / "coverage.png").stat().st_size > 10_000


def test_without_a_file_name_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, shown = plan()
    assert not list(tmp_path.iterdir())
    assert not any(line.startswith("picture") for line in shown)
    assert max(map(len, shown[-4:])) <= 140


def test_the_plan_is_served_at_the_windows_that_will_be_read():
    result, _ = plan(windows=(64, 128, 384, 4096))
    assert [row.scale for row in result.scales] == [1, 3, 32]


def test_the_plan_measures_the_draws_of_the_run():
    result, _ = plan()
    assert result.scales == found(positions()).scales
    assert plan(seed=1)[0].scales != result.scales


def test_e2llm_is_told_that_far_distances_come_from_four_tokens():
    settings = PositionSettings.model_validate(
        {"scale": {"kind": "fixed", "max_scale": 16.0}, "placement": {"kind": "prefix", "prefix": 4}}
    )
    (text,) = sentences(found(settings, scales=(16,)))
    assert text == (
        "At scale 16 (W = 2,048) the draws show 100 % of the distances up to L = 128, 6 % between ordinary tokens, "
        "which stand at most 7.7 tokens apart. 94 % of the pairs are nearer than R = 128 tokens before scaling; in "
        "real text of W tokens it is 12 %. So the long distances are shown almost only between the first 4 tokens "
        "and the rest."
    )


def test_pose_is_told_which_scales_it_never_draws():
    unseen, largest = sentences(found(positions("pose")))
    assert unseen == "No row is drawn near scale 1, 2, 4, 8: the model will not be trained for reading there."
    assert "100 % between ordinary tokens" in largest
    assert "first 4 tokens and the rest" not in largest


def test_randpos_is_told_that_its_neighbours_are_torn_apart():
    assert sentences(found(positions("randpos"), scales=(16,)))[-1] == (
        "At scale 16 fewer than half of the neighbouring tokens stay neighbours; such rows show every distance and are "
        "still known to train poorly."
    )


def test_distances_that_the_base_model_never_met_are_told():
    native = PositionSettings.model_validate({"preset": "native"})
    told = sentences(found(native, window=2 * L, scales=(1,)))
    share = sum(2 * L - k for k in range(L, 2 * L)) / (L * (2 * L - 1))
    assert told[-1] == (
        f"{share:.0%} of all pairs stand 128 tokens (L) apart or more, at angles the base model never met."
    ).replace("%", " %")
    assert len(sentences(found(native, scales=(1,)))) == 1


@pytest.mark.parametrize(("preset", "told"), [("e2llm", False), ("e2yarn", True)])
def test_what_distances_mean_under_another_method_is_told(preset, told):
    said = []
    coverage(
        PositionSettings.model_validate({"preset": preset, "max_scale": 4}),
        name="x", window=32, base_context_length=32, steps=4, batch_sequences=4, seed=0, show=said.append,
    )  # fmt: skip
    assert any(line.startswith("Read by YaRN: distances are counted as pairs see them") for line in said) is told


def test_a_shared_draw_is_told():
    _, shown = plan(positions("clex"))
    assert shown[-1].endswith("the first 800 of the run's 800 rows (100 draws, each shared by a step).")


def test_a_placement_that_does_not_fit_the_window_is_one_clear_line(tmp_path):
    with pytest.raises(SettingsError, match="the coverage cannot be measured: prefix needs prefix below the window"):
        plan(window=4, out=tmp_path / "coverage.png")
    assert not list(tmp_path.iterdir())
