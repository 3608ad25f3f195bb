from pathlib import Path

import pytest
import yaml

from e2ray.evaluate.longproc import NAMES, held, redirected


def test_what_a_copy_of_the_data_set_holds(tmp_path):
    (tmp_path / "countdown_2k").mkdir()
    (tmp_path / "travel_planning_8k.parquet").touch()
    assert {name for name in NAMES if held(name, tmp_path)} == {"countdown_2k", "travel_planning_8k"}


@pytest.mark.parametrize("below", ["", "data"])
def test_a_checkout_of_the_program_holds_no_prompts(tmp_path, below):
    place = tmp_path / below / "path_traversal"
    place.mkdir(parents=True)
    (place / "path_traversal_2k.json").write_text("[{}]")
    assert not any(held(name, tmp_path) for name in NAMES)


def test_every_name_is_a_task_of_the_harness():
    import lm_eval.tasks

    files = (Path(lm_eval.tasks.__file__).parent / "longproc").glob("*.yaml")
    assert {file.stem for file in files if not file.stem.startswith("_")} == set(NAMES)


def test_the_harness_is_told_where_the_copy_lies(tmp_path):
    told = yaml.safe_load(redirected("tom_tracking_2k", tmp_path))
    assert (told["task"], told["dataset_path"]) == ("longproc:tom_tracking_2k", str(tmp_path))
    assert Path(told["include"]).is_file()
