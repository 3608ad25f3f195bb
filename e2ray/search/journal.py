"""The journal's file: what a killed process leaves on it is taken off before Optuna opens it."""

import logging
from pathlib import Path

from e2ray.config.base import SettingsError

JOURNAL = "study.journal"
LOCK_SUFFIX = ".lock"  # of the journal's own lock, which a killed process leaves behind


def mend(path: Path) -> None:
    """Take off what a killed process left on a journal: a torn last line, and its lock.

    Optuna would append the next line to the torn one and then refuse the journal for good.

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
                logging.getLogger(__name__).info("%s: a torn last line is taken off", path)
                file.truncate(whole)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be used: {error.strerror}; choose another storage") from error
