"""Shards written without Ray."""

import numpy as np
import pytest

from e2ray.testing import shards


@pytest.fixture
def write_shards(tmp_path):
    """A function that writes given documents as shards, in this process, and returns the folder."""

    def write(train, validation=(), *, window=16, name="shards", **options):
        return shards.write_shards(tmp_path / name, train, validation, window=window, **options)

    return write


@pytest.fixture
def documents():
    """Thirty documents of 1 to 120 tokens, no token twice."""
    generator = np.random.default_rng(7)
    ends = np.cumsum(generator.integers(1, 121, size=30))
    return np.split(np.arange(ends[-1], dtype=np.int32), ends[:-1])
