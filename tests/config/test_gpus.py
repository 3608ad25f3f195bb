"""A table of GPUs and prices of one's own: over the known ones, and refused where it says too little."""

import pytest

from e2ray.config.base import SettingsError
from e2ray.config.gpus import GPUS, gpu_table


def written(tmp_path, text):
    (tmp_path / "gpus.yaml").write_text(text)
    return str(tmp_path / "gpus.yaml")


def test_a_price_alone_replaces_that_of_a_known_gpu(tmp_path):
    table = gpu_table(written(tmp_path, "H100: 2\nL4: {usd_per_hour: 0.5}\n"))
    assert table["H100"] == GPUS["H100"].model_copy(update={"usd_per_hour": 2.0})
    assert table["L4"].usd_per_hour == 0.5 and table["A100"] == GPUS["A100"]
    assert next(iter(table)) == "H100"  # one's own come first


def test_a_gpu_of_ones_own_is_added(tmp_path):
    table = gpu_table(written(tmp_path, "MI300X: {tflops: 1307, memory_gib: 191.5}\n"))
    assert (table["MI300X"].tflops, table["MI300X"].usd_per_hour) == (1307.0, None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("MI300X: 3.5\n", r"MI300X\.tflops: Field required; wanted tflops, memory_gib and usd_per_hour"),
        ("MI300X: {tflops: 1307}\n", r"MI300X\.memory_gib: Field required"),
        ("H100: cheap\n", r"H100\.usd_per_hour: Input should be a valid number"),
        ("H100: -1\n", r"H100\.usd_per_hour: Input should be greater than or equal to 0"),
        ("H100: .nan\n", r"H100\.usd_per_hour"),
        ("H100: {price: 2}\n", r"H100\.price: Extra inputs are not permitted"),
        ("", "holds no table, wanted lines such as `H100: 2.49`"),
        ("- 3\n", "holds no table"),
        ("H100: [\n", "cannot be read"),
    ],
)
def test_a_table_with_holes_is_one_line(text, complaint, tmp_path):
    with pytest.raises(SettingsError, match=rf"^--gpu-table .*gpus\.yaml: {complaint}"):
        gpu_table(written(tmp_path, text))


def test_a_missing_table_is_one_line(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        gpu_table(str(tmp_path / "none.yaml"))


def test_without_a_file_the_known_ones_are_returned():
    assert gpu_table(None) is GPUS
