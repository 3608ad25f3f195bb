"""A run's folder: its settings, state and name; or one line that says why there is nothing to report.

Nothing heavy is imported here, so that a wrong path answers at once.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from e2ray.config.base import SettingsError, brief
from e2ray.config.load import read_resolved
from e2ray.records.folders import ComparisonFolder, StudyExport, StudyFolder
from e2ray.records.folders import RunFolder as Files
from e2ray.records.run import Status
from e2ray.report.frame.text import printable
from e2ray.search.journal import JOURNAL
from e2ray.train.record import KILLED, STATUS_ADVICE, read_status, was_killed

RECIPE = Files.config.name


@dataclass(frozen=True)
class RunFolder:
    """A folder that holds a run.

    Attributes:
        folder: `<storage>/<run>`.
        name: The run's name in a report; printable and unique there.
        settings: Every setting of the run, plain data.
        status: Content of status.json.
        killed: Whether that says `running` though nothing runs.
    """

    folder: Path
    name: str
    settings: dict[str, Any]
    status: Status
    killed: bool

    @property
    def evaluated(self) -> bool:
        """Whether the run has an evaluation."""
        return Files(self.folder).evaluation.is_file()

    @property
    def state(self) -> str:
        """How far the run got: `succeeded`, or `running, step 4 of 8`."""
        if self.status.state == "succeeded":
            return self.status.state
        state = "killed" if self.killed else self.status.state
        return f"{state}, step {self.status.step} of {self.settings['train']['steps']}"

    @property
    def what_is_missing(self) -> str:
        """Why there is no evaluation, and the next move."""
        recipe = self.folder / RECIPE
        error = KILLED if self.killed else self.status.error
        reason = f" ({brief(error)})" if error else ""
        if not Files(self.folder).model.is_dir():
            return f"no evaluation yet: {self.state}{reason}; `e2ray train --config {recipe}` continues it"
        if self.settings["evaluate"] is None:
            return (
                "no evaluation: its recipe leaves the stage out; "
                f"`e2ray evaluate --config {recipe} --set evaluate={{}}` measures it"
            )
        return f"no evaluation yet: {self.state}{reason}; `e2ray evaluate --config {recipe}` measures it"


def open_runs(paths: Sequence[str | Path]) -> list[RunFolder]:
    """Return the runs of these folders, at least one of them evaluated, each under a name of its own.

    Raises:
        FileNotFoundError: If there is no such folder.
        SettingsError: If a folder holds no run, is given twice, or is damaged; or if no run was evaluated yet.
    """
    runs = [open_run(path) for path in paths]
    counted = Counter(run.folder for run in runs)
    for folder, times in counted.items():
        if times > 1:
            raise SettingsError(f"{folder}: is given {times} times; name each run once")
    if not any(run.evaluated for run in runs):
        first = runs[0]
        none = "" if len(runs) == 1 else f", nor has any other of the {len(runs)} runs one"
        raise SettingsError(f"{first.folder}: {first.what_is_missing}{none}")
    return _told_apart(runs)


def open_run(path: str | Path) -> RunFolder:
    """Return the run of a folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        SettingsError: If it holds no run, or its settings or its state are damaged.
    """
    given = Path(path).expanduser()
    if not given.exists():
        raise FileNotFoundError(f"{given}: not found; wanted the folder of a run, <storage>/<run>")
    if not given.is_dir():
        raise SettingsError(f"{given}: is a file; wanted the folder of a run, <storage>/<run>")
    folder = given.resolve()
    if (folder / JOURNAL).exists():
        page = StudyExport(StudyFolder(folder).export).page
        raise SettingsError(f"{given}: holds a study, no run; its report is {page}")
    lanes = ComparisonFolder(folder)
    if lanes.comparison.exists():
        raise SettingsError(
            f"{given}: holds a comparison, no run; "
            + (f"its page is {lanes.page}" if lanes.page.exists() else f"its tables are {lanes.tables}")
        )
    if not (folder / RECIPE).is_file():
        raise SettingsError(f"{given}: holds no run: {RECIPE} is missing; {_wanted(folder)}")
    recipe = folder / RECIPE
    try:
        settings = read_resolved(recipe).model_dump(mode="json")
    except SettingsError as error:
        raise SettingsError(f"{error}; put the recipe that the run was begun with in its place") from None
    again = f"remove it and run `e2ray train --config {recipe}` again"
    try:
        status = read_status(folder)
    except SettingsError as error:
        raise SettingsError(f"{str(error).removesuffix(f'; {STATUS_ADVICE}')}; {again}") from None
    if status is None:
        raise SettingsError(f"{given}: holds no run: status.json is missing; {_wanted(folder)}")
    return RunFolder(folder, printable(folder.name), settings, status, was_killed(folder, status))


def _wanted(folder: Path) -> str:
    """Return what should have been named: one of the runs below the folder if it is a storage."""
    below = sorted(path.parent.name for path in folder.glob(f"*/{RECIPE}"))
    if below:
        more = "" if len(below) <= 5 else f" and {len(below) - 5} more"
        return f"wanted one of the runs in it: {', '.join(below[:5])}{more}"
    return "wanted a folder that `e2ray train` has made, <storage>/<run>"


def _told_apart(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Return the runs under distinct names: a shared name gets the folder above, and if need be a number."""
    for rename in (
        lambda number, run: f"{printable(run.folder.parent.name)}/{run.name}",
        lambda number, run: f"{run.name} ({number})",
    ):
        counted = Counter(run.name for run in runs)
        runs = [
            replace(run, name=rename(number, run)) if counted[run.name] > 1 else run
            for number, run in enumerate(runs, start=1)
        ]
    return list(runs)
