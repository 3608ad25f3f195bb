"""Looks at a worker that stands still, and ends it; everything here runs on the worker's own machine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil

from e2ray.train.heartbeat import STACK_SIGNAL, Beat, stack_file

Condition = Literal["gone", "stopped", "waiting for the disk", "alive"]
FRAMES = 12  # innermost ones that are shown
ANSWER_S = 3.0


def condition(beat: Beat) -> Condition:
    """Return how the worker's process is; `stopped` is what SIGSTOP or a debugger does."""
    process = _process(beat)
    try:
        status = process.status() if process else psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return "gone"
    if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return "gone"
    if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
        return "stopped"
    return "waiting for the disk" if status == psutil.STATUS_DISK_SLEEP else "alive"


def cpu_seconds(beat: Beat) -> float | None:
    """Return the CPU time in s that the worker's process and all it has started took; None where it has ended."""
    process = _process(beat)
    if process is None:
        return None
    total = 0.0
    try:
        below = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return None
    for each in (process, *below):
        with suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _process(beat: Beat) -> psutil.Process | None:
    """Return the process that wrote the beat; None where it has ended, though its number may live on."""
    try:
        process = psutil.Process(beat.pid)
        return process if abs(process.create_time() - beat.born) < 1 else None
    except psutil.NoSuchProcess:
        return None


def stack(folder: Path, beat: Beat) -> list[str]:
    """Return the stack of the worker's training thread, innermost frame first, or a line on why it is unknown.

    A process that runs writes it itself, which needs no rights; that of a stopped one is read by py-spy.
    """
    state = condition(beat)
    if state == "gone":
        return ["it has ended by itself"]
    frames = [] if state == "stopped" else _written(stack_file(folder, beat.name), beat)
    return (frames or _looked_into(beat))[:FRAMES]


def _written(path: Path, beat: Beat) -> list[str]:
    """Return the frames that the process writes on STACK_SIGNAL, none where it does not."""
    with suppress(OSError):
        before = path.stat().st_size
        os.kill(beat.pid, STACK_SIGNAL)
        size, deadline = before, time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            time.sleep(0.1)
            grown, size = path.stat().st_size, size
            if grown == size > before:  # written to its end
                break
            size = grown
        with path.open(encoding="utf-8", errors="replace") as file:
            file.seek(before)
            return frames_of(file.read(), beat.thread)
    return []


def frames_of(dump: str, thread: int) -> list[str]:
    """Return the frames of one thread in faulthandler's text, `file:line in function` each."""
    for section in re.split(r"\n(?=(?:Current thread|Thread) 0x)", f"\n{dump}"):
        head, _, rest = section.partition("\n")
        number = re.search(r"hread 0x([0-9a-f]+)", head)
        if number and int(number[1], 16) == thread:
            return [
                f"{path}:{line} in {name}"
                for path, line, name in re.findall(r'^  File "(.*)", line (\S+) in (.*)$', rest, re.MULTILINE)
            ]
    return []


def _looked_into(beat: Beat) -> list[str]:
    """Return the frames that py-spy reads from outside."""
    program = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        return ["its stack cannot be read: there is no py-spy here"]
    command = [program, "dump", "--json", "--nonblocking", "--full-filenames", "--pid", str(beat.pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        threads = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"its stack cannot be read: {type(error).__name__}"]
    except json.JSONDecodeError:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no answer")
        return [f"its stack cannot be read by py-spy: {reason.strip()}"]
    for thread in threads:
        if thread["thread_id"] == beat.thread:
            return [f"{frame['filename']}:{frame['line']} in {frame['name']}" for frame in thread["frames"]]
    return ["its training thread has ended"]


def end(beat: Beat) -> bool:
    """Kill the worker's process and return whether it was there."""
    process = _process(beat)
    if process is None:
        return False
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)
    return True
