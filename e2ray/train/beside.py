"""The files beside a base model's weights, which are copied to what is trained from it.

Licences, notices, use policies, generation settings, files of other programs: all but weights, code, pickles, and what
is written anew (the config and the tokenizer). The base's card becomes `README.base.md`, and its fields enter the card
of an export.
"""

import re
import shutil
from pathlib import Path

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    WEIGHTS_INDEX_NAME,
    cached_file,
)

from e2ray.config.model import Model, PretrainedModel
from e2ray.core.file_names import ANY_WEIGHTS, CODE, INDEX, PICKLES, files_below, kind_left_behind
from e2ray.core.model_folder import RECORD, weight_files
from e2ray.core.weights import first_line
from e2ray.data.tokenizer import tokenizer_files
from e2ray.records.folders import ExportFolder

BASE_CARD = "README.base.md"
INDEXES = (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME)
CARDS = re.compile(r"^(README(?:\.base)*)\.md$")
OF_EXPORTS = (ExportFolder.about, ExportFolder.serving, ExportFolder.scales, ExportFolder.picture)
OF_AN_EXPORT = frozenset(entry.name for entry in OF_EXPORTS)  # where the base is one of ours
OF_THE_BASE = frozenset(
    {"model-index", "base_model_relation", "widget", "new_version", "inference"}
)  # fields of a card


def base_name(model: Model) -> str | None:
    """Return what cards call a base model: its hub id, or its folder's own name; None for one built from its sizes."""
    if not isinstance(model, PretrainedModel):
        return None
    return Path(model.path).expanduser().resolve().name if model.is_folder else model.path


def base_folder(model: Model) -> tuple[Path | None, list[str]]:
    """Return the folder of a base model's small files, and one line if not all could be fetched.

    Those of a hub id are fetched now or were before; the folder is None for a model built from its sizes.
    """
    if not isinstance(model, PretrainedModel):
        return None, []
    if model.is_folder:
        return Path(model.path).expanduser(), []
    unwanted = [f"*{suffix}" for suffix in sorted(ANY_WEIGHTS | CODE | PICKLES)]
    try:
        return Path(snapshot_download(model.path, revision=model.revision, ignore_patterns=unwanted)), []
    except (HfHubHTTPError, OSError, ValueError) as error:  # all the ways of being offline
        config = cached_file(model.path, CONFIG_NAME, revision=model.revision)
        assert config is not None, "a model that was loaded has a config"
        return Path(config).parent, [
            f"{model.path}: the hub does not answer ({first_line(error)}), so of its small files only those that were "
            "fetched before travel with the model"
        ]


def take_along(source: Path, target: Path) -> list[str]:
    """Copy the files beside a base model's weights, and return one line per file that stays behind.

    The new model's config and tokenizer are in its folder already.
    """
    ours = OF_AN_EXPORT if (source / RECORD).is_dir() else frozenset()
    written = {CONFIG_NAME, *tokenizer_files(source), *weight_files(source), *INDEXES}
    lines = []
    for name in files_below(source):
        if name in written or name.split("/")[0] in ours:
            continue
        kind = "an index of weights" if name.endswith(INDEX) else kind_left_behind(name)
        if kind is None:
            kept = target / CARDS.sub(r"\1.base.md", name)  # a base that has one of its own keeps it
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, kept)
        else:
            lines.append(f"{name}: {kind}, stays with the base model")
    for path in sorted(source.iterdir()):
        if path.name.startswith("."):
            lines.append(f"{path.name}: hidden, stays with the base model")
        elif path.is_symlink() and path.is_dir():
            lines.append(f"{path.name}: a link to a folder, stays with the base model")
    return lines


def has_generation_settings(source: Path | None) -> bool:
    """Return whether a base says how text is generated, in a file of its own."""
    return source is not None and (source / GENERATION_CONFIG_NAME).is_file()


def card_fields(folder: Path) -> tuple[dict[str, object], str | None]:
    """Return the fields at the head of a base model's card that hold for what was trained from it; none without one.

    `take_along` has put the card into the model folder. If its head cannot be read, the second value says so.
    """
    path = folder / BASE_CARD
    text = path.read_text(encoding="utf-8", errors="replace").lstrip("\ufeff \r\n") if path.is_file() else ""
    if not text.startswith("---"):
        return {}, None
    head, closing, _ = text.removeprefix("---").partition("\n---")
    try:
        fields = yaml.safe_load(head) if closing else None
    except yaml.YAMLError:
        fields = None
    if closing and fields is None and not head.strip("\r\n "):
        return {}, None
    if not isinstance(fields, dict):
        return {}, f"{path}: its head is no YAML between two lines of ---, so its fields do not enter the card"
    return {key: value for key, value in fields.items() if key not in OF_THE_BASE}, None
