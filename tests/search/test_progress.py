"""What a study says while it runs."""

from e2ray.config.methods import PRESETS
from e2ray.config.positions import PositionSettings
from e2ray.search.progress import Progress, best_of, line_of, name_of, positions_in_words, table
from e2ray.testing.studies import made_up


def words(**settings):
    return positions_in_words(PositionSettings.model_validate(settings).model_dump(mode="json"))


def test_draws_in_words():
    assert words(preset="e2llm", max_scale=16) == "uniform_int, prefix(4)"
    assert words(preset="clex", max_scale=16) == "uniform_int, sorted_random(pinned, pinned), per step"
    assert words(preset="endprompt", max_scale=16) == "fixed(16), terminal(32) ends(1)"
    scale = {"kind": "power", "max_scale": 16, "exponent": -0.75, "native_share": 0.25}
    placement = {"kind": "random_breaks", "num_breaks": 3}
    assert words(scale=scale, placement=placement) == "power(-0.75) 25% native, random_breaks(3)"
    assert words(preset="e2yarn", max_scale=8) == "uniform_int, prefix(4), yarn(32, 1) T 0.1"
    colder = {"kind": "ramp_power", "fast": 8.5, "temperature": {"kind": "none"}}
    assert words(preset="pi", max_scale=8, method=colder) == "fixed(8), none, ramp_power(8.5, 1) T 0"
    listed = {"kind": "factors", "factors": [1.0, 2.0], "max_scale": 8.0}
    assert words(preset="pi", max_scale=8, method=listed) == "fixed(8), none, factors(8) T 0.1"
    assert len({words(preset=name, max_scale=16) for name in PRESETS}) == len(PRESETS)


def test_a_line_names_the_trial_its_numbers_and_the_best():
    found = made_up(45)
    best = best_of(found.records)
    for record in found.records:
        line = line_of(record, found.facts, best)
        assert line.startswith(f"trial {record.number} of {found.facts.trials} {record.state}")
        assert name_of(record) in line and "\n" not in line
        if record.state == "failed":
            assert record.reason in line
        else:
            assert f"value {record.value:.4f}" in line and f"best {best.value:.4f} (trial {best.number})" in line


def test_the_best_is_complete_and_no_repeat():
    found = made_up(45)
    best = best_of(found.records)
    others = [r for r in found.records if r.state == "complete" and not r.repeat]
    assert best.value == min(record.value for record in others)
    assert best_of([r for r in found.records if r.state != "complete"]) is None


def test_the_table_counts_states_and_sorts_by_value():
    found = made_up(45)
    lines = table(found.records, found.facts, elapsed_s=3725).splitlines()
    counts = [sum(r.state == state for r in found.records) for state in ("complete", "pruned", "failed")]
    assert f"({counts[0]} complete, {counts[1]} stopped early, {counts[2]} failed" in lines[0] and "1:02:05" in lines[0]
    values = [float(line.split()[3]) for line in lines[2:] if line.split()[1] == "complete"]
    assert values == sorted(values) and len(values) == 5


def test_a_table_comes_with_exports_and_gauges(monkeypatch):
    found = made_up(45)
    shown, exported, gauged = [], [], []
    progress = Progress(
        lambda: found.records,
        found.facts,
        show=shown.append,
        every_s=0.0,
        export=lambda: exported.append(1),
        gauges=lambda states, best: gauged.append((states, best)),
    )
    progress.told(0)
    assert len(shown) == 2 and exported == [1]
    ((states, best),) = gauged
    assert sum(states.values()) == 45 and best == best_of(found.records).value
    assert states["running"] == states["waiting"] == 0  # told too, or a gauge would keep its last number
