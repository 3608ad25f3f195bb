"""Which weights an evaluation was made with, so that its figures and scales are never taken for those of others.

A digest of whole checkpoints would read 100 GB to answer a command. This one reads of each file the name, the size, the
header and a MiB spread over the rest: a training step moves nearly every weight, so other weights show in it, while a
change that spares all of those blocks, a few bytes edited by hand, does not.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from e2ray.config.base import SettingsError
from e2ray.records.scales import Scales

BLOCKS, BLOCK_BYTES = 16, 64 * 1024
LENGTH_BYTES = 8  # of a safetensors file, before its header


def weights_digest(folder: str | Path) -> str:
    """Return 64 hexadecimal digits that name a model folder's weights.

    Of each safetensors file count its name, its size, its header and 16 evenly spaced blocks of 64 KiB of its tensors;
    a file of up to 1 MiB counts whole.

    Args:
        folder: Of a model.

    Raises:
        FileNotFoundError: If it holds no safetensors.
        SettingsError: If a file cannot be read.
    """
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"{folder}: holds no *.safetensors; wanted the model folder of a finished run")
    digest = hashlib.sha256()
    for path in paths:
        try:
            _add(digest, path)
        except OSError as error:
            raise SettingsError(f"{path}: cannot be read: {error.strerror}; wanted weights") from None
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name}\0{size}\0".encode())
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES)
        header = min(int.from_bytes(start, "little"), max(0, size - LENGTH_BYTES))
        digest.update(start + file.read(header))
        first = LENGTH_BYTES + header
        room = max(0, size - first - BLOCK_BYTES)  # the last block ends with the file
        for block in range(BLOCKS):
            file.seek(first + room * block // (BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))


def refuse_other_weights(named: Mapping[Path, str | None], model: Path) -> None:
    """Raise SettingsError if a file was measured with other weights than those of the model beside it.

    Args:
        named: Digests by the file that names one; None where it names none, as those of earlier versions.
        model: The model's folder; nothing is known of one that holds no weights.
    """
    told = {path: digest for path, digest in named.items() if digest is not None}
    if not told or not any(model.glob("*.safetensors")):
        return
    found = weights_digest(model)
    for path, digest in told.items():
        if digest != found:
            raise SettingsError(f"{path}: was measured with other weights than {model}; run `e2ray evaluate` again")


def read_scales(path: Path, *, model: Path) -> Scales:
    """Return a scales.json that belongs to a model.

    Args:
        path: The file.
        model: The model's folder.

    Raises:
        FileNotFoundError: If there is no such file.
        SettingsError: If it is damaged, or was measured with other weights.
    """
    found = Scales.read(path)
    refuse_other_weights({path: found.weights_digest}, model)
    return found
