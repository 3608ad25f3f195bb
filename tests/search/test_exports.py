import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from e2ray.config.base import SettingsError
from e2ray.config.load import load, read_recipe, validate
from e2ray.config.positions import PositionSettings
from e2ray.search.exports import write_recipes, write_tables
from e2ray.search.record import StudyFacts, TrialRecord
from e2ray.search.results import results

LR, KIND, PER = "train.lr", "positions.scale.kind", "positions.per"
AT, BREAKS, PIN = "positions.placement.kind", "positions.placement.num_breaks", "positions.placement.pin_first"
MIXED = "model.lora.rank"
SPACE = {
    LR: {"kind": "float", "low": 1e-4, "high": 1e-2, "log": True, "when": {}},
    KIND: {"kind": "choice", "options": ["uniform_int", "log_uniform"], "when": {}},
    AT: {"kind": "choice", "options": ["random_breaks", "sorted_random"], "when": {}},
    BREAKS: {"kind": "int", "low": 1, "high": 16, "log": True, "when": {AT: ["random_breaks"]}},
    PIN: {"kind": "choice", "options": [False, True], "when": {AT: ["sorted_random"]}},
}
RECIPE = read_recipe(Path(__file__).parents[2] / "jobs" / "recipes" / "demo-cpu.yaml") | {
    "name": "demo",
    "positions": {"preset": "e2llm", "max_scale": 16},
}
STEPS = RECIPE["train"]["steps"]


def cell(step, window, scale, nll, stderr=0.01):
    return {"step": step, "window": window, "scale": scale, "nll": nll, "stderr": stderr} | {
        "tokens": 4000,
        "documents": 4,
        "stride": 32,
    }


FACTS = StudyFacts(
    name="demo-search",
    trials=6,
    base_context_length=128,
    window=128,
    windows=(128, 256),
    max_scale=16.0,
    steps=90,
    batch_sequences=32,
    rungs=(10, 30),
    weights={"long": 1.0, "short": 0.5, "retrieval": 0.0},
    mode="weighted",
    space=SPACE,
    base=[cell(0, 128, 1.0, 3.4), cell(0, 256, 1.0, 5.0), cell(0, 256, 2.0, 3.6)],
    documents=4,
    seed=0,
)
BREAKS_PARAMS = {LR: 2e-3, KIND: "log_uniform", AT: "random_breaks", BREAKS: 3}
PINNED_PARAMS = {LR: 5e-4, KIND: "uniform_int", AT: "sorted_random", PIN: True}


def resolved(positions, lr):
    return {"positions": PositionSettings.model_validate(positions).model_dump(mode="json"), LR: lr}


BREAKS_SETTINGS = resolved(
    {
        "scale": {"kind": "log_uniform", "max_scale": 16.0},
        "placement": {"kind": "random_breaks", "num_breaks": 3},
    },
    2e-3,
)
PAPER_SETTINGS = resolved({"preset": "e2llm", "max_scale": 16}, 1e-3)


def trial(number, long, short, *, state="complete", params=None, **more):
    fields = {
        "baseline": None,
        "repeat": None,
        "seed": 0,
        "params": BREAKS_PARAMS if params is None else params,
        "settings": BREAKS_SETTINGS,
        "steps": 90,
        "step": 90,
        "retrieval": None,
        "answer_nll": None,
        "value": None if long is None else long + 0.5 * short,
        "tokens": 368_640,
        "seconds": 12.345678901234567,
        "reason": None,
        "curves": [cell(30, 256, 2.0, 3.2), cell(10, 256, 2.0, 3.3), cell(10, 128, 1.0, 3.5, None)],
        "values": {10: 3.3, 30: 3.2},
    }
    return TrialRecord(number=number, state=state, long=long, short=short, **fields | more)


def made_up():
    """Return six trials: the paper's preset twice, three on the front (2, 3, 0), one failed."""
    paper = {"baseline": "e2llm", "params": {}, "settings": PAPER_SETTINGS}
    return [
        trial(0, 3.2, 0.05, repeat=0, **paper),
        trial(1, 3.25, 0.07, repeat=1, seed=1, **paper),
        trial(2, 2.9, 0.4),
        trial(3, 3.0, 0.1, params=PINNED_PARAMS),
        trial(4, None, None, state="failed", step=0, tokens=0, curves=[], values={}, reason="loss is NaN,\n at step 4"),
        trial(5, 3.4, 0.3, state="pruned", step=10),
    ]


def study(records=None, **facts):
    return results(made_up() if records is None else records, replace(FACTS, **facts), {LR: 0.75, KIND: 0.25})


def lines(folder):
    return (folder / "trials.csv").read_text().split("\n")


def test_the_parquet_table_has_typed_columns_and_no_metadata(tmp_path):
    write_tables(tmp_path, study())
    schema = pq.read_schema(tmp_path / "trials.parquet")
    assert pq.read_metadata(tmp_path / "trials.parquet").metadata is None
    assert not any(isinstance(field.type, pa.BaseExtensionType) for field in schema)
    assert [schema.field(f"param:{path}").type for path in (LR, KIND, BREAKS, PIN)] == [
        pa.float64(),
        pa.string(),
        pa.int64(),
        pa.bool_(),
    ]
    assert schema.field("number").type == pa.int64() and not schema.field("number").nullable
    assert pq.read_metadata(tmp_path / "curves.parquet").metadata is None


def test_every_trial_has_its_row_whatever_its_state(tmp_path):
    write_tables(tmp_path, study(made_up()[::-1]))
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["state"] for row in rows] == ["complete"] * 4 + ["failed", "pruned"]
    paper, sampled, pinned, failed = rows[0], rows[2], rows[3], rows[4]
    assert (paper["baseline"], paper["repeat"], paper["scale_kind"]) == ("e2llm", 0, "uniform_int")
    assert (paper["max_scale"], paper["native_share"], paper["placement_kind"]) == (16.0, 0.0, "prefix")
    assert (paper["per"], paper["lr"], json.loads(paper["positions"])) == (
        "sequence",
        1e-3,
        PAPER_SETTINGS["positions"],
    )
    assert all(paper[f"param:{path}"] is None for path in SPACE)
    assert {path: sampled[f"param:{path}"] for path in BREAKS_PARAMS} == BREAKS_PARAMS
    assert sampled[f"param:{PIN}"] is None
    assert pinned[f"param:{PIN}"] is True and pinned[f"param:{BREAKS}"] is None
    assert (failed["long"], failed["value"], failed["reason"]) == (None, None, "loss is NaN, at step 4")


def test_the_csv_holds_the_same_table(tmp_path):
    write_tables(tmp_path, study())
    text = (tmp_path / "trials.csv").read_bytes().decode()
    assert "\r" not in text and text.endswith("\n")
    table = pq.read_table(tmp_path / "trials.parquet")
    header, *rows = csv.reader(io.StringIO(text))
    assert header == table.schema.names
    for row, wanted in zip(rows, table.to_pylist(), strict=True):
        for name, cell_text in zip(header, row, strict=True):
            kind, value = table.schema.field(name).type, wanted[name]
            if value is None:
                assert cell_text == ""
            elif kind == pa.bool_():
                assert cell_text == {True: "true", False: "false"}[value]
            else:
                assert {pa.int64(): int, pa.float64(): float, pa.string(): str}[kind](cell_text) == value


def test_options_of_several_types_become_text_and_a_chosen_null_is_seen(tmp_path):
    space = {
        MIXED: {"kind": "choice", "options": [None, 8, "all"], "when": {}},
        "train.warmup_steps": {"kind": "choice", "options": [0, 10], "when": {}},
        "train.weight_decay": {"kind": "choice", "options": [0, 0.5], "when": {}},
    }
    records = [trial(n, 3.0, 0.1, params={MIXED: value}) for n, value in enumerate([None, 8, "all"])]
    records.append(trial(3, 3.0, 0.1, params={"train.warmup_steps": 10, "train.weight_decay": 0}))
    write_tables(tmp_path, study(records, space=space))
    table = pq.read_table(tmp_path / "trials.parquet")
    assert table[f"param:{MIXED}"].to_pylist() == ["null", "8", "all", None]
    assert table["param:train.warmup_steps"].to_pylist() == [None, None, None, 10]
    assert table["param:train.weight_decay"].type == pa.float64()
    assert table["param:train.weight_decay"].to_pylist() == [None, None, None, 0.0]


def test_the_largest_scale_of_listed_scales_is_the_largest_one(tmp_path):
    listed = {"kind": "choice", "choices": [{"scale": 8.0, "weight": 1.0}, {"scale": 2.0, "weight": 3.0}]}
    settings = resolved({"scale": listed, "placement": {"kind": "none"}}, 1e-3)
    write_tables(tmp_path, study([trial(0, 3.0, 0.1, settings=settings)]))
    assert pq.read_table(tmp_path / "trials.parquet")["max_scale"].to_pylist() == [8.0]


def test_curves_are_ordered_by_trial_step_window_and_scale(tmp_path):
    write_tables(tmp_path, study(made_up()[::-1]))
    rows = pq.read_table(tmp_path / "curves.parquet").to_pylist()
    keys = [(row["number"], row["step"], row["window"], row["scale"]) for row in rows]
    assert keys == sorted(keys) and len(rows) == 15
    assert rows[0] == {"number": 0} | cell(10, 128, 1.0, 3.5, None)


def test_the_same_records_give_the_same_bytes(tmp_path):
    # a resumed study may hold its records and its space in another order
    backwards = dict(reversed(SPACE.items()))
    for folder, found in (("once", study()), ("again", study(made_up()[::-1], space=backwards))):
        write_tables(tmp_path / folder, found)
        write_recipes(tmp_path / folder, found, RECIPE, skip_documents=4)
    names = sorted(path.relative_to(tmp_path / "once") for path in (tmp_path / "once").rglob("*") if path.is_file())
    assert len(names) == 5 + 4 + 3
    for name in names:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_rows_of_finished_trials_stay_when_the_study_goes_on(tmp_path):
    write_tables(tmp_path / "before", study(made_up()))
    better = [trial(6, 2.0, -0.1), trial(7, None, None, state="failed", reason="died"), trial(8, 9.0, 9.0, repeat=2)]
    write_tables(tmp_path / "after", study(made_up() + better))
    before, after = lines(tmp_path / "before"), lines(tmp_path / "after")
    assert len(after) == len(before) + 3
    assert after[: len(before) - 1] == before[:-1]  # the last piece of both is what follows the last line break
    tables = [pq.read_table(tmp_path / name / "trials.parquet") for name in ("before", "after")]
    assert tables[1].slice(0, 6).equals(tables[0])


def test_the_front_is_written_with_the_noise_of_its_numbers(tmp_path):
    write_tables(tmp_path, study())
    found = json.loads((tmp_path / "pareto.json").read_text())
    assert found["objectives"] == {"long": "minimise", "short": "minimise"}
    assert found["noise"] == {
        "runs": 2,
        "long": pytest.approx(0.05 / math.sqrt(2)),
        "short": pytest.approx(0.02 / math.sqrt(2)),
        "value": pytest.approx(0.06 / math.sqrt(2)),
        "retrieval": None,
        "answer_nll": None,
    }
    assert [point["number"] for point in found["front"]] == [2, 3, 0]
    assert found["front"][0] == {
        "number": 2,
        "long": 2.9,
        "short": 0.4,
        "retrieval": None,
        "answer_nll": None,
        "value": pytest.approx(3.1),
        "baseline": None,
        "params": BREAKS_PARAMS,
        "settings": BREAKS_SETTINGS,
    }
    assert found["chosen"] == {"long-first": 2, "balanced": 3, "short-first": 3}
    assert found["base"] == {"long": 3.5, "short": 0.0, "retrieval": None, "answer_nll": None}
    ranges = json.loads((tmp_path / "ranges.json").read_text())
    assert ranges == {"schema_version": 1} | study().ranges.plain() | {"seeds": 2}
    assert ranges["parameters"][LR]["importance"] == 0.75


def test_retrieval_is_named_as_maximised(tmp_path):
    write_tables(tmp_path, study([trial(0, 3.0, 0.1, retrieval=0.5)]))
    found = json.loads((tmp_path / "pareto.json").read_text())
    assert found["objectives"] == {"long": "minimise", "short": "minimise", "retrieval": "maximise"}
    write_tables(tmp_path, study([trial(0, 3.0, 0.1, answer_nll=1.25)]))
    found = json.loads((tmp_path / "pareto.json").read_text())
    assert found["objectives"] == {"long": "minimise", "short": "minimise", "answer_nll": "minimise"}
    assert pq.read_table(tmp_path / "trials.parquet")["answer_nll"].to_pylist() == [1.25]


def test_recipes_train_with_the_settings_of_their_trial(tmp_path):
    write_recipes(tmp_path, study(), RECIPE, skip_documents=4)
    wanted = {"best-long-first": 2, "best-balanced": 3, "best-short-first": 3, "best": 3} | {
        f"front/{number}": number for number in (0, 2, 3)
    }
    files = [path.relative_to(tmp_path).with_suffix("").as_posix() for path in tmp_path.rglob("*.yaml")]
    assert sorted(files) == sorted(wanted)
    recipe = validate(RECIPE, source="demo")
    for name, number in wanted.items():
        config = load(tmp_path / f"{name}.yaml")
        if number == 0:
            assert config.positions.model_dump(mode="json") == PAPER_SETTINGS["positions"]
            assert config.train.lr == 1e-3
        if number == 2:
            assert config.positions.model_dump(mode="json") == BREAKS_SETTINGS["positions"]
            assert config.train.lr == 2e-3
        if number == 3:
            assert (config.positions.scale.kind, config.positions.max_scale) == ("uniform_int", 16)
            assert config.positions.placement.model_dump() == {
                "kind": "sorted_random",
                "pin_first": True,
                "pin_last": False,
            }
        assert config.train == recipe.train.model_copy(update={"lr": config.train.lr})  # the full budget
        assert config.evaluate == recipe.evaluate.model_copy(update={"skip_documents": 4})
        assert (config.model, config.data, config.pretrain) == (recipe.model, recipe.data, recipe.pretrain)
        assert config.search is None
    assert (tmp_path / "best.yaml").read_bytes() == (tmp_path / "best-balanced.yaml").read_bytes()


def test_the_names_of_recipes_tell_study_and_role_and_fit(tmp_path):
    write_recipes(tmp_path, study(name="s" * 100), RECIPE, skip_documents=4)
    names = {path.stem: load(path).name for path in tmp_path.rglob("*.yaml")}
    assert len(set(names.values())) == len(names) - 1  # best is best-balanced
    assert all(len(name) <= 100 for name in names.values())
    assert names["best-long-first"] == "s" * 89 + "-long-first"
    assert names["2"] == "s" * 92 + "-front-2"


def test_the_search_of_the_recipe_is_left_out(tmp_path):
    search = {"trials": 40, "baselines": ["e2llm"], "trial": {"train.steps": 90}}
    write_recipes(tmp_path, study(), RECIPE | {"search": search}, skip_documents=4)
    assert load(tmp_path / "best.yaml").search is None
    assert load(tmp_path / "best.yaml").train.steps == STEPS


def test_a_recipe_without_evaluation_keeps_none(tmp_path):
    write_recipes(tmp_path, study(), RECIPE | {"evaluate": None}, skip_documents=4)
    assert load(tmp_path / "best.yaml").evaluate is None
    assert "leaves out" not in (tmp_path / "best.yaml").read_text()


def comment(path):
    text = path.read_text()
    head = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    assert text.startswith("# ") and yaml.safe_load(text)["name"]
    assert all(len(line) <= 118 for line in head)
    return " ".join(head)


def test_the_comment_says_where_the_recipe_comes_from(tmp_path):
    write_recipes(tmp_path, study(), RECIPE, skip_documents=4)
    words = comment(tmp_path / "best-long-first.yaml")
    assert "Study demo-search, trial 2 (sampled by the search)" in words
    assert "long 2.9000 +- 0.0354, short +0.4000 +- 0.0141 nats per token" in words
    assert "one standard deviation of the paper's preset over 2 seeds" in words
    assert "90 updates of 32 rows of 128 tokens, 368640 tokens" in words
    assert f"trains for {STEPS} updates" in words
    assert "leaves out the first 4 held-out documents" in words
    assert "the published method e2llm" in comment(tmp_path / "front" / "0.yaml")


def test_the_comment_admits_unmeasured_noise(tmp_path):
    write_recipes(tmp_path, study(made_up()[2:]), RECIPE, skip_documents=4)
    words = comment(tmp_path / "best.yaml")
    assert "+-" not in words and "was not measured" in words


def test_recipes_of_an_earlier_export_that_are_no_longer_proposed_go(tmp_path):
    write_recipes(tmp_path, study(), RECIPE, skip_documents=4)
    (tmp_path / "front" / "notes.yaml").write_text("a person's own: file\n")
    (tmp_path / "best-of-mine.yaml").write_text("a person's own: file\n")
    better = trial(6, 2.0, -0.1)
    write_recipes(tmp_path, study([*made_up(), better], base=[]), RECIPE, skip_documents=4)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.yaml")) == [
        "best-balanced.yaml",
        "best-long-first.yaml",
        "best-of-mine.yaml",
        "best.yaml",
        "front/6.yaml",
        "front/notes.yaml",
    ]
    assert "trial 6" in comment(tmp_path / "best.yaml")


@pytest.mark.parametrize("records", [[], made_up()[4:]])
def test_a_study_without_a_complete_trial_exports_its_rows_and_no_recipe(tmp_path, records):
    write_recipes(tmp_path, study(), RECIPE, skip_documents=4)
    found = study(records)
    write_tables(tmp_path, found)
    write_recipes(tmp_path, found, RECIPE, skip_documents=4)
    assert pq.read_table(tmp_path / "trials.parquet").num_rows == len(records) == len(lines(tmp_path)) - 2
    pareto = json.loads((tmp_path / "pareto.json").read_text())
    assert (pareto["front"], pareto["chosen"], pareto["noise"]["runs"]) == ([], {}, 0)
    assert list(tmp_path.rglob("*.yaml")) == []


def test_a_trial_that_the_recipe_cannot_hold_is_named(tmp_path):
    found = study([trial(7, 3.0, 0.1, params=BREAKS_PARAMS | {BREAKS: 128})])
    with pytest.raises(SettingsError, match=r"trial 7 of study demo-search: positions\.placement: random_breaks needs"):
        write_recipes(tmp_path, found, RECIPE, skip_documents=4)


def test_tables_are_written_whole_or_not_at_all(tmp_path):
    write_tables(tmp_path, study())
    before = (tmp_path / "curves.parquet").read_bytes()
    broken = study([trial(0, 3.0, 0.1, curves=[cell(10, "wide", 1.0, 3.0)])])
    with pytest.raises(pa.ArrowInvalid, match="wide"):
        write_tables(tmp_path, broken)
    assert (tmp_path / "curves.parquet").read_bytes() == before
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "export").write_text("a file stands in the way")
    with pytest.raises(SettingsError, match=r"export/trials\.parquet: cannot be written"):
        write_tables(tmp_path / "export", study())
