"""Folders: each name once, as a path of the folder at hand."""

from pathlib import Path

import pytest

from e2ray.records.evaluation import Evaluation
from e2ray.records.folders import FOLDERS, ComparisonFolder, RunFolder


def test_a_name_is_a_path_of_its_folder():
    run = RunFolder("storage/run")
    assert run.path == Path("storage/run")
    assert run.evaluation == Path("storage/run/evaluation.json")
    assert run.config == Path("storage/run/config.yaml")
    assert RunFolder.evaluation.record is Evaluation


def test_a_name_of_parts_is_a_function_of_them():
    assert ComparisonFolder("c").lane(lane="pose", seed=3) == Path("c/lanes/pose-3.json")
    with pytest.raises(KeyError, match="seed"):
        ComparisonFolder("c").lane(lane="pose")


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_says_what_each_of_its_files_is_for(folder):
    names = [entry.name for entry in folder.entries()]
    assert folder.__doc__
    assert folder.where.endswith("/")
    assert len(set(names)) == len(names) > 0
    for entry in folder.entries():
        assert entry.use.endswith("."), entry
