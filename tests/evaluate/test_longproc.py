import json
from pathlib import Path

import pytest

from e2ray.config.base import SettingsError
from e2ray.evaluate.longproc import NAMES, PROCEDURES, beliefs, held, procedures, route, table, task

WAY = "From Rome, take a bus to Oslo.\nFrom Oslo, take a train to Bonn.\nFrom Bonn, take a ferry to Cork."


@pytest.mark.parametrize(
    ("text", "accuracy", "partial", "extracted"),
    [
        (f"Here it is:\n<Route>\n{WAY}\n</Route> Done.", 1, 1, 1),
        (f"<Route>{WAY}</Route>", 1, 1, 1),
        (WAY, 0, 0, 0),  # not marked
        (f"<Route>\n{WAY}", 0, 0, 0),  # torn off
        (f"</Route>{WAY}<Route>", 0, 0, 0),
        (f"<Route>\n{WAY}\nFrom Cork, take a bus to Rome.\n</Route>", 0, 1, 1),  # goes on
        (f"<Route>\n{WAY.splitlines()[0]}\n</Route>", 0, 1 / 3, 1),
        (f"<Route>\n{WAY.replace('Rome', 'Romes')}\n</Route>", 0, 0, 1),  # the first line is wrong
        (f"<Route>\n{WAY.replace('train', 'plane')}\n</Route>", 0, 1 / 3, 1),
        (f"<Route>\n{WAY.lower()}\n</Route>", 0, 0, 1),
        ("<Route></Route>", 0, 0, 1),
        (f"<Route></Route><Route>{WAY}</Route>", 0, 0, 1),  # the first one counts
        ("", 0, 0, 0),
    ],
)
def test_a_route_is_compared_line_by_line(text, accuracy, partial, extracted):
    assert route(text, WAY) == pytest.approx(
        {"accuracy": accuracy, "partial_accuracy": partial, "extraction_rate": extracted}
    )


STEPS = (
    "Ann's belief on the pen:\n"
    "- Step 0: (initial state) {Ann location: hall; Ann's belief on pen: None}\n"
    "- Step 1: (Ann location changed) {Ann location: den; Ann's belief on pen: den's shelf}\n"
    "- Step 2: (Ann location unchanged) {Ann location: den; Ann's belief on pen: den's box}\n"
    "Final Answer: the den's box"
)


@pytest.mark.parametrize(
    ("text", "accuracy", "partial"),
    [
        (STEPS, 1, 1),
        (STEPS.replace("Ann's belief on the pen:", "Sure!").replace("Final Answer", "So"), 1, 1),
        (STEPS.replace("den's shelf", "the den\u2019s Shelf"), 1, 1),
        ("- Step 0: a try\n" + STEPS, 1, 1),  # the last beginning counts
        (STEPS.replace("box", "boxes"), 0, 2 / 3),
        (STEPS.replace("Step 1", "Step 3"), 0, 1 / 3),
        (STEPS.replace("None", "hall"), 0, 0),
        (STEPS.replace("- Step 2", "Step 2"), 0, 2 / 3),
        (STEPS + "\n- Step 3: (initial state)", 0, 1),
        ("Final Answer: the den's box", 0, 0),
        ("", 0, 0),
    ],
)
def test_beliefs_are_compared_step_by_step(text, accuracy, partial):
    found = beliefs(text, STEPS)
    assert (found["accuracy"], found["partial_accuracy"]) == pytest.approx((accuracy, partial))
    assert found["extraction_rate"] == float("- Step" in text)


TABLE = "name\tprice\nThe Red Fox\t$1,200\nBlue Cat\tN/A\n"


@pytest.mark.parametrize(
    ("text", "precision", "recall", "extracted"),
    [
        (f"```tsv\n{TABLE}```", 1, 1, 1),
        (f"Here:\n```tsv\n{TABLE}", 1, 1, 1),  # torn off
        (TABLE, 1, 1, 1),
        ("```tsv\nname\tprice\nblue cat\tn/a\nred fox\t1200\n```", 1, 1, 1),
        ("```tsv\nname\tprice\nRed Fox\t$1,200\n```", 1, 0.5, 1),
        ("```tsv\nname\tprice\nRed Fox\t$1,200\nRed Fox\t$1,200\nGreen Dog\t1\n```", 2 / 3, 0.5, 1),
        ("```tsv\nname\tprice\nRed Fox\t$1,200\tnew\nBlue Cat\tN/A\n```", 0.5, 0.5, 1),
        ("```tsv\nname\tprice\nRed Fox\t$1,200\nBlue C", 1, 0.5, 1),
        ("```tsv\nname\tprice\nRed Fox\t$11,200\nBlue Cats\tN/A\n```", 0, 0, 1),
        ("```tsv\nname\tprice\n```", 0, 0, 1),
        ("```tsv\nname,price\nRed Fox,1200\n```", 0, 0, 0),
        ("```tsv\n```", 0, 0, 0),
        ("I cannot do that.", 0, 0, 0),
        ("", 0, 0, 0),
        ("name\tprice\n\0\t\0", 0, 0, 1),
    ],
)
def test_a_table_is_compared_row_by_row(text, precision, recall, extracted):
    both = precision + recall
    f1 = 2 * precision * recall / both if both else 0
    assert table(text, TABLE) == pytest.approx(
        {"f1": f1, "precision": precision, "recall": recall, "extraction_rate": extracted}
    )


@pytest.fixture
def data(tmp_path):
    """LongProc's layout with made-up content."""
    items = {
        "path_traversal": {"context_nl": "Rome leads {on}.", "question_repr": ["Rome", "Oslo"], "answer_nl": WAY},
        "tom_tracking": {"story": "s", "question": "q", "story_components": {}, "solution": STEPS},
        "html_to_tsv": {
            "html_path": "./data/html_to_tsv/webpage/W1.html",
            "gt": TABLE,
            "task_id": "1",
            "website_id": "W1",
            "task_topic": "pets",
            "task_description": "all",
            "tsv_header": "name\tprice",
            "filtering_instruction": "",
        },
    }
    templates = {
        "path_traversal": "{{x}} {city_context} {src_city}-{dst_city}",
        "tom_tracking": "{story} {question}",
        "html_to_tsv": "{task_topic}: {html_str}",
    }
    for kind, item in items.items():
        place = tmp_path / kind
        place.mkdir()
        (place / "prompts.yaml").write_text(f"USER_PROMPT: |-\n  {templates[kind]}\n")
        for length in ("0.5k", "2k", "8k"):
            (place / f"{kind}_{length}.json").write_text(json.dumps([item, item]))
    (tmp_path / "html_to_tsv" / "webpage").mkdir()
    (tmp_path / "html_to_tsv" / "webpage" / "W1.html").write_text("<p>Fox</p>")
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        ("path_traversal", "{x} Rome leads {on}. Rome-Oslo"),
        ("tom_tracking", "s q"),
        ("html_to_tsv", "pets: <p>Fox</p>"),
    ],
)
def test_prompts_are_made_of_the_users_own_files(data, kind, prompt):
    found = procedures(f"{kind}_2k", data)
    assert [each["prompt"] for each in found] == [prompt, prompt]
    config = task(f"{kind}_2k", data)
    scores = config["process_results"](found[0], [found[0]["answer"]])
    assert tuple(scores) == PROCEDURES[kind].metrics == tuple(each["metric"] for each in config["metric_list"])


def test_the_room_for_an_answer_follows_from_the_name(data):
    own = [name for name in NAMES if held(name, data)]
    assert len(own) == 9
    rooms = {name: task(name, data)["generation_kwargs"]["max_gen_toks"] for name in own}
    assert {rooms[name] for name in own if name.endswith("_0.5k")} == {1024}
    assert {rooms[name] for name in own if name.endswith("_8k")} == {9216}


def test_a_checkout_is_as_good_as_its_data(data, tmp_path_factory):
    checkout = tmp_path_factory.mktemp("checkout")
    data.rename(checkout / "data")
    assert len(procedures("tom_tracking_2k", checkout)) == 2


def test_what_a_folder_holds(data, tmp_path_factory):
    (data / "countdown").mkdir()
    (data / "countdown" / "countdown_2k.json").write_text("[{}]")  # its prompts are written by LongProc's program
    assert not held("countdown_2k", data)
    (data / "tom_tracking" / "tom_tracking_8k.json").unlink()
    assert held("tom_tracking_2k", data)
    assert not held("tom_tracking_8k", data)
    copy = tmp_path_factory.mktemp("data-set")
    (copy / "countdown_2k").mkdir()
    (copy / "travel_planning_8k.parquet").touch()
    assert {name for name in NAMES if held(name, copy)} == {"countdown_2k", "travel_planning_8k"}


def test_every_name_is_a_task_of_the_harness():
    import lm_eval.tasks

    files = (Path(lm_eval.tasks.__file__).parent / "longproc").glob("*.yaml")
    assert {file.stem for file in files if not file.stem.startswith("_")} == set(NAMES)


def test_files_that_are_not_longprocs_are_named(data):
    (data / "tom_tracking" / "tom_tracking_2k.json").write_text("[{}]")
    with pytest.raises(
        SettingsError, match=r"tom_tracking is none of LongProc's \(KeyError: 'story'\); wanted prompts"
    ):
        procedures("tom_tracking_2k", data)
    (data / "tom_tracking" / "tom_tracking_8k.json").write_text("[]")
    with pytest.raises(SettingsError, match=r"tom_tracking_8k\.json holds nothing"):
        procedures("tom_tracking_8k", data)
    (data / "html_to_tsv" / "webpage" / "W1.html").unlink()
    with pytest.raises(SettingsError, match=r"W1\.html cannot be read: No such file"):
        procedures("html_to_tsv_2k", data)
    for name in ("tom_tracking_2k.json", "prompts.yaml"):
        (data / "tom_tracking" / name).write_text("[" * 5_000)
        with pytest.raises(
            SettingsError, match=r"is nested too deep; wanted LongProc's|none of LongProc's \(RecursionErr"
        ):
            procedures("tom_tracking_2k", data)
    (data / "path_traversal" / "prompts.yaml").unlink()
    with pytest.raises(SettingsError, match=r"path_traversal is none of LongProc's \(FileNotFoundError"):
        procedures("path_traversal_2k", data)
