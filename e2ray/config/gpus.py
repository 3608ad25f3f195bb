"""What is known of GPUs: memory, arithmetic and price. A table of one's own replaces or adds to it."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from e2ray.config.base import Settings, SettingsError


class Gpu(Settings):
    """One kind of GPU."""

    tflops: float = Field(gt=0, le=1e6, description="Dense bf16 products with fp32 sums, 10^12 operations a second.")
    memory_gib: float = Field(gt=0, le=1e5, description="Memory that CUDA can use, GiB.")
    usd_per_hour: float | None = Field(None, ge=0, le=1e5, description="Price of one for an hour; null: unknown.")


# By words of the name that torch gives a GPU; the first that fits. Arithmetic: NVIDIA's data sheets. Memory: what CUDA
# leaves of the named size, about 1 % less. Prices: the middle of what specialised clouds asked for in May 2026
# (mercatus-ai.com, cloud GPU pricing); they change, and others ask half or twice as much.
GPUS: dict[str, Gpu] = {
    "B200": Gpu(tflops=2250.0, memory_gib=178.0),
    "H200": Gpu(tflops=989.4, memory_gib=139.7, usd_per_hour=4.0),
    "GH200": Gpu(tflops=989.4, memory_gib=94.5),
    "H100 PCIe": Gpu(tflops=756.0, memory_gib=79.1),
    "H100 NVL": Gpu(tflops=835.0, memory_gib=93.1),
    "H100": Gpu(tflops=989.4, memory_gib=79.1, usd_per_hour=3.0),
    "H800": Gpu(tflops=989.4, memory_gib=79.1),
    "H20": Gpu(tflops=148.0, memory_gib=95.0),
    "A100-SXM4-40GB": Gpu(tflops=312.0, memory_gib=39.4),
    "A100-PCIE-40GB": Gpu(tflops=312.0, memory_gib=39.4),
    "A100": Gpu(tflops=312.0, memory_gib=79.1, usd_per_hour=1.3),
    "A800": Gpu(tflops=312.0, memory_gib=79.1),
    "L40S": Gpu(tflops=362.0, memory_gib=44.4),
    "L40": Gpu(tflops=181.0, memory_gib=44.4),
    "L4": Gpu(tflops=121.0, memory_gib=22.0),
    "A40": Gpu(tflops=149.7, memory_gib=44.4),
    "A30": Gpu(tflops=165.0, memory_gib=23.5),
    "A10G": Gpu(tflops=70.0, memory_gib=22.1),
    "A10": Gpu(tflops=125.0, memory_gib=22.1),
    "RTX 6000 Ada": Gpu(tflops=364.2, memory_gib=47.4),
    "RTX A6000": Gpu(tflops=154.8, memory_gib=47.4),
    "RTX 4090": Gpu(tflops=165.2, memory_gib=23.5),
    "RTX 3090": Gpu(tflops=71.0, memory_gib=23.5),
}


def gpu_table(path: str | None) -> dict[str, Gpu]:
    """Return the GPUs that are known, those of a file of one's own first.

    The file is YAML: `NAME: {tflops: ..., memory_gib: ..., usd_per_hour: ...}`, or `NAME: PRICE` of a known one.

    Raises:
        SettingsError: If the file cannot be read, or says too little of a GPU.
    """
    if path is None:
        return GPUS
    try:
        told = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"--gpu-table {path}: cannot be read ({error}); name a YAML file") from None
    if not isinstance(told, Mapping) or not told:
        raise SettingsError(f"--gpu-table {path}: holds no table, wanted lines such as `H100: 2.49`")
    return {str(name): _read(path, str(name), fields) for name, fields in told.items()} | {
        name: gpu for name, gpu in GPUS.items() if name not in told
    }


def _read(path: str, name: str, told: object) -> Gpu:
    known = GPUS.get(name)
    fields = dict(told) if isinstance(told, Mapping) else {"usd_per_hour": told}
    fields = {key: float(value) if type(value) is int else value for key, value in fields.items()}
    try:
        return Gpu.model_validate((known.model_dump() if known else {}) | fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, [name, *first["loc"]]))
        raise SettingsError(
            f"--gpu-table {path}: {where}: {first['msg']}; wanted tflops, memory_gib and usd_per_hour of each, or the "
            f"price alone of one that is known ({', '.join(GPUS)})"
        ) from None
