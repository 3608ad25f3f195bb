"""The record of a model folder that was written here: `e2ray/manifest.json`, the digests of its files, and
`e2ray/probe.safetensors`, the model's answers to fixed tokens.

Both are in a subfolder, since servers load every `*.safetensors` beside the weights. A folder without it came from
somewhere else, and nothing is known of it. Weights, configs, tokenizers and serving profiles are read only as they were
written; texts and pictures for people may be edited.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

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
from e2ray.records.folders import ModelFolder
from e2ray.records.model import ModelRecord, ModelTraining

RECORD, PROBE = ModelFolder.about.name, ModelFolder.probe.name
METHODS: TypeAdapter[Method] = TypeAdapter(Method)


def seal(folder: Path, probe: Probe | None, *, training: ModelTraining | None = None) -> None:
    """Write the record of a model folder that is complete; call it before the folder gets its name.

    Args:
        folder: Of the model.
        probe: Of the model, None where none is known.
        training: The one that made the model; None where none did.
    """
    here = ModelFolder(folder)
    here.about.mkdir()
    if probe is not None:
        probe.save(here.probe)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    ModelRecord(files=files.fingerprints(folder, names), training=training).write(here.record)


def refuse_damaged(folder: Path, *, only: Iterable[str] | None = None) -> None:
    """Raise SettingsError naming the first file of a model folder that was changed, or added, after it was written.

    A folder without a record is not checked.

    Args:
        folder: Of the model.
        only: Names of the files whose content is read; None: all but documents.
    """
    record = _record(folder)
    if record is None:
        return
    manifest = record.files
    advice = "restore it, or remove the folder and write it anew with the command that made it"
    expected = {name: entry for name, entry in manifest.items() if not is_for_people(name)}
    if only is not None:
        expected = {name: entry for name, entry in expected.items() if name in set(only)}
    if problem := files.damage(folder, expected):
        raise SettingsError(f"{problem}; {advice}")
    for name in files_below(folder):
        if name not in manifest and not name.startswith(f"{RECORD}/") and is_loaded(name):
            raise SettingsError(
                f"{folder / name}: was put into the folder since it was written, and would be read; remove it"
            )


def recorded(folder: Path) -> frozenset[str] | None:
    """Return the names of the files that a model folder was written with, None where nothing is known of it."""
    record = _record(folder)
    return None if record is None else frozenset(record.files)


def probe_of(folder: Path) -> Probe | None:
    """Return the probe of a model folder, None where none is known."""
    record = _record(folder)
    if record is None or PROBE not in record.files:
        return None
    refuse_damaged(folder, only=[PROBE])
    return Probe.read(folder / PROBE)


def weights_identity(path: str, revision: str | None, *, is_folder: bool) -> str | None:
    """Return a digest of a checkpoint's weights to the last bit, 64 hex digits; None where there are no weights yet.

    Args:
        path: Folder, or hub id of a checkpoint that was fetched before.
        revision: Branch, tag or commit of a hub id.
        is_folder: Whether `path` is a folder.
    """
    folder = Path(path).expanduser()
    if not is_folder:
        config = cached_file(path, CONFIG_NAME, revision=revision)
        assert config is not None, "a model that was loaded has a config"
        folder = Path(config).parent
    record = _record(folder)
    names = weight_files(folder)
    if not names:
        return None
    fingerprints = files.fingerprints(folder, names) if record is None else {name: record.files[name] for name in names}
    return files.digest({name: each.model_dump() for name, each in fingerprints.items()})


def training_of(folder: Path) -> ModelTraining | None:
    """Return the training that made the model of a folder, None where it is not known.

    It is not known of models whose record holds only a digest of their settings, as the first records did.
    """
    record = _record(folder)
    return record.training if record else None


def trained_method(folder: Path) -> Method:
    """Return the frequency method that a folder's model was trained under; linear where it is not known."""
    training = training_of(folder)
    positions = training.settings.get("positions") if training else None
    method = positions.get("method") if isinstance(positions, dict) else None  # None: of when there was linear alone
    if method is None:
        return LinearMethod()
    try:
        return METHODS.validate_python(method)
    except ValidationError:
        kind = method.get("kind") if isinstance(method, dict) else method
        raise SettingsError(
            f"{ModelFolder(folder).record}: was trained under the frequency method {kind!r}, which this version does "
            "not know; take a newer one"
        ) from None


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that a folder's weights are loaded from: one, or those that an index lists.

    Where there is no file that loaders look for, all files that may hold weights.

    Raises:
        SettingsError: If the index cannot be read.
    """
    with suppress(FileNotFoundError, SettingsError):  # loading the model reports it
        config = files.read_json(folder / CONFIG_NAME, wanted="a model's config")
        named = config.get("transformers_weights") if isinstance(config, dict) else None
        if isinstance(named, str) and (folder / named).is_file():
            return [named]
    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (folder / whole).is_file():
            return [whole]
        if (folder / index).is_file():
            listed = files.read_json(folder / index, wanted="an index of weights")
            weight_map = listed.get("weight_map") if isinstance(listed, dict) else None
            if not isinstance(weight_map, dict):
                raise SettingsError(f"{folder / index}: is damaged, wanted weight_map, the file of each parameter")
            return sorted({str(name) for name in weight_map.values() if (folder / str(name)).is_file()})
    return sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHTS and path.is_file())


def _record(folder: Path) -> ModelRecord | None:
    """Return the record of a folder, None where it has none.

    Raises:
        SettingsError: If the record is damaged.
    """
    here = ModelFolder(folder)
    if not here.about.is_dir():
        return None
    if not here.record.is_file():
        raise SettingsError(f"{here.record}: is missing; {ModelRecord.anew}")
    return ModelRecord.read(here.record)
