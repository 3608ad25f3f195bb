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
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, overload

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from e2ray.config.base import Plain, SettingsError, brief

TEMPORARY = ".tmp-"
READERS = 8  # files whose digests are computed at a time
DIGEST = "digest"  # key of a sealed object's digest
LOCK_PATIENCE_S = 0.5  # asking whether a lock is held takes it for a moment
_FULL = {
    errno.ENOSPC: "no space left on the device; free some or choose another storage",
    errno.EDQUOT: "the disk quota is used up; free some of it, have it raised or choose another storage",
    errno.EFBIG: "a file may not grow that large here; raise the limit (`ulimit -f`) or choose another storage",
}
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
    with naming(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            aside.replace(path)
            sync_folder(path.parent)
        finally:
            with suppress(OSError):  # gone already, or the folder is no folder: the error above says so
                aside.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file whole or not at all."""
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


@overload
def finite(value: Mapping[str, object]) -> dict[str, object]: ...
@overload
def finite(value: object) -> object: ...
def finite(value: object) -> object:
    """Return plain data with None for every NaN and infinity, which JSON cannot express."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON file whole or not at all; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder to fill; when the block ends without an error it becomes `folder`.

    Every file in it is flushed to the disk before the rename. An older folder of that name is replaced.
    """
    folder = Path(folder)
    aside = folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{folder.name}")
    with naming(folder):
        try:
            aside.mkdir(parents=True)
            yield aside
            commit_folder(aside, folder)
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


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what the file system refuses in the block into a one-line error that names the file.

    Raises:
        SettingsError: If the disk is full, a quota or a limit is reached, or the folder cannot be written to.
    """
    try:
        yield
    except Exception as error:
        named = named_write_error(error, path)
        if named is error:
            raise
        raise named from error


def named_write_error(error: Exception, path: Path) -> Exception:
    """Return a one-line error for a write that the file system refused, or the error itself.

    Where the error names a file elsewhere, that one could not be read.

    Libraries in Rust, safetensors and tokenizers among them, hide the number of a failed write in a message.
    """
    hidden = None if isinstance(error, OSError | SettingsError) else re.search(r"\(os error (\d+)\)", str(error))
    number = int(hidden[1]) if hidden else getattr(error, "errno", None)
    if number in _FULL:
        return SettingsError(f"{path}: {_FULL[number]}")
    if number in _WRONG_PLACE:
        named = getattr(error, "filename", None)
        if isinstance(named, str) and _is_elsewhere(Path(named).absolute(), path.absolute()):
            return SettingsError(f"{named}: cannot be read: {os.strerror(number)}")
        return SettingsError(f"{path}: cannot be written: {os.strerror(number)}; choose another storage")
    return error


def _is_elsewhere(named: Path, path: Path) -> bool:
    """Return whether `named` is neither `path` nor a parent of it, and not in or below its folder."""
    return named not in (path, *path.parents) and path.parent not in named.parents


def sha256(path: str | Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Fingerprint(BaseModel):
    """What names a file's content."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    bytes: int = Field(ge=0, description="Its size.", json_schema_extra={"unit": "bytes"})
    sha256: str = Field(description="Of its bytes, 64 hexadecimal digits.")


def fingerprint(path: Path) -> Fingerprint:
    """Return the fingerprint of a file's content."""
    return Fingerprint(bytes=path.stat().st_size, sha256=sha256(path))


def fingerprints(folder: Path, names: Iterable[str]) -> dict[str, Fingerprint]:
    """Return the fingerprint of each named file of a folder; several are read at a time."""
    names = list(names)
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        return dict(zip(names, pool.map(fingerprint, [folder / name for name in names]), strict=True))


def damage(folder: Path, expected: Mapping[str, Fingerprint], *, read: Collection[str] | None = None) -> str | None:
    """Return one line that names the first file that does not match its fingerprint, or None where all match.

    Args:
        folder: Of the files.
        expected: Their fingerprints by name.
        read: Names of those whose content is read; of the others only the size counts. None: all.
    """
    for name, entry in expected.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry.bytes:
            return f"{path}: is missing or truncated (wanted {entry.bytes} bytes)"
    chosen = [name for name in expected if read is None or name in read]
    for name, actual in fingerprints(folder, chosen).items():
        if actual.sha256 != expected[name].sha256:
            return f"{folder / name}: is damaged, its sha256 is not the one written"
    return None


def digest(value: object) -> str:
    """Return the sha256 of plain data: of its JSON with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: str | Path, *, wanted: str) -> JsonValue:
    """Return the value of a JSON file; `wanted` says in errors what the file should have been.

    Raises:
        FileNotFoundError: If there is no such file.
        SettingsError: If it cannot be read or is not JSON.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{brief(path)}: not found; wanted {wanted}") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}; wanted {wanted}") from None
    return parse_json(content, where=str(path), wanted=wanted)


def parse_json(content: bytes | str, *, where: str, wanted: str) -> JsonValue:
    """Return the value of a JSON text that came from outside this process.

    Args:
        content: Bytes are read as UTF-8.
        where: Names the text in errors: a file, or a file and a line.
        wanted: Says in errors what it should have been.

    Raises:
        SettingsError: If it is no JSON, or nested deeper than can be read.
    """
    try:
        value: JsonValue = json.loads(content.decode("utf-8") if isinstance(content, bytes) else content)
        return value
    except RecursionError:
        raise SettingsError(f"{where}: is nested too deep; wanted {wanted}") from None
    except ValueError as error:  # of the bytes, of the text, and a number of too many digits
        raise SettingsError(f"{where}: is no JSON ({error}); wanted {wanted}") from None


def read_object(path: str | Path, *, wanted: str) -> Plain:
    """Return the object in a JSON file; any other value is refused, with the errors of `read_json`."""
    value = read_json(path, wanted=wanted)
    if not isinstance(value, dict):
        raise SettingsError(f"{path}: holds {kind_of(value)}; wanted {wanted}")
    return value


def kind_of(value: object) -> str:
    """Return what a value of JSON is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def write_sealed(path: str | Path, value: Mapping[str, object]) -> None:
    """Write a JSON object with its digest in it, whole or not at all; `read_told` detects every change of it."""
    assert DIGEST not in value, "the digest is put in here"
    write_json(path, {**value, DIGEST: digest(value)})


def read_told(path: str | Path, *, wanted: str) -> tuple[JsonValue, bool]:
    """Return the value of a JSON file that this project has written, and whether a digest in it vouches for it.

    Raises:
        FileNotFoundError: If there is no such file.
        SettingsError: If it cannot be read, is not JSON, or not what was written.
    """
    return vouched(read_json(path, wanted=wanted), path, wanted)


def vouched(value: JsonValue, path: str | Path, wanted: str) -> tuple[JsonValue, bool]:
    """Return a JSON value without its digest, and whether it had one."""
    if not isinstance(value, dict) or not value:
        return value, False
    is_vouched = DIGEST in value
    last = next(reversed(value))  # the digest comes last
    damaged = not is_vouched and _is_one_bit_off(last, DIGEST)
    if is_vouched:
        damaged = not is_digest(value.pop(DIGEST), value)
    if damaged:
        raise SettingsError(f"{path}: is damaged, its digest does not match; wanted {wanted}")
    return value, is_vouched


def is_digest(written: object, value: object) -> bool:
    """Return whether `written`, which a file gives, is the digest of a value."""
    try:
        return bool(written == digest(value))
    except ValueError:  # NaN, or half of a surrogate pair, which is never written
        return False


def _is_one_bit_off(name: str, expected: str) -> bool:
    """Return whether a name differs from the expected one in one bit."""
    pairs = zip(name.encode(errors="surrogatepass"), expected.encode(), strict=False)
    return len(name) == len(expected) and sum((one ^ other).bit_count() for one, other in pairs) == 1


@contextmanager
def lock(path: str | Path, *, what: str) -> Iterator[None]:
    """Hold an exclusive lock file for the block; it is released when the process ends, however it ends.

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
        until = time.monotonic() + LOCK_PATIENCE_S
        while not _taken(file, fcntl.LOCK_EX):
            if time.monotonic() >= until:
                raise SettingsError(f"{path}: locked, another process is {what}; wait for it or end it")
            time.sleep(0.01)
        yield


def is_locked(path: Path) -> bool | None:
    """Return whether a process holds a lock file; None where it cannot be told, since it is missing or unreadable."""
    try:
        with path.open("rb") as file:
            return not _taken(file, fcntl.LOCK_SH)
    except OSError:
        return None


def _taken(file: IO[str] | IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
