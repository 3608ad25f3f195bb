"""The folder `checkpoints/` by names alone: which `step-<n>` there are and which one `latest` names.

`latest` is written before the first checkpoint too (`step-0`: from the beginning), so that checkpoints without it mean
that it was lost, and a training never begins anew on top of them.
"""

import re
import shlex
from pathlib import Path

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.records.folders import CheckpointFolder, CheckpointsFolder

LATEST = CheckpointsFolder.latest.name
NAME = re.compile(r"step-(\d{1,18})")
LONGEST_POINTER = 64  # bytes that are read of it


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of every committed checkpoint, the newest first; other names are ignored."""
    candidates = [(int(name[1]), path) for path in folder.glob("step-*") if (name := NAME.fullmatch(path.name))]
    return sorted((step, path) for step, path in candidates if CheckpointFolder(path).manifest.is_file())[::-1]


def begin(folder: Path) -> None:
    """Write `latest` where a training begins that has no checkpoint yet."""
    if not (folder / LATEST).exists() and not step_folders(folder):
        files.write_text(folder / LATEST, "step-0\n")


def latest(folder: Path) -> Path | None:
    """Return the folder of the checkpoint that `latest` names, or None where the training is at its beginning.

    Raises:
        SettingsError: If `latest` is lost, unreadable or names what is not there.
    """
    pointer, steps = folder / LATEST, step_folders(folder)
    command = f"echo {steps[0][1].name} > {shlex.quote(str(pointer))}" if steps else ""
    again = f"`{command}` names the newest one" if steps else "remove the folder to begin anew"
    try:
        with pointer.open("rb") as file:
            name = file.read(LONGEST_POINTER).decode("ascii").strip()
    except FileNotFoundError:
        if not steps:
            return None
        raise SettingsError(f"{pointer}: is lost, and {len(steps)} checkpoints stand beside it; {again}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise SettingsError(f"{pointer}: cannot be read ({reason}), wanted step-<n>; {again}") from None
    if not NAME.fullmatch(name):
        raise SettingsError(f"{pointer}: says {name!r}, wanted step-<n>; {again}")
    if name == "step-0":  # a kill came between the first checkpoint's commit and its pointer
        return steps[0][1] if steps else None
    if not (folder / name).is_dir():
        raise SettingsError(f"{pointer}: names {name}, which is not there; {again}")
    return folder / name


def begun(folder: Path) -> bool:
    """Return whether a training has left a checkpoint in its folder."""
    return bool(step_folders(folder))
