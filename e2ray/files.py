"""Every atomic write, digest and lock of the project.

A file appears under its name only when it is whole: it is written aside in the same folder, flushed to the
disk and renamed. A killed process leaves at most a name that starts with `.tmp-`, which nobody reads.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from e2ray.config.base import SettingsError

TEMPORARY = ".tmp-"
READERS = 8  # files whose digests are computed at a time
_WRONG_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; when the block ends without an error it becomes `path`.

    Raises:
        SettingsError: If the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    aside = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise named_write_error(error, path) from error
    finally:
        with suppress(OSError):  # gone already, or the folder is no folder: the error above says so
            aside.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file whole or not at all."""
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def finite(value: Any) -> Any:
    """Return plain data with None for every NaN and infinity, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file whole or not at all; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder to fill; when the block ends without an error it becomes `folder`.

    Every file in it is flushed to the disk before the rename. An older folder of that name is replaced.
    """
    folder = Path(folder)
    aside = folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{folder.name}")
    try:
        aside.mkdir(parents=True)
        yield aside
        commit_folder(aside, folder)
    except OSError as error:
        raise named_write_error(error, folder) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def commit_folder(aside: Path, folder: Path) -> None:
    """Flush all files below `aside` and rename it to `folder`, replacing an older one."""
    for path in sorted(aside.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    sync_folder(aside)
    if folder.exists():
        old = folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-old-{folder.name}")
        folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        aside.rename(folder)
    sync_folder(folder.parent)


def named_write_error(error: OSError, path: Path) -> OSError | SettingsError:
    """Return a one-line error for a write that the file system refused, or the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return SettingsError(f"{path}: no space left on the device; free some or choose another storage")
    if error.errno in _WRONG_PLACE:
        return SettingsError(f"{path}: cannot be written: {error.strerror}; choose another storage")
    return error


def sha256(path: str | Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> dict[str, Any]:
    """Return what names a file's content: its bytes and their sha256."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def fingerprints(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the fingerprint of each named file of a folder; several are read at a time."""
    names = list(names)
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        return dict(zip(names, pool.map(fingerprint, [folder / name for name in names]), strict=True))


def damage(folder: Path, wanted: Mapping[str, Mapping[str, Any]], *, read: Collection[str] | None = None) -> str | None:
    """Return one line that names the first file which is not what its fingerprint says, or None where all are.

    Args:
        folder: Of the files.
        wanted: Their fingerprints by name.
        read: Names of those whose content is read; of the others only the size counts. None: all.
    """
    for name, entry in wanted.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return f"{path}: is missing or truncated (wanted {entry['bytes']} bytes)"
    chosen = [name for name in wanted if read is None or name in read]
    for name, found in fingerprints(folder, chosen).items():
        if found["sha256"] != wanted[name]["sha256"]:
            return f"{folder / name}: is damaged, its sha256 is not the one written"
    return None


def digest(value: Any) -> str:
    """Return the sha256 of plain data: of its JSON with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: str | Path, *, wanted: str) -> Any:
    """Return the value of a JSON file; `wanted` says in errors what the file should have been.

    Raises:
        FileNotFoundError: If there is no such file.
        SettingsError: If it cannot be read or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found; wanted {wanted}") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}; wanted {wanted}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SettingsError(f"{path}: is no JSON ({error}); wanted {wanted}") from None


@contextmanager
def lock(path: str | Path, *, what: str) -> Iterator[None]:
    """Hold an exclusive lock file for the block; it is free again when the process ends, however it ends.

    Raises:
        SettingsError: If another process holds it (`what` says what that process is doing), or the folder cannot
            be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise named_write_error(error, path) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(f"{path}: locked, another process is {what}; wait for it or end it") from None
        yield
