import numpy as np
import pytest

from e2ray.data.duplicates import NearDuplicates, shingles

pytest.importorskip("datasketch")


def text(seed, length=2000):
    return np.random.default_rng(seed).integers(0, 5000, length).astype(np.int32)


def similarity(one, other):
    mine = {tuple(one[place : place + 5]) for place in range(len(one) - 4)}
    others = {tuple(other[place : place + 5]) for place in range(len(other) - 4)}
    return len(mine & others) / len(mine | others)


def test_shingles_are_the_stretches_of_five_tokens():
    tokens = text(0)
    assert len(shingles(tokens)) == 1996
    assert set(shingles(tokens[10:30])) < set(shingles(tokens))
    assert len(shingles(np.tile(tokens[:5], 100))) == 5  # each turn of it once
    assert len(shingles(tokens[:3])) == 1 and len(shingles(tokens[:1])) == 1
    assert shingles(tokens[:2]) != shingles(tokens[:2][::-1])


def test_a_copy_with_few_changes_repeats_and_one_with_many_does_not():
    found = NearDuplicates(0.7)
    tokens = text(1)
    assert not found.repeats(tokens)
    assert found.repeats(tokens) and found.repeats(np.append(tokens, 7))
    little, much = tokens.copy(), tokens.copy()
    little[::200] += 1
    much[::15] += 1
    assert similarity(tokens, little) > 0.9 and similarity(tokens, much) < 0.55
    assert found.repeats(little) and not found.repeats(much)
    assert found.repeats(much)  # it is one of those kept now


def test_strangers_are_kept():
    found = NearDuplicates(0.5)
    assert not any(found.repeats(text(seed, 300)) for seed in range(200))


def test_a_long_document_is_hashed_in_stretches(monkeypatch):
    tokens = text(3, 5000)
    whole = NearDuplicates(0.8)
    whole.repeats(tokens)
    monkeypatch.setattr("e2ray.data.duplicates.CHUNK", 100)
    cut = NearDuplicates(0.8)
    cut.repeats(tokens)
    np.testing.assert_array_equal(whole._known[0].hashvalues, cut._known[0].hashvalues)


@pytest.mark.parametrize("share", [0.985, 0.999999, 1e-9])
def test_any_share_can_be_asked_for(share):
    found, tokens = NearDuplicates(share), text(4)
    assert not found.repeats(tokens) and found.repeats(tokens.copy())
    assert found.repeats(np.where(np.arange(len(tokens)) % 15, tokens, tokens + 1)) is (share < 0.5)
