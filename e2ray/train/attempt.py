"""The files by which the driver and the workers of one training attempt learn of each other."""

from pathlib import Path

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.train.loop import Diverged


def beats(folder: Path, attempt: str) -> Path:
    """Return the folder of the workers' heartbeats."""
    return folder / f".heartbeats-{attempt}"


def refusal(folder: Path, attempt: str) -> Path:
    """Return the file that a worker leaves where no restart helps."""
    return folder / f".refused-{attempt}"


def leave(path: Path, error: Exception) -> None:
    """Leave an error that no restart fixes, for the driver and the workers that Ray starts again."""
    files.write_json(path, {"kind": type(error).__name__, "line": str(error)})


def left(path: Path) -> Exception | None:
    """Return the error that a worker left, if any, and remove it."""
    if not path.exists():
        return None
    refused = files.read_object(path, wanted="what a worker left")
    path.unlink()
    line = str(refused["line"])
    return Diverged(line) if refused["kind"] == Diverged.__name__ else SettingsError(line)
