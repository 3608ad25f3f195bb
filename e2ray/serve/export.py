"""From a trained model folder to a folder people serve: weights, one profile per context length, the evidence.

A profile is nothing but rope parameters, since the weights know no scale (`profiles.py`). None is trusted: every one
is read back from the disk with plain transformers and compared with the rotary hook, which the model was trained with,
before the folder appears under its name.
"""

import io
import os
import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic import JsonValue
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from e2ray.config.base import SettingsError
from e2ray.core.file_names import files_below, kind_left_behind
from e2ray.core.methods.base import FrequencyMethod
from e2ray.core.methods.registry import method_of
from e2ray.core.model_folder import RECORD, probe_of, recorded, refuse_damaged, seal, training_of
from e2ray.core.scales import reaching_scale, row_scale
from e2ray.data.pace import Progress
from e2ray.data.tokenizer import save_whole, serve_up_to
from e2ray.files import atomic_folder, read_json, write_json, write_text
from e2ray.records.evaluation import Evaluation
from e2ray.records.folders import ExportFolder, ModelFolder
from e2ray.records.scales import Scales
from e2ray.records.serving import Commands
from e2ray.serve.card import PICTURE, RunFacts, command_blocks, model_card, serving_notes
from e2ray.serve.profiles import Profile, commands, make_profile
from e2ray.serve.verify import Check, verify
from e2ray.train.beside import card_fields

END_OF_PNG = bytes.fromhex("0000000049454e44ae426082")
NAMES_A_PATH = re.compile(r"(name_or_path|file|path|dir|folder)s?$")
LOCAL_PATH = re.compile(r"[/~$]|\.{1,2}/|[A-Za-z]:\\|file:")


def export(
    model_folder: str | Path,
    out_folder: str | Path,
    *,
    base_context_length: int,
    context_lengths: Sequence[int],
    base_scaling: Literal["keep", "replace"] | None,
    evaluation: Evaluation | None,
    run: RunFacts,
    picture: str | Path | None = None,
    scales: Scales | None = None,
    progress: Progress | None = None,
) -> list[Check]:
    """Write a Hugging Face folder with a profile per context length and a card; return the check of each profile.

    Args:
        model_folder: Safetensors, config and tokenizer as the trainer saved them; weights are linked, not rewritten.
        out_folder: Appears whole or not at all; an older one is replaced.
        base_context_length: L in tokens.
        context_lengths: W in tokens.
        base_scaling: The run's choice where its base model carried a scaling.
        evaluation: What was measured, or None without it.
        run: What the card says about the run.
        picture: evaluation.png, copied in.
        scales: Those of the run, written beside the weights; a context length they name is served by them, every other
            one at W / L.
        progress: Takes one line per profile, and one per file that is left out.

    Raises:
        FileNotFoundError: If the model folder lacks a part.
        SettingsError: If a profile cannot be expressed, or differs from the hook when loaded back.
    """
    model_folder, out_folder = Path(model_folder).resolve(), Path(out_folder).resolve()
    if out_folder == model_folder or out_folder in model_folder.parents:
        raise SettingsError(f"export {out_folder}: would replace the model folder {model_folder}; name another folder")
    refuse_damaged(model_folder)
    config = _read_config(model_folder)
    measured = {row.context_length: row_scale(row) for row in scales.lengths} if scales else {}
    trained = method_of(run.method)
    tell = progress or (lambda line: None)
    with atomic_folder(out_folder) as aside:
        for line in _take_files(model_folder, aside):
            tell(line)
        save_whole(model_folder, aside)
        serve_up_to(aside, max(base_context_length, *context_lengths))
        _mend_configs(aside, base_context_length, max(base_context_length, *context_lengths))
        make = partial(make_profile, config, base_context_length, base_scaling=base_scaling, method=trained)
        profiles = [make(length, scale=measured.get(length)) for length in context_lengths]
        checks = _written(aside, profiles, run.name, trained, base_context_length, progress)
        if scales:
            scales.write(ExportFolder(aside).scales)
        if picture is not None:
            (aside / PICTURE).write_bytes(picture_of(Path(picture)))
        of_base, unread = card_fields(model_folder)
        if unread:
            tell(unread)
        card = model_card(config, profiles, checks, base_context_length, evaluation, run, bool(picture), of_base)
        write_text(ExportFolder(aside).card, card)
        seal(aside, probe_of(model_folder), training=training_of(model_folder))
    return checks


def _written(
    aside: Path,
    profiles: Sequence[Profile],
    name: str,
    method: FrequencyMethod,
    base_context_length: int,
    progress: Progress | None,
) -> list[Check]:
    """Write the profiles of an export, and return the check of each, loaded back."""
    for profile in profiles:
        _write_profile(aside, profile, name, base_context_length)
    scales = {profile.context_length: profile.scale for profile in profiles}
    return verify(
        aside,
        base_context_length=base_context_length,
        context_lengths=list(scales),
        scales=scales,
        method=method,
        progress=progress,
    )


def picture_of(path: Path) -> bytes:
    """Return a PNG file whose checksums hold.

    Raises:
        SettingsError: If it is damaged.
    """
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.verify()
            whole = opened.format == "PNG" and content.endswith(END_OF_PNG)
    except (OSError, SyntaxError, ValueError) as error:
        raise SettingsError(f"{path}: is damaged ({error}); run `e2ray evaluate` again") from None
    if not whole:
        raise SettingsError(f"{path}: is damaged, wanted a PNG file; run `e2ray evaluate` again")
    return content


def _read_config(folder: Path) -> PreTrainedConfig:
    if not ModelFolder(folder).config.is_file():
        raise FileNotFoundError(f"{folder / 'config.json'}: not found; wanted the model folder of a finished run")
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _take_files(model_folder: Path, out_folder: Path) -> list[str]:
    """Link the weights, copy the other files a model was written with, and return one line per file left behind."""
    if not any(model_folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{model_folder}: holds no *.safetensors; wanted the model folder of a finished run")
    written, lines = recorded(model_folder), []
    for name in files_below(model_folder):
        if name.startswith(f"{RECORD}/"):
            continue
        weights = "/" not in name and name.endswith(".safetensors")
        kind = None if weights else kind_left_behind(name)
        if kind is not None or (written is not None and name not in written):
            lines.append(f"{model_folder / name}: {kind or 'put there by somebody else'}, is left out of the export")
            continue
        (out_folder / name).parent.mkdir(parents=True, exist_ok=True)
        if weights:
            try:
                os.link((model_folder / name).resolve(), out_folder / name)
                continue
            except OSError:  # another file system, or one without links
                pass
        shutil.copyfile(model_folder / name, out_folder / name)
    return lines


def _mend_configs(folder: Path, base_context_length: int, longest: int) -> None:
    """Remove the paths of its owner's disk from a base's small configs, and allow text as long as is served."""
    for name in ("tokenizer_config.json", GENERATION_CONFIG_NAME):
        path = folder / name
        known = read_json(path, wanted="settings of a base model") if path.is_file() else None
        if not isinstance(known, dict):
            continue
        config = {key: _without_paths(item) for key, item in known.items() if not _is_path(key, item)}
        if name == GENERATION_CONFIG_NAME and config.get("max_length") == base_context_length:
            config["max_length"] = longest
        if config != known:
            write_json(path, config)


def _without_paths(value: JsonValue) -> JsonValue:
    """Return settings without those that name a local file or folder, at any depth."""
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_paths(item) for key, item in value.items() if not _is_path(key, item)}


def _is_path(key: str, value: JsonValue) -> bool:
    return bool(NAMES_A_PATH.search(key) and isinstance(value, str) and LOCAL_PATH.match(value))


def _write_profile(aside: Path, profile: Profile, name: str, base_context_length: int) -> None:
    lines = commands(profile, model=".", name=f"{name}-{profile.context_length}")
    here, length = ExportFolder(aside), profile.context_length
    write_json(here.override(context_length=length), profile.override)
    known = {"context_length": length, "scale": profile.scale, **lines}
    Commands.model_validate(known).write(here.commands(context_length=length))
    paper = reaching_scale(profile.context_length, base_context_length)
    why = f"= {profile.context_length} / {base_context_length}"
    if length <= base_context_length and profile.scale == 1:
        why = f"since it is at most L = {base_context_length}"
    elif profile.scale != paper:
        why = f"was measured better at this length than W / L = {paper:g}, on the documents that chose it"
    write_text(
        here.profile_card(context_length=length),
        f"# Serving {profile.context_length} tokens\n\nScale {profile.scale:g} {why}. The commands below run in "
        "the export's folder; a hub id, or the folder's path, works in place of `.`.\n\n"
        f"{command_blocks(lines)}\n{serving_notes(profile, base_context_length)}",
    )
