"""The progress of a piece of work: done, total and time left, reported by a thread, so that no long step is silent."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from e2ray.data.follow import following

Progress = Callable[[str], None]
TELL_S = 8.0  # without a line, after which one is due
LOOK_S = 0.5


def show(line: str) -> None:
    """Print a line at once; a task that gets this function loads no more than this module."""
    print(line, flush=True)  # called here, since Ray replaces `print` by a function that cannot be pickled


def clock(seconds: float) -> str:
    """Return `2:31`, or `1:02:31` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Pace:
    """Counts work and reports progress after some seconds without a line, while its block runs.

        with Pace(print, "base: reading", total=len(batches), unit="batches") as pace:
            for batch in batches:
                read(batch)
                pace.add()

    Lines about the work itself go through `tell`, so that no line on the progress follows them at once.
    """

    def __init__(self, tell: Progress | None, what: str, *, total: float, unit: str, every_s: float = TELL_S) -> None:
        """Begin at nothing done.

        Args:
            tell: Takes the lines; None: there are none.
            what: Name of the work, the beginning of each line.
            total: All of the work, in units.
            unit: Name of what is counted, in the plural.
            every_s: Seconds of silence after which a line is due.
        """
        self.what, self.total, self.unit, self.every_s = what, total, unit, every_s
        self.done = 0.0
        self._tell = tell
        self._began = self._said = time.monotonic()
        self._beside: AbstractContextManager[None] | None = None
        self._lock = threading.Lock()

    def add(self, done: float = 1) -> None:
        """Count finished work."""
        self.done += done

    def reach(self, done: float) -> None:
        """Set how much is done; where that is more than before, others report it, and it counts as a line."""
        if done > self.done:
            self.done = done
            with self._lock:
                self._said = time.monotonic()

    def hush(self) -> None:
        """Report no more progress: the workers do it themselves."""
        self._tell = None

    def tell(self, line: str) -> None:
        """Report a line of the caller's own."""
        with self._lock:
            self._said = time.monotonic()
        if self._tell is not None:
            self._tell(line)

    @property
    def state(self) -> str:
        """`12 of 60 batches, 0:16 so far, 1:04 left`; what is left is unknown at the beginning."""
        passed = time.monotonic() - self._began
        text = f"{clock(passed)} so far"
        if self.total > 1:
            done = f"{self.done:,.0f}" if self.total >= 100 else f"{self.done:.3g}"
            text = f"{done} of {self.total:,.0f} {self.unit}, {text}"
        left = passed * (self.total - self.done) / self.done if self.done else 0
        return f"{text}, {clock(left)} left" if self.done else text

    def _look(self) -> None:
        with self._lock:
            due = time.monotonic() - self._said >= self.every_s
        if due:
            self.tell(f"{self.what}: {self.state}")

    def __enter__(self) -> "Pace":
        """Begin to report."""
        if self._tell is not None:
            self._beside = following(
                self._look,
                every_s=min(LOOK_S, self.every_s),
                failed=lambda error: self.tell(f"{self.what}: its pace is told no more: {error}"),
            )
            self._beside.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop reporting."""
        if self._beside is not None:
            self._beside.__exit__(kind, error, trace)
