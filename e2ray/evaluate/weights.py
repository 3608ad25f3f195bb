"""Which weights an evaluation was made with, so that its figures and scales are never taken for those of others.

A digest of whole checkpoints would read 100 GB to answer a command. This one covers of each file the name, the size,
the header and a MiB spread over the rest: a training step changes nearly every weight, so other weights have another
digest, while a change outside of those blocks, a few bytes edited by hand, is not noticed.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from e2ray.config.base import SettingsError
from e2ray.records.scales import Scales

BLOCKS, BLOCK_BYTES = 16, 64 * 1024
LENGTH_BYTES = 8  # of a safetensors file, before its header


def weights_digest(folder: str | Path) -> str:
    """Return a digest of a model folder's weights: 64 hex digits.

    It covers of each safetensors file its name, its size, its header and 16 evenly spaced blocks of 64 KiB of its
    tensors; a file of up to 1 MiB is covered whole.

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
        named: Digest that each file names; None where it names none, as files of earlier versions.
        model: The model's folder; one without weights is not checked.
    """
    known = {path: digest for path, digest in named.items() if digest is not None}
    if not known or not any(model.glob("*.safetensors")):
        return
    own = weights_digest(model)
    for path, digest in known.items():
        if digest != own:
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
    scales = Scales.read(path)
    refuse_other_weights({path: scales.weights_digest}, model)
    return scales
