"""A small study on real parts: shards of random rows, a tiny Llama, six documents."""

import json

import numpy as np
import pytest

from e2ray.config.load import validate
from e2ray.search.shared import share
from e2ray.testing.recipes import recipe as small_recipe
from e2ray.testing.shards import TOKENIZER, write_shards
from e2ray.train.task import Task

WINDOW, VOCABULARY = 32, 64


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    generator = np.random.default_rng(0)
    train = [generator.integers(0, VOCABULARY, 20 * WINDOW, dtype=np.int32) for _ in range(6)]
    held_out = [
        (f"held out {number}", generator.integers(0, VOCABULARY, 5 * WINDOW, dtype=np.int32)) for number in range(6)
    ]
    folder = tmp_path_factory.mktemp("shards")
    return write_shards(folder, train, held_out, window=WINDOW, vocab_size=VOCABULARY)


@pytest.fixture
def recipe(tmp_path):
    """A recipe of a study in miniature, as plain data."""
    made = small_recipe(
        tmp_path / "runs",
        pretrain={"steps": 1, "batch_sequences": 4},  # a study wants a base; these tests build theirs
        train={"steps": 9, "batch_sequences": 4, "micro_batch_sequences": 2, "lr": 1e-2, "log_every": 1,
                  "checkpoint_every": 9},
        evaluate={"windows": [32, 64, 128], "scales": [1, 2, 4], "documents": 2, "stride": 16},
        search={
            "trials": 12,
            "baselines": ["e2llm", "pose", "pi", "native"],
            "repeats": 3,
            "startup_trials": 4,
            "early_stopping": {"kind": "asha", "min_steps": 1, "reduction_factor": 3},
        },
    )  # fmt: skip
    made["model"] |= {"intermediate_size": 48}
    made["data"] |= {
        "corpus": [{"kind": "python_stdlib"}],
        "tokenizer": {"kind": "byte_level_bpe", "vocab_size": 300},
    }
    return made


@pytest.fixture
def configured(recipe):
    """A function that returns the recipe's settings with changes of its search and of other sections."""

    def make(search=None, **sections):
        made = json.loads(json.dumps(recipe))
        made["search"] |= search or {}
        for section, changes in sections.items():
            made[section] = made.get(section, {}) | changes if isinstance(changes, dict) else changes
        return validate(made, source="test")

    return make


@pytest.fixture
def shared_of(shards, tmp_path):
    """A function that returns what the trials of some settings share."""

    def make(config):
        task = Task(
            name=config.name,
            folder=tmp_path / "study",
            shards=shards,
            tokenizer_hash=TOKENIZER,
            vocab_size=VOCABULARY,
            window=WINDOW,
            base_context_length=WINDOW,
            seed=config.seed,
            model=config.model,
            positions=config.positions,
            train=config.train,
            rows_digest="0" * 64,
            show_progress=False,
        )
        return share(config, task, tmp_path / "study")

    return make
