"""Folders: each name once, as a path of the folder at hand."""

import ast
import re
from pathlib import Path

import pytest

import e2ray
from e2ray.records import folders
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


OTHERS = {"state.json": ["data/hub.py"], "config.json": ["core/", "serve/", "data/"], "manifest.json": []}


def test_a_file_s_name_is_spelt_in_one_place_of_the_package():
    package, home = Path(e2ray.__file__).parent, Path(folders.__file__)
    names = {
        entry.name for folder in FOLDERS for entry in folder.entries() if re.fullmatch(r"[\w.-]+\.\w+", entry.name)
    }
    found = []
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            spelt = node.value if isinstance(node, ast.Constant) else None
            if path != home and spelt in names - {"README.md", "report.html"}:  # also others' and a user's own
                if not where.startswith(tuple(OTHERS.get(spelt, ())) or ("-",)):
                    found.append(f"{where}:{node.lineno}: {spelt}")
    assert found == []
