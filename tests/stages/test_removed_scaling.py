"""A run on a base whose scaling is removed says how far that moved it, before it trains and in all that it leaves."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from e2ray import files
from e2ray.config.load import validate
from e2ray.evaluate.removed import sentence
from e2ray.records.evaluation import RemovedScaling
from e2ray.stages import pipeline
from e2ray.testing.models import SIZES
from e2ray.testing.served import save_tokenizer

YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.ray
@pytest.mark.slow
def test_the_move_is_told_before_the_training_and_stands_in_verdict_and_card(ray_cluster, small, tmp_path, capsys):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES | {"vocab_size": 256, "max_position_embeddings": 128, "rope_parameters": YARN})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.eos_token = "~"
    tokenizer.save_pretrained(tmp_path / "base")
    recipe = {key: value for key, value in small.items() if key != "model"}
    del recipe["data"]["tokenizer"]
    recipe |= {
        "model": {"kind": "pretrained", "path": str(tmp_path / "base"), "base_scaling": "replace"},
        "train": {"steps": 2, "batch_sequences": 4, "lr": 1e-3, "log_every": 1, "checkpoint_every": 2},
        "cluster": {"max_failures": 0},
    }
    pipeline.execute(validate(recipe, source="test"))
    folder = tmp_path / "runs" / "small"
    removed = files.read_told(folder / "removed_scaling.json", wanted="what removing the scaling did")[0]
    assert (removed["scaling"], removed["factor"], removed["tokens"]) == ("yarn", 4.0, 128)
    assert removed["mean_difference"] > 0.01
    left = RemovedScaling.read(folder / "removed_scaling.json")
    told = capsys.readouterr().out.splitlines()
    assert told.index(sentence(left)) < next(place for place, line in enumerate(told) if line.startswith("| window W"))
    verdict = json.loads((folder / "evaluation.json").read_text())["verdict"]
    assert RemovedScaling.model_validate(verdict["removed_scaling"]) == left
    for text in ("\n".join(told), (folder / "export" / "README.md").read_text()):
        assert "base, its yarn scaling removed" in text
        assert sentence(left) in text
        assert "untouched" not in text
