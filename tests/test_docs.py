"""README and docs: links lead somewhere, commands are commands, recipes are recipes, and settings are the code's."""

import re
import shlex
from pathlib import Path

import pytest

from e2ray.cli import parser
from e2ray.config.load import read_recipe, validate
from e2ray.config.reference import slug

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("cluster/*.md")])
README_LINES = 180
SHELL = set(
    ". export (umask ray vllm python curl make e2ray pip kubectl docker sbatch prometheus .venv/bin/pre-commit".split()
)
WHOLE = {
    "name": "mine",
    "model": {"kind": "pretrained", "path": "org/model", "base_context_length": 4096},
    "data": {"corpus": [{"kind": "python_stdlib"}], "window": 4096},
    "positions": {"preset": "e2llm", "max_scale": 4},
    "train": {"steps": 1200, "checkpoint_every": 1200},
}


def text_of(path):
    return path.read_text(encoding="utf-8")


def blocks(path, language):
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text_of(path), re.MULTILINE | re.DOTALL)


def anchors(path):
    lines = re.sub(r"^```.*?^```$", "", text_of(path), flags=re.MULTILINE | re.DOTALL).splitlines()
    return {slug(line.lstrip("#").replace("`", "")) for line in lines if line.startswith("#")}


def links(path):
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text_of(path), flags=re.M | re.S))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_of_it(path):
    for link in links(path):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link} names no heading"


def test_every_page_of_docs_is_reached_from_the_readme():
    assert {f"docs/{path.name}" for path in ROOT.glob("docs/*.md")} <= {
        link.partition("#")[0] for link in links(ROOT / "README.md")
    }


def test_the_readme_fits_what_a_newcomer_reads():
    assert len(text_of(ROOT / "README.md").splitlines()) <= README_LINES


def commands(path):
    """Return each command line of a page, the backslashed ones joined, without comments and redirections."""
    for block in blocks(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_one(path):
    targets = set(re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    for words in commands(path):
        words = words[words.index("--") + 1 :] if words[:3] == ["ray", "job", "submit"] else words
        match words:
            case ["e2ray", *given]:
                parser().parse_args(given)
            case ["make", target, *_]:
                assert target in targets, words
            case ["python", script, *given] if script.startswith("jobs/"):
                assert (ROOT / script).is_file(), words
                if not script.startswith("jobs/bench"):
                    parser(Path(script).stem).parse_args(given)
            case _:
                assert words[0] in SHELL, f"{words}: not known to this test"
        for word in words:
            if word.startswith("jobs/recipes/"):
                assert (ROOT / word).is_file(), words


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_or_part_of_one_is_valid(path, tmp_path):
    for number, block in enumerate(blocks(path, "yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block, encoding="utf-8")
        part = read_recipe(file)
        whole = {key: {**WHOLE[key], **part.get(key, {})} for key in ("data", "train")}
        validate(WHOLE | part | whole, source=f"{path}: {part}")
