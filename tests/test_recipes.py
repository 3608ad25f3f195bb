"""Every recipe builds its configuration, says what it is for and what it needs, and counts its memory rightly."""

import re
from pathlib import Path

import pytest

from e2ray.config.data import PretrainedTokenizer
from e2ray.config.load import load, read_recipe
from e2ray.config.model import PretrainedModel

FOLDER = Path(__file__).parents[1] / "jobs" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
FULL_SIZE = [path for path in RECIPES if "kind: pretrained" in path.read_text(encoding="utf-8")]

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
every_full_size_recipe = pytest.mark.parametrize("path", FULL_SIZE, ids=lambda path: path.stem)


def opening(path):
    """Return the comment on top of a recipe."""
    return re.match(r"(#.*\n)+", path.read_text(encoding="utf-8")).group()


def products(comment):
    """Yield (text, value of the product or quotient, value claimed) for each `a * b / c = d` in a comment."""
    number = r"[\d.,]*\d(?:e\d+)?(?: B| tokens)?"
    for found in re.finditer(rf"({number}(?: [*/] {number})+) *= +({number})", comment):
        factors = re.sub(r" B| tokens|,", "", found[1])
        value = 1.0
        for operator, factor in re.findall(r"(^|[*/]) ?([\d.e]+)", factors):
            value = value / float(factor) if operator == "/" else value * float(factor)
        yield found[0], value, float(found[2].replace(",", ""))


def test_there_is_a_recipe_for_every_promised_use():
    assert {path.stem for path in RECIPES} >= {
        "demo-cpu",
        "e2llm-llama-2-7b-4k",
        "llama-3.1-8b-8k",
        "llama-3.1-8b-lora-1gpu",
        "qwen3-8b-8k",
        "search-cpu",
    }
    assert len(FULL_SIZE) >= 4


@every_recipe
def test_a_recipe_builds_its_configuration(path):
    config = load(path)
    assert config.name == path.stem
    assert config.positions.max_scale > 1
    assert config.evaluate is not None and config.export is not None


@every_recipe
def test_a_recipe_says_on_top_what_it_is_for_and_what_hardware_it_needs(path):
    first, second = opening(path).splitlines()[:2]
    assert len(first) > 40
    assert second.startswith("# Hardware: ")


@every_recipe
def test_a_recipe_names_no_place_of_its_author(path):
    assert "storage" not in read_recipe(path)
    for source in load(path).data.corpus:
        assert all(name.startswith("/data/") for name in getattr(source, "paths", ()))


@every_full_size_recipe
def test_the_memory_a_recipe_counts_is_counted_rightly(path):
    counted = list(products(opening(path)))
    assert len(counted) >= 4
    for text, value, claimed in counted:
        assert value / 1e9 == pytest.approx(claimed, abs=0.06, rel=0.005), text  # claimed in GB, to one digit
    table, _, rest = opening(path).partition("# About ")
    total = float(rest.split(" GB")[0])
    assert total == pytest.approx(sum(claimed for _, _, claimed in products(table)), abs=0.6)  # to whole GB


def test_wrong_arithmetic_in_a_comment_would_be_seen():
    (right,), (wrong,) = products("#  2 B * 6.74e9 / 16   =  0.8"), products("# 2 B * 4,096 tokens * 2 = 5.0")
    assert right[1:] == (pytest.approx(0.8425e9), 0.8)
    assert wrong[1:] == (16384.0, 5.0)


@every_full_size_recipe
def test_a_full_size_recipe_decides_what_its_model_leaves_open(path):
    config = load(path)
    assert isinstance(config.model, PretrainedModel)
    assert config.model.base_context_length is not None
    assert config.model.checkpoint_share == 1
    assert config.data.window <= config.model.base_context_length
    assert config.data.tokenizer is None or isinstance(config.data.tokenizer, PretrainedTokenizer)
    assert config.cluster.use_gpu is True
    assert config.train.zero_stage > 0  # bf16 without fp32 weights drifts
    longest = config.positions.max_scale * config.model.base_context_length
    for lengths in (config.evaluate.windows, config.export.context_lengths):
        assert lengths is None or max(lengths) <= longest
    assert config.evaluate.document_tokens >= max(config.evaluate.windows)
    assert config.evaluate.stride <= min(config.evaluate.windows)
    assert max(config.evaluate.scales) <= config.positions.max_scale
    paper = {max(1.0, window / config.model.base_context_length) for window in config.evaluate.windows}
    assert paper <= set(config.evaluate.scales)


def test_the_papers_recipe_holds_the_papers_numbers():
    config = load(FOLDER / "e2llm-llama-2-7b-4k.yaml")
    assert config.model.path == "meta-llama/Llama-2-7b-hf"
    assert (config.model.base_context_length, config.data.window) == (4096, 4096)
    assert config.positions.scale.model_dump() == {"kind": "uniform_int", "max_scale": 20.0, "native_share": 0.0}
    assert (config.positions.placement.kind, config.positions.placement.prefix) == ("prefix", 4)
    assert config.positions.placement.jump.kind == "uniform"
    assert (config.train.steps, config.train.batch_sequences) == (30_000, 16)
    assert (config.train.lr, config.train.betas, config.train.zero_stage) == (1e-5, (0.9, 0.95), 2)
    assert config.cluster.num_workers == 16
    assert config.model.lora is None


def test_a_llama_with_a_scaling_makes_the_choice_that_is_demanded():
    for stem in ("llama-3.1-8b-8k", "llama-3.1-8b-lora-1gpu"):
        model = load(FOLDER / f"{stem}.yaml").model
        assert (model.base_scaling, model.base_context_length) == ("keep", 131_072)
    for stem in ("e2llm-llama-2-7b-4k", "qwen3-8b-8k"):
        assert load(FOLDER / f"{stem}.yaml").model.base_scaling is None


def test_the_adapter_recipe_fits_one_gpu():
    config = load(FOLDER / "llama-3.1-8b-lora-1gpu.yaml")
    assert config.cluster.num_workers == 1
    assert config.model.lora is not None
    per_layer = config.model.lora.rank * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    assert f"{32 * per_layer / 1e6:.1f}e6 adapter parameters" in opening(FOLDER / "llama-3.1-8b-lora-1gpu.yaml")
