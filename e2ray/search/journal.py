"""The journal's file: every line sealed, so that damage is named and never read as other trials or as an empty study.

`study.journal` is an Optuna journal whose lines carry number and seal (`e2ray.records.sealed`), which Optuna's own
readers ignore. `study.journal.end` beside it holds those of the last line, so that missing last lines are noticed, too.
A line is written first and the end after it: what a killed process leaves is a torn last line, or one that the end does
not know yet; both are mended. A journal of an earlier version has no seals: this is reported, and it gets them with its
next line.
"""

import json
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

from e2ray import files
from e2ray.config.base import Plain, SettingsError
from e2ray.records.folders import StudyFolder
from e2ray.records.sealed import End, Lines, read, sealed

JOURNAL = StudyFolder.journal.name
END_SUFFIX = ".end"
LOCK_SUFFIX = ".lock"  # of Optuna's own lock, which a killed reader leaves behind
_LOG = logging.getLogger(__name__)


def mend(path: Path) -> None:
    """Remove what a killed process left of a journal: a torn last line, and Optuna's lock.

    Else the next line would be appended to the torn one, and both be lost.

    Raises:
        SettingsError: If the file cannot be read or written.
    """
    try:
        for left in path.parent.glob(f"{path.name}{LOCK_SUFFIX}*"):
            left.unlink()
        if not path.exists():
            return
        with path.open("rb+") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                _LOG.info("%s: a torn last line is taken off", path)
                file.truncate(whole)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be used: {error.strerror}; choose another storage") from error


def end_path(path: Path) -> Path:
    """Return where the end of a journal is kept."""
    return path.with_name(f"{path.name}{END_SUFFIX}")


def verified(path: Path) -> Lines:
    """Return the lines of a journal, none where it was never begun; nothing is changed.

    Raises:
        SettingsError: If a line is not what was written, lines are missing, or a file cannot be read.
    """
    beside = end_path(path)
    copies = f"put it and {beside.name} back from a copy"
    known = _read_end(beside)
    if not path.exists():
        if known is not None and known.lines:
            raise SettingsError(f"{path}: is missing, {known.lines} lines were written; {copies}")
        return Lines([], [], 0, sealed=False)

    def advice(kept: int) -> str:
        again = f"keep its first {kept} lines, remove {beside.name}, and what came behind is run again"
        return f"{copies}, or {again if kept else 'choose another name'}"

    content = read(path, advice=advice, must_be_sealed=known is not None and known.lines > 0)
    lines = len(content.values)
    if known is None:
        if not lines and path.read_bytes()[:1] != b"{":  # else a torn first line
            raise SettingsError(f"{path}: is empty, its trials are lost; {copies}, or remove it to begin anew")
        return content
    if lines < known.lines:
        torn = f" and a part of line {lines + 1}" if content.torn else ""
        raise SettingsError(
            f"{path}: holds {lines} lines{torn}, {known.lines} were written: its end is missing; {copies}, or remove "
            f"{beside.name}, and what came behind is run again"
        )
    if known.lines and content.ends[known.lines - 1] != known:
        raise SettingsError(
            f"{beside}: is of another copy, line {known.lines} of {path.name} has another seal; {copies}, or "
            f"remove {beside.name} to go on with the {lines} lines that are there"
        )
    return content


class Journal:
    """A journal, held by the one process that appends to it; what Optuna calls a backend."""

    def __init__(self, path: Path) -> None:
        """Open a journal, or begin it, after mending what a killed process left.

        Raises:
            SettingsError: If it is damaged, or cannot be read or written.
        """
        content = verified(path)
        mend(path)
        self.path = path
        self._logs = content.values
        self._end = content.end
        self._unsealed = bool(content.values) and not content.sealed
        if self._unsealed:
            _LOG.warning(
                "%s: is of an earlier version, whose lines carry no seals: damage in its %d lines could not be told; "
                "from now on it is",
                path,
                len(self._logs),
            )
        elif self._logs and not end_path(path).exists():
            _LOG.warning(
                "%s: is missing: whether lines are missing at the end of %s cannot be told; its %d lines are whole",
                end_path(path),
                path.name,
                len(self._logs),
            )
        if not self._unsealed:
            files.write_text(end_path(path), _end_text(self._end))

    def read_logs(self, log_number_from: int) -> list[Plain]:
        """Return what was written from a number on, counted from 0."""
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[Plain]) -> None:
        """Append lines and flush them to the disk.

        Raises:
            SettingsError: If the disk is full or the file cannot be written; nothing is appended then. If only the end
                cannot be written, the lines stay.
        """
        if self._unsealed:
            self._seal_all()
        texts = [json.dumps(log, separators=(",", ":")) for log in logs]
        lines, end = sealed(texts, self._end)
        with files.naming(self.path):
            size = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("ab") as file:
                    file.write(lines.encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.truncate(self.path, size)
                raise
        self._end = end
        self._logs += [json.loads(text) for text in texts]
        self._note_end()

    def _seal_all(self) -> None:
        """Write a journal of an earlier version anew, with seals; a kill in between leaves one that opens."""
        files.write_text(end_path(self.path), _end_text(End()))
        lines, self._end = sealed([json.dumps(log, separators=(",", ":")) for log in self._logs])
        files.write_text(self.path, lines)
        self._note_end()
        self._unsealed = False

    def _note_end(self) -> None:
        """Overwrite the end in place: always as many bytes, so a full disk takes it, and never one half."""
        path = end_path(self.path)
        with files.naming(path), path.open("rb+", buffering=0) as file:
            file.write(_end_text(self._end).encode())


def _end_text(end: End) -> str:
    text = f"{end.lines:012d} {end.seal}"
    return f"{text} {files.digest(text)[:32]}\n"


def _read_end(path: Path) -> End | None:
    """Return the recorded end of a journal, None where there is none."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    match = re.fullmatch(rb"(\d{12}) ([0-9a-f]{32}) [0-9a-f]{32}\n", text)
    end = End(int(match[1]), match[2].decode()) if match else End()
    if _end_text(end).encode() != text:
        raise SettingsError(
            f"{path}: is damaged, wanted the number of lines and the last seal; put it and the journal back from a "
            "copy, or remove it to go on with the lines that are there"
        )
    return end
