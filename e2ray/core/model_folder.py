"""What is known of a model folder that was written here: `e2ray/manifest.json`, the digests of its files, and
`e2ray/probe.safetensors`, what the model answers to fixed tokens.

Both lie in a subfolder, since servers load every `*.safetensors` beside the weights. A folder without it came from
somewhere else, and nothing is known of it. Weights, configs, tokenizers and serving profiles are read only as they were
written; texts and pictures for people may be edited.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.methods import LinearMethod, Method
from e2ray.core.file_names import WEIGHTS, files_below, is_for_people, is_loaded
from e2ray.core.probe import Probe

RECORD, MANIFEST, PROBE = "e2ray", "manifest.json", "probe.safetensors"
FORMAT = 1
METHODS: TypeAdapter[Method] = TypeAdapter(Method)


def seal(folder: Path, probe: Probe | None, *, training: Mapping[str, Any] | None = None) -> None:
    """Write the record of a model folder whose files are all there; call it before the folder gets its name.

    Args:
        folder: Of the model.
        probe: Of the model, None where none is known.
        training: What the training was that made the model, plain data; None where none did.
    """
    record = folder / RECORD
    record.mkdir()
    if probe is not None:
        probe.save(record / PROBE)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    content: dict[str, Any] = {"format": FORMAT, "files": files.fingerprints(folder, names)}
    if training is not None:
        content["training"] = dict(training)
    files.write_json(record / MANIFEST, content | {"digest": files.digest(content)})


def refuse_damaged(folder: Path, *, only: Iterable[str] | None = None) -> None:
    """Raise SettingsError naming the first file of a model folder that is not what was written, or was put there since.

    Nothing is said of a folder without a record.

    Args:
        folder: Of the model.
        only: Names of the files whose content is read; None: all but documents.
    """
    manifest = _manifest(folder)
    if manifest is None:
        return
    advice = "restore it, or remove the folder and write it anew with the command that made it"
    wanted = {name: entry for name, entry in manifest.items() if not is_for_people(name)}
    if only is not None:
        wanted = {name: entry for name, entry in wanted.items() if name in set(only)}
    if found := files.damage(folder, wanted):
        raise SettingsError(f"{found}; {advice}")
    for name in files_below(folder):
        if name not in manifest and not name.startswith(f"{RECORD}/") and is_loaded(name):
            raise SettingsError(
                f"{folder / name}: was put into the folder since it was written, and would be read; remove it"
            )


def recorded(folder: Path) -> frozenset[str] | None:
    """Return the names of the files that a model folder was written with, None where nothing is known of it."""
    manifest = _manifest(folder)
    return None if manifest is None else frozenset(manifest)


def probe_of(folder: Path) -> Probe | None:
    """Return the probe of a model folder, None where none is known."""
    manifest = _manifest(folder)
    name = f"{RECORD}/{PROBE}"
    if manifest is None or name not in manifest:
        return None
    refuse_damaged(folder, only=[name])
    return Probe.read(folder / name)


def weights_identity(path: str, revision: str | None, *, is_folder: bool) -> str | None:
    """Return 64 hexadecimal digits that name a checkpoint's weights to the last bit, None where none are there yet.

    Args:
        path: Folder, or hub id of what was fetched before.
        revision: Branch, tag or commit of a hub id.
        is_folder: Whether `path` is a folder.
    """
    folder = Path(path).expanduser()
    if not is_folder:
        config = cached_file(path, CONFIG_NAME, revision=revision)
        assert config is not None, "a model that was loaded has a config"
        folder = Path(config).parent
    manifest = _manifest(folder)
    names = weight_files(folder)
    if not names:
        return None
    found = files.fingerprints(folder, names) if manifest is None else {name: manifest[name] for name in names}
    return files.digest(found)


def training_of(folder: Path) -> dict[str, Any] | None:
    """Return what the training was that made the model of a folder, None where nothing is known of it.

    Nothing is known of models whose record holds a digest of their settings alone, as the first records did.
    """
    training = (_content(folder) or {}).get("training")
    return training if training and isinstance(training.get("settings"), Mapping) else None


def trained_method(folder: Path) -> Method:
    """Return what a scale meant in the training of a folder's model; linear where nothing is known of it."""
    settings = (training_of(folder) or {}).get("settings", {})
    told = settings.get("positions", {}).get("method")  # of trainings that knew none other than linear, None
    if told is None:
        return LinearMethod()
    try:
        return METHODS.validate_python(told)
    except ValidationError:
        kind = told.get("kind") if isinstance(told, dict) else told
        raise SettingsError(
            f"{folder / RECORD / MANIFEST}: was trained under the frequency method {kind!r}, which this version does "
            "not know; take a newer one"
        ) from None


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that a folder's weights are loaded from: one, or those that an index lists.

    Without either of the names that loaders look for, all that may hold weights.

    Raises:
        SettingsError: If the index cannot be read.
    """
    with suppress(FileNotFoundError, SettingsError):  # whoever loads the model says so
        config = files.read_json(folder / CONFIG_NAME, wanted="a model's config")
        named = config.get("transformers_weights") if isinstance(config, dict) else None
        if isinstance(named, str) and (folder / named).is_file():
            return [named]
    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (folder / whole).is_file():
            return [whole]
        if (folder / index).is_file():
            listed = files.read_json(folder / index, wanted="an index of weights")
            found = listed.get("weight_map") if isinstance(listed, dict) else None
            if not isinstance(found, dict):
                raise SettingsError(f"{folder / index}: is damaged, wanted weight_map, the file of each parameter")
            return sorted({str(name) for name in found.values() if (folder / str(name)).is_file()})
    return sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHTS and path.is_file())


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Return the fingerprints of a folder's files by name, None where it has no record."""
    content = _content(folder)
    return None if content is None else dict(content["files"])


def _content(folder: Path) -> dict[str, Any] | None:
    """Return what a folder's record holds, None where it has none.

    Raises:
        SettingsError: If the record is damaged.
    """
    record = folder / RECORD
    if not record.is_dir():
        return None
    path = record / MANIFEST
    if not path.is_file():
        raise SettingsError(f"{path}: is missing; restore it, or write {folder} anew with the command that made it")
    content = files.read_json(path, wanted="the digests of a model folder")
    told = content.pop("digest", None) if isinstance(content, dict) else None
    if told is None or files.digest(content) != told or content.get("format") != FORMAT:
        raise SettingsError(f"{path}: is damaged; restore it, or write {folder} anew with the command that made it")
    return dict(content)
