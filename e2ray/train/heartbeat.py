"""What a training worker writes while it lives: which phase it is in and how many phases it has begun.

The driver reads it (`train/watch.py`) to find workers that stand still. The training only marks each phase; a thread
writes that once a second, into a file of fixed size that is written in place, so that a full disk does not make a
worker look dead.
"""

import faulthandler
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TextIO, TypeVar

import psutil

from e2ray.files import named_write_error

Item = TypeVar("Item")
P = ParamSpec("P")
R = TypeVar("R")

RECORD_BYTES = 1024
WRITE_S = 1.0
STACK_SIGNAL = signal.SIGUSR1  # a worker that gets it writes the stacks of its threads into its `stack_file`
_OPEN: list[TextIO] = []
STARTING = "starting"  # the phase a worker begins with: model, proof, checkpoint
MEASURING = "measuring"  # a phase that does nothing at one step, a whole evaluation at another
RESTING = "resting"  # the phase of a worker without work, however long


@dataclass(frozen=True)
class Beat:
    """One worker's state as the driver reads it."""

    name: str  # of the worker, unique among those of a folder
    label: str  # what a person calls it
    pid: int
    born: float  # when the process started, s since 1970: its pid may be reused
    thread: int  # the one that trains, as Python's and faulthandler's ident
    host: str
    node: str  # Ray's id of the node, "" outside of Ray
    phase: str
    step: int  # updates made
    ticks: int  # phases begun; the same number means no progress
    longest: dict[str, float] = field(default_factory=dict)  # s that each phase took at most, of those that have ended


def beat_file(folder: Path, name: str) -> Path:
    """Return the file of a worker's state."""
    return folder / f"{name}.json"


def stack_file(folder: Path, name: str) -> Path:
    """Return where a worker writes its stacks when it gets STACK_SIGNAL."""
    return folder / f"{name}.stacks"


def read_beats(folder: Path) -> list[Beat]:
    """Return the state of each worker that has begun and not ended; one that is just being written is left out."""
    beats = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            beats.append(Beat(**json.loads(path.read_text(encoding="ascii"))))
    return beats


class Heartbeat:
    """A worker's side; begins in the phase STARTING."""

    def __init__(self, folder: Path, name: str, *, label: str, node: str = "") -> None:
        """Begin to write into a folder that driver and workers share; it is created.

        `name` is this worker's own in the folder, `label` what the driver calls it, `node` Ray's id of where it is.

        Raises:
            SettingsError: If the folder cannot be written to.
        """
        self._path, self._stacks = beat_file(folder, name), stack_file(folder, name)
        self._facts = {
            "name": name,
            "pid": os.getpid(),
            "born": psutil.Process().create_time(),
            "thread": threading.get_ident(),
            "host": socket.gethostname()[:64],
            "node": node,
        }
        self.label = label
        self._phase, self._step, self._ticks = STARTING, 0, 0
        self._longest: dict[str, float] = {}
        self._since = time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stacks = self._stacks.open("w", encoding="utf-8")
            faulthandler.register(STACK_SIGNAL, stacks, all_threads=True)
            _OPEN.append(stacks)  # never closed: the signal may still come when the worker has ended its work
            self._path.write_text(self._record(), encoding="ascii")
        except OSError as error:
            raise named_write_error(error, self._path) from error
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._writer = threading.Thread(target=self._write, name="e2ray heartbeat", daemon=True)
        self._writer.start()

    def mark(self, phase: str, step: int | None = None) -> None:
        """Note that a phase begins, with the number of updates made if it has changed."""
        now = time.monotonic()
        self._longest[self._phase] = max(self._longest.get(self._phase, 0.0), now - self._since)
        self._phase, self._since = phase, now
        self._step = self._step if step is None else step
        self._ticks += 1

    def begin(self, label: str) -> None:
        """Begin another piece of work under another label, which is written down at once."""
        self.label = label
        self.mark(STARTING, 0)
        self._put()

    def around(self, items: Iterator[Item], *, waiting: str, working: str, step: int) -> Iterator[Item]:
        """Yield the item of each update, the first one after `step` updates; waiting and working are phases."""
        self.mark(waiting, step)
        for done, item in enumerate(items, step):
            self.mark(working, done)
            yield item
            self.mark(waiting, done + 1)

    def marking(self, function: Callable[P, R], during: str, after: Callable[P, str] | None = None) -> Callable[P, R]:
        """Return a function that runs in a phase of its own, `during`.

        `after` returns the next phase from the function's arguments; None where that is marked elsewhere.
        """

        def marked(*arguments: P.args, **options: P.kwargs) -> R:
            self.mark(during)
            result = function(*arguments, **options)
            if after:
                self.mark(after(*arguments, **options))
            return result

        return marked

    def close(self) -> None:
        """End; the worker is watched no more."""
        self._ended.set()
        self._writer.join()
        for path in (self._path, self._stacks):
            path.unlink(missing_ok=True)

    def _record(self) -> str:
        longest = {name: round(seconds, 1) for name, seconds in self._longest.copy().items()}
        state = {
            "label": self.label,
            "phase": self._phase,
            "step": self._step,
            "ticks": self._ticks,
            "longest": longest,
        }
        return json.dumps(self._facts | state).ljust(RECORD_BYTES)

    def _write(self) -> None:
        written = 0
        while not self._ended.wait(WRITE_S):
            if self._ticks == written:
                continue
            written = self._ticks
            self._put()

    def _put(self) -> None:
        with self._lock, suppress(OSError), self._path.open("r+", encoding="ascii") as file:
            file.write(self._record())
