import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from e2ray.config.base import SettingsError
from e2ray.evaluate.weights import BLOCK_BYTES, read_scales, refuse_other_weights, weights_digest
from e2ray.records.scales import Scales

VALUES = np.arange(1_000_000, dtype=np.float32)  # 4 MB, four times what is read


def save(folder, values=VALUES, name="model"):
    folder.mkdir(exist_ok=True)
    save_file({"weight": values}, folder / f"{name}.safetensors")
    return folder


def test_the_digest_follows_from_weights_names_and_shapes(tmp_path):
    found = weights_digest(save(tmp_path / "one"))
    assert re.fullmatch("[0-9a-f]{64}", found)
    (tmp_path / "one" / "config.json").write_text("{}")
    assert weights_digest(tmp_path / "one") == found == weights_digest(save(tmp_path / "same"))
    others = {
        weights_digest(save(tmp_path / "trained", VALUES + 1)),
        weights_digest(save(tmp_path / "shape", VALUES.reshape(1000, 1000))),
        weights_digest(save(tmp_path / "longer", np.append(VALUES, 0))),
        weights_digest(save(tmp_path / "name", name="other")),
        weights_digest(save(save(tmp_path / "more"), VALUES[:9], "second")),
    }
    assert len(others | {found}) == 6


@pytest.mark.parametrize("place", [0, -1])
def test_the_first_and_the_last_block_count_and_between_blocks_nothing_does(tmp_path, place):
    found = weights_digest(save(tmp_path / "one"))
    changed = VALUES.copy()
    changed[place] = 5
    assert weights_digest(save(tmp_path / "end", changed)) != found
    between = VALUES.copy()
    between[BLOCK_BYTES // 4 + 100] = 5  # what the documentation says is not seen
    assert weights_digest(save(tmp_path / "between", between)) == found


def test_of_a_small_file_every_byte_counts(tmp_path):
    values = np.zeros(1000, np.float32)
    digests = set()
    for place in range(0, 1000, 50):
        changed = values.copy()
        changed[place] = 1
        digests.add(weights_digest(save(tmp_path / "model", changed)))
    assert len(digests) == 20


def test_a_folder_without_weights_and_a_torn_file_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.safetensors"):
        weights_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff\xff\xff")
    assert len(weights_digest(tmp_path)) == 64


def test_files_of_other_weights_are_refused_and_old_ones_are_not(tmp_path):
    model = save(tmp_path / "model")
    mine, old = tmp_path / "evaluation.json", tmp_path / "old.json"
    refuse_other_weights({mine: weights_digest(model), old: None}, model)
    save(model, VALUES + 1)
    wanted = f"{mine}: was measured with other weights than {model}; run `e2ray evaluate` again"
    with pytest.raises(SettingsError, match=re.escape(wanted)):
        refuse_other_weights({old: None, mine: weights_digest(save(tmp_path / "before"))}, model)
    refuse_other_weights({mine: "0" * 64}, tmp_path / "gone")


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"base_context_length": 32},
        {"lengths": []},
        {"base_context_length": 0, "lengths": []},
        {"base_context_length": "32", "lengths": []},
        {"base_context_length": 32, "lengths": {}},
        {"base_context_length": 32, "lengths": [3]},
        {"base_context_length": 32, "lengths": [{"context_length": 32}]},
        {"base_context_length": 32, "lengths": [{"context_length": 32, "served": None}]},
        {"base_context_length": 32, "lengths": [{"context_length": 32, "served": 0.5}]},
        {"base_context_length": 32, "lengths": [{"context_length": length, "served": 1} for length in (64, 32)]},
    ],
)
def test_damaged_scales_are_named_in_one_line(tmp_path, content):
    path = tmp_path / "scales.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=r"scales\.json: is damaged, .*; wanted base_context_length and lengths"):
        read_scales(path, model=tmp_path)


def test_whole_scales_are_read_as_they_are(tmp_path):
    path = tmp_path / "scales.json"
    found = {"base_context_length": 32, "lengths": [{"context_length": 32, "served": 1.0}], "weights_digest": "0" * 64}
    path.write_text(json.dumps(found))
    assert read_scales(path, model=tmp_path) == Scales.model_validate(found)
    with pytest.raises(SettingsError, match="other weights"):
        read_scales(path, model=save(tmp_path / "model"))
