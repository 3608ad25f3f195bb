"""The import direction of the package: a layer imports only what stands to its left, and Ray stays a thin shell."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "e2ray"
LAYERS = (
    *("config", "files", "optional", "loading", "records", "core", "data", "evaluate", "train", "search", "serve"),
    *("report", "stages", "cli", "testing"),
)
INSIDE = {  # modules whose functions may import: what must start light, and what must answer before it loads anything
    *("cli.py", "optional.py", "evaluate/harness.py", "search/actor.py", "train/start.py", "stages/start.py"),
}
ALLOWED = {
    "ray": {
        *("data/stream.py", "train/launch.py", "train/rank.py", "train/ray_worker.py", "search/tune.py"),
        *("search/actor.py", "stages/cluster.py", "stages/remote.py", "stages/start.py"),
    },
    "deepspeed": {"train/engine.py"},
    "optuna": {"search/*.py"},
    "mlflow": {"train/trackers.py"},
    "wandb": {"train/trackers.py"},
}


def imported(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) for everything a module imports, inside functions and type checks too.

    Args:
        path: The module.
        package: Dotted name of the package it lies in, which relative imports start from.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                parents = package.split(".")[: len(package.split(".")) + 1 - level] if level else []
                origin = ".".join([*parents, *([module] if module else [])])
                yield from ((node.lineno, f"{origin}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(target)), *_]
            ):
                if name in ("import_module", "__import__", "library"):
                    yield node.lineno, target


def is_for_types(node: ast.AST) -> bool:
    """Return whether a statement runs for who checks types alone."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_inside(path: Path) -> list[int]:
    """Return the lines of a module on which a function imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found += [each.lineno for each in ast.walk(node) if isinstance(each, ast.Import | ast.ImportFrom)]
    return sorted(set(found))


def at_import(nodes: list[ast.stmt]) -> Iterator[str]:
    """Yield the dotted names that a module imports when it is imported itself; `nodes` are its statements."""
    for node in nodes:
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.If() | ast.Try() | ast.With() if not is_for_types(node):
                yield from at_import([each for each in ast.iter_child_nodes(node) if isinstance(each, ast.stmt)])


def circles(root: Path) -> list[list[str]]:
    """Return groups of modules below a package folder that cannot be imported without each other."""
    modules = {
        ".".join([root.name, *path.relative_to(root).with_suffix("").parts]): path
        for path in root.rglob("*.py")
        if path.name != "__init__.py"
    }
    graph = {}
    for name, path in modules.items():
        found = at_import(ast.parse(path.read_text(encoding="utf-8")).body)
        graph[name] = {each if each in modules else each.rpartition(".")[0] for each in found} & modules.keys()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [error.args[1]]
    return []


def violations(root: Path) -> list[str]:
    """Return one line for each import below a package folder that breaks the rules, and for each unknown layer."""
    found = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        where = inside.as_posix()
        if path.name == "__init__.py":
            if path.read_text(encoding="utf-8"):
                found.append(f"{where}: is not empty")
            continue
        layer = inside.parts[0].removesuffix(".py")
        if layer not in LAYERS:
            found.append(f"{where}: {layer} is no known layer; give it a place in LAYERS")
            continue
        for line, name in imported(path, ".".join([root.name, *inside.parts[:-1]])):
            top, *rest = name.split(".")
            if top == root.name:
                target = rest[0] if rest else "the package itself"
                if target not in LAYERS or LAYERS.index(target) > LAYERS.index(layer):
                    found.append(f"{where}:{line}: {layer} imports {target}")
            elif top in ALLOWED and not any(inside.match(pattern) for pattern in ALLOWED[top]):
                found.append(f"{where}:{line}: imports {top}")
    return found


def test_the_package_holds_its_import_direction():
    assert violations(PACKAGE) == []


def test_the_walk_sees_every_module():
    walked = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert {"cli.py", "stages/run.py", "serve/export.py", "config/load.py", "core/rope.py", "train/record.py"} <= walked
    seen = {name for path in PACKAGE.rglob("*.py") for _, name in imported(path, "e2ray")}
    assert {"ray", "deepspeed", "e2ray.config.base.SettingsError"} <= seen


def test_functions_import_nothing_but_where_something_must_start_light():
    found = {path.relative_to(PACKAGE).as_posix(): imports_inside(path) for path in PACKAGE.rglob("*.py")}
    assert {path: lines for path, lines in found.items() if lines and path not in INSIDE} == {}
    assert found["cli.py"] and found["search/actor.py"]


def test_no_module_needs_itself_to_be_imported():
    assert circles(PACKAGE) == []


def test_a_circle_and_an_import_within_a_function_are_found(tmp_path):
    root = tmp_path / "e2ray"
    (root / "core").mkdir(parents=True)
    (root / "core" / "a.py").write_text("from e2ray.core import b\n")
    (root / "core" / "b.py").write_text("import os\nfrom e2ray.core.c import x\n")
    (root / "core" / "c.py").write_text("def f():\n    import e2ray.core.a\n")
    assert circles(root) == [] and imports_inside(root / "core" / "c.py") == [2]
    (root / "core" / "c.py").write_text("import e2ray.core.a\nx = 1\n")
    (circle,) = circles(root)
    assert set(circle) == {"e2ray.core.a", "e2ray.core.b", "e2ray.core.c"}


@pytest.mark.parametrize(
    ("path", "code", "wanted"),
    [
        ("core/a.py", "import e2ray.data.stream", "core/a.py:1: core imports data"),
        ("core/a.py", "from e2ray.data import stream", "core/a.py:1: core imports data"),
        ("core/a.py", "from e2ray import data", "core/a.py:1: core imports data"),
        ("core/a.py", "from ..data import stream", "core/a.py:1: core imports data"),
        ("core/a.py", "from .. import train", "core/a.py:1: core imports train"),
        ("core/a.py", "import json, e2ray.cli as c", "core/a.py:1: core imports cli"),
        ("core/a.py", "def f():\n    from e2ray.train.loop import fit", "core/a.py:2: core imports train"),
        (
            "core/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import e2ray.train",
            "core/a.py:3: core imports train",
        ),
        ("core/a.py", "import importlib\nimportlib.import_module('e2ray.train')", "core/a.py:2: core imports train"),
        ("core/a.py", "import e2ray", "core/a.py:1: core imports the package itself"),
        ("core/deep/a.py", "from ... import cli", "core/deep/a.py:1: core imports cli"),
        ("config/a.py", "from e2ray import files", "config/a.py:1: config imports files"),
        ("serve/a.py", "from e2ray.stages.pipeline import execute", "serve/a.py:1: serve imports stages"),
        ("evaluate/a.py", "from e2ray import serve", "evaluate/a.py:1: evaluate imports serve"),
        ("core/a.py", "import ray", "core/a.py:1: imports ray"),
        ("train/worker.py", "def f():\n    import ray.train", "train/worker.py:2: imports ray"),
        ("data/prepare.py", "from ray.data import Dataset", "data/prepare.py:1: imports ray"),
        ("train/loop.py", "import deepspeed.ops", "train/loop.py:1: imports deepspeed"),
        ("train/loop.py", "from optuna import trial", "train/loop.py:1: imports optuna"),
        ("core/__init__.py", "VERSION = 1", "core/__init__.py: is not empty"),
        ("helpers.py", "", "helpers.py: helpers is no known layer; give it a place in LAYERS"),
    ],
)
def test_a_violation_in_a_made_up_package_is_named(tmp_path, path, code, wanted):
    target = tmp_path / "e2ray" / path
    target.parent.mkdir(parents=True)
    target.write_text(code)
    assert violations(tmp_path / "e2ray") == [wanted]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("cli.py", "from e2ray import stages\nfrom e2ray.config import load\nimport e2ray.stages.run"),
        ("stages/run.py", "from e2ray.train.record import now\nfrom e2ray.core.model import base_facts"),
        ("core/a.py", "import torch\nfrom e2ray.core.rope import x\nfrom .rope import x\nfrom ..config import base"),
        ("data/stream.py", "import ray.data"),
        ("train/launch.py", "import ray.train"),
        ("stages/cluster.py", "import ray"),
        ("train/engine.py", "from deepspeed.utils import safe_get_full_fp32_param"),
        ("search/tune.py", "import optuna"),
        ("core/a.py", "import raylib, deepspeedy"),
        ("core/__init__.py", ""),
    ],
)
def test_what_the_direction_allows_is_taken(tmp_path, path, code):
    target = tmp_path / "e2ray" / path
    target.parent.mkdir(parents=True)
    target.write_text(code)
    assert violations(tmp_path / "e2ray") == []


IMPORT_ALL = """
import gc, os, pkgutil, random
gc.disable()  # a fifth of the time
import deepspeed, optuna, ray.tune, torch  # what these do when they are imported is their own affair
print("ours:", flush=True)
state, torch_state, folder = random.getstate(), torch.get_rng_state(), os.getcwd()
import e2ray
names = [found.name for found in pkgutil.walk_packages(e2ray.__path__, "e2ray.")]
for name in names:
    __import__(name)
import psutil, ray
assert len(names) > 20, names
assert not ray.is_initialized(), "ray runs"
assert not psutil.Process().children(), "a process was started"
assert not torch.distributed.is_initialized(), "a process group was made"
assert not torch.cuda.is_initialized(), "the GPU was taken"
assert random.getstate() == state, "random numbers were drawn"
assert torch.equal(torch.get_rng_state(), torch_state), "torch's random numbers were drawn or seeded"
assert os.getcwd() == folder and not os.listdir(folder), "files were written"
print(len(names))
"""


def test_importing_every_module_does_no_work(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.partition("ours:")[2].strip().isdecimal(), f"an import printed {done.stdout}"
