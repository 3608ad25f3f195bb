"""Scalars for TensorBoard, written at once by the thread that asks.

TensorBoard's own writer hands them to a thread, which prints a traceback when the disk is full; here the caller gets
the error.
"""

import os
import socket
import time
from pathlib import Path

from e2ray import files
from e2ray.optional import library

PROTO = "tensorboard.compat.proto"


class Board:
    """A file of TensorBoard events."""

    def __init__(self, folder: Path, *, purge_step: int | None) -> None:
        """Begin a file; earlier ones in the folder stay, but their steps from `purge_step` on are no longer shown.

        Raises:
            SettingsError: If it cannot be written.
        """
        self._event, self._summary = library(f"{PROTO}.event_pb2"), library(f"{PROTO}.summary_pb2")
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self.path = folder / name
        with files.naming(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
        self._records = library("tensorboard.summary.writer.record_writer").RecordWriter(self._file)
        self._write(self._event.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            log = self._event.SessionLog
            start = log(status=log.START)
            self._write(self._event.Event(wall_time=time.time(), step=purge_step, session_log=start))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write one number.

        Raises:
            SettingsError: If it cannot be written.
        """
        kind = self._summary.Summary
        summary = kind(value=[kind.Value(tag=tag, simple_value=value)])
        self._write(self._event.Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: object) -> None:
        with files.naming(self.path):
            self._records.write(event.SerializeToString())  # type: ignore[attr-defined]
            self._file.flush()

    def close(self) -> None:
        """Close the file.

        Raises:
            SettingsError: If it cannot be written.
        """
        with files.naming(self.path):
            self._file.close()
