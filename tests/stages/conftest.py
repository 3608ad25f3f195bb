"""One run of the whole chain, which several tests look at: its files, and what its command told."""

import contextlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2ray.config.load import validate
from e2ray.stages import pipeline
from e2ray.testing.recipes import PRETRAIN, recipe


@dataclass(frozen=True)
class Chain:
    """A run that was trained, measured and exported, and the lines its command has shown."""

    recipe: dict
    folder: Path
    told: list[str]


@pytest.fixture(scope="session")
def trained_chain(ray_cluster, storage, corpus):
    """The chain in miniature, with a base of its own, in the storage that the longest tests share."""
    made = recipe(Path(storage), texts=f"{corpus}/*.py", evaluate={"documents": 2, "document_tokens": 200})
    made["data"] |= {"validation_share": 0.2}
    training = {"steps": 8, "batch_sequences": 8, "micro_batch_sequences": 4, "log_every": 1, "checkpoint_every": 4}
    made |= {
        "storage": storage,
        "pretrain": dict(PRETRAIN),
        "train": training | {"lr": 1e-3},
        "cluster": {"max_failures": 0},
    }
    made["evaluate"]["untrained"] = ["yarn"]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        pipeline.execute(validate(made, source="test"))
    return Chain(made, Path(storage) / made["name"], told.getvalue().splitlines())


@pytest.fixture
def chain(trained_chain, tmp_path):
    """The chain's run, whose folder is afterwards as it was, whatever a test does to it."""
    kept = shutil.copytree(trained_chain.folder, tmp_path / "kept")
    yield trained_chain
    shutil.rmtree(trained_chain.folder)
    shutil.move(kept, trained_chain.folder)
