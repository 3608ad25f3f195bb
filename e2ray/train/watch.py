"""The driver's watch over its workers: one that stands still is reported with its stack, and ended if it stays so.

`Vigil` decides from heartbeats and a clock, and knows neither processes nor Ray. Time is the driver's own and counts
from the last news of a worker, so that clocks of machines need not agree.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from e2ray.data.follow import following
from e2ray.train import standstill
from e2ray.train.heartbeat import MEASURING, RESTING, STARTING, Beat, read_beats

LOOK_S = 1.0
NOTICE_S = 50.0  # a minute, less what looking takes
AGAIN = 0.1  # of the notice's time between two looks at one process
PATIENCE = 1.5  # times the longest one of its kind before a phase is reported
LIMIT = 3.0  # times the longest one of its kind before a phase is ended, where that is more than hang_s
FIRST = 6.0  # times hang_s for a phase of unknown length: loading, compiling, the first checkpoint, an evaluation
ASLEEP = 0.02  # of one core, below which a process does nothing
P = ParamSpec("P")
R = TypeVar("R")
SHOWN = 3  # workers whose stacks are shown; the others mostly wait for them


class OnNode(Protocol):
    """Runs a function on the machine of a worker."""

    def __call__(self, beat: Beat, function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R | None:
        """Return its result; None where that machine does not answer."""


@dataclass
class _Seen:
    beat: Beat
    since: float
    looked: float = float("-inf")
    reported: bool = False
    left: bool = False  # ended, by us or by itself
    first_cpu: tuple[float, float] | None = None  # time in s and CPU seconds taken, when it was first looked at
    asleep: bool = False  # it has done nothing since then


class Vigil:
    """Which workers stand still."""

    def __init__(self, *, hang_s: float, notice_s: float = NOTICE_S) -> None:
        """Take `cluster.hang_s`; a notice comes no later than half of it."""
        self.hang_s, self.notice_s = hang_s, min(notice_s, hang_s / 2)
        self._seen: dict[str, _Seen] = {}
        self._longest: dict[str, float] = {}  # of all workers, those that were replaced too
        self._shown = 0

    def hear(self, beats: list[Beat], now: float) -> None:
        """Take the workers' heartbeats as read at a time in s."""
        beats = [beat for beat in beats if beat.phase != RESTING]
        for beat in beats:
            for phase, seconds in beat.longest.items():
                self._longest[phase] = max(self._longest.get(phase, 0.0), seconds)
            seen = self._seen.get(beat.name)
            if seen is None or (seen.beat.pid, seen.beat.born, seen.beat.ticks) != (beat.pid, beat.born, beat.ticks):
                self._seen[beat.name] = _Seen(beat, now)
                self._shown = 0
        for name in self._seen.keys() - {beat.name for beat in beats}:
            del self._seen[name]  # it has ended its work

    def quiet(self, now: float) -> list[Beat]:
        """Return the workers that have been silent so long that their processes are due for a look."""
        beats = []
        for seen in self._seen.values():
            since_look = now - max(seen.looked, seen.since)
            due = self.notice_s if seen.looked < seen.since else AGAIN * self.notice_s
            if not seen.left and since_look >= due:
                seen.looked = now
                beats.append(seen.beat)
        return beats

    def idle(self, beat: Beat, now: float) -> float:
        """Return for how long, in s, a worker has been silent."""
        return now - self._seen[beat.name].since

    def lost(self, beat: Beat) -> None:
        """Note that a worker's process has ended; Ray Train handles that."""
        self._seen[beat.name].left = True

    def note_cpu(self, beat: Beat, now: float, seconds: float | None) -> None:
        """Take the CPU time in s that a quiet worker's process has used; None where it is unknown."""
        seen = self._seen[beat.name]
        if seconds is None:
            seen.first_cpu, seen.asleep = None, False
        elif seen.first_cpu is None:
            seen.first_cpu = (now, seconds)
        else:
            since, used = seen.first_cpu
            seen.asleep = abs(seconds - used) < ASLEEP * (now - since)

    def is_new(self, beat: Beat, now: float, *, stopped: bool) -> bool:
        """Return whether to report a quiet worker, once a standstill: at once if stopped, else beyond the usual."""
        seen = self._seen[beat.name]
        usual = PATIENCE * self._longest.get(beat.phase, 0.0)
        new = not seen.reported and (stopped or now - seen.since >= max(self.notice_s, usual))
        seen.reported = seen.reported or new
        return new

    def shows_stack(self) -> bool:
        """Return whether one more stack is shown; the count begins anew with the next progress."""
        self._shown += 1
        return self._shown <= SHOWN

    def is_hung(self, beat: Beat, now: float, *, stopped: bool) -> bool:
        """Return whether a quiet worker is to be replaced.

        Where every worker is asleep none waits for another one's work: that is a deadlock, in a first step too.
        """
        deadlock = all(seen.left or seen.asleep for seen in self._seen.values())
        longest = self._longest.get(beat.phase)
        unknown = longest is None or beat.phase in (MEASURING, STARTING)  # a resume loads more than a first start
        patient = max((FIRST if unknown else 1) * self.hang_s, LIMIT * (longest or 0.0))
        if deadlock and unknown and beat.phase not in (MEASURING, STARTING):  # a model may come over a slow line
            patient = max(self.hang_s, LIMIT * (longest or 0.0))
        return self.idle(beat, now) >= (self.hang_s if stopped else patient)


class Watchman:
    """Looks after the workers whose heartbeats are in a folder, and remembers which ones it has ended."""

    def __init__(
        self,
        folder: Path,
        vigil: Vigil,
        *,
        on_node: OnNode,
        show: Callable[[str], None],
        heard: Callable[[list[Beat]], None] = lambda beats: None,
    ) -> None:
        """Take what runs a function on a worker's machine, prints a line, and gets the heartbeats at each look."""
        self.folder, self.vigil, self.on_node, self.show, self.heard = folder, vigil, on_node, show, heard
        self.replaced: list[str] = []
        self._round: dict[str, str] = {}

    @property
    def blamed(self) -> str | None:
        """The line of the first worker that was ended since the workers last began; others may have waited for it."""
        return next(iter(self._round.values()), None)

    def look(self) -> None:
        """Look once."""
        now = time.monotonic()
        beats = read_beats(self.folder)
        self.vigil.hear(beats, now)
        self.heard(beats)
        conditions = {beat.name: (beat, self._condition(beat)) for beat in self.vigil.quiet(now)}
        for beat, state in sorted(conditions.values(), key=lambda each: (each[1] != "stopped", each[0].ticks)):
            stopped = state == "stopped"
            if state == "gone":
                self.vigil.lost(beat)
                continue
            cpu = self.on_node(beat, standstill.cpu_seconds, beat) if state == "alive" else None
            self.vigil.note_cpu(beat, now, cpu)
            if self.vigil.is_new(beat, now, stopped=stopped):
                self._tell(beat, state, self.vigil.idle(beat, now))
            if self.vigil.is_hung(beat, now, stopped=stopped):
                self._replace(beat, self.vigil.idle(beat, now))

    def _condition(self, beat: Beat) -> str:
        return self.on_node(beat, standstill.condition, beat) or "out of reach"

    def _tell(self, beat: Beat, state: str, idle: float) -> None:
        lines = [f"warning: {_named(beat)}: no progress for {idle:.0f} s, its process is {state}; {_phase(beat)}"]
        if self.vigil.shows_stack():
            frames = self.on_node(beat, standstill.stack, self.folder, beat) or ["its machine does not answer"]
            lines += [f"    {frame}" for frame in frames]
        self.show("\n".join(lines))

    def _replace(self, beat: Beat, idle: float) -> None:
        line = f"{_named(beat)}: no progress for {idle:.0f} s ({_phase(beat)})"
        self.show(f"{line}, cluster.hang_s is {self.vigil.hang_s:g}: it is ended, and the workers start anew")
        self.replaced.append(line)
        if beat.name in self._round:  # the workers have begun anew since
            self._round.clear()
        self._round[beat.name] = line
        self.on_node(beat, standstill.end, beat)
        self.vigil.lost(beat)


def _named(beat: Beat) -> str:
    return f"{beat.label} (pid {beat.pid} on {beat.host})"


def _phase(beat: Beat) -> str:
    return f"{beat.phase}, {beat.step} updates made"


def watched(watchman: Watchman, *, every_s: float = LOOK_S) -> AbstractContextManager[None]:
    """Look after the workers in a thread while the block runs."""

    def failed(error: Exception) -> None:
        watchman.show(f"warning: workers that stand still are told no more: {type(error).__name__}: {error}")

    return following(watchman.look, every_s=every_s, failed=failed)
