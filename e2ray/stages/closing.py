"""The end of a run: its page, its evaluation for the trackers, and its last lines on the terminal."""

import shlex
import sys
from pathlib import Path
from shutil import which

from e2ray.config.base import brief
from e2ray.data.pace import Pace, show
from e2ray.records.evaluation import Evaluation
from e2ray.records.folders import ExportFolder
from e2ray.records.run import TrackerNumbers
from e2ray.report.run_folder import open_runs
from e2ray.report.runs import write_report
from e2ray.stages.run import ResolvedRun, result_line
from e2ray.train.trackers import Trackers, configured, located


def write_page(run: ResolvedRun) -> Path | None:
    """Write the page of a measured run into its folder, with its Markdown and its pictures.

    Returns:
        Its path; None if the run was not measured, or the page cannot be written: a warning, since the run is done.
    """
    if not run.files.evaluation.exists():
        return None
    try:
        with Pace(show, "writing the page", total=1, unit="parts"):
            write_report(run.files.page, open_runs([str(run.folder)]))
    except Exception as error:  # whatever it is, the run is done
        show(f"warning: {brief(' '.join(str(error).split()) or type(error).__name__)}")
        return None
    return run.files.page


def last_lines(run: ResolvedRun, page: Path | None) -> list[str]:
    """Return the last lines for the user: what was found, where the page is, and what to type next."""
    lines = [result_line(run)]
    if page is not None:
        lines.append(f"page: {page}")
    here = "e2ray" if which("e2ray") else str(Path(sys.executable).with_name("e2ray"))  # of an environment, perhaps
    read = shlex.join([here, "generate", str(run.folder), "--prompt-file", "TEXT"])
    cards = ExportFolder(run.files.export).serving.glob(f"*/{ExportFolder.card.name}")
    served = sorted(cards, key=lambda path: int(path.parent.name))
    lines.append(f"next: {read}{f'; to serve it: {served[-1]}' if served else ''}")
    return lines


def track_evaluation(run: ResolvedRun, *, begun_only: bool = False) -> None:
    """Log an evaluation to the recipe's trackers: each NLL as a number, the tables and pictures as files.

    With `begun_only` those that the training could not open are left out: it has reported them.
    """
    evaluation = Evaluation.find(run.files.evaluation)
    if not run.config.trackers or evaluation is None:
        return
    settings = located(run.config.trackers, run.folder.parent)
    numbers = TrackerNumbers.find(run.files.trackers)
    begun = (numbers.model_extra or {}) if numbers else {}
    openers = configured(settings, run.folder, name=run.config.name, continued=True)
    chosen = [
        opener for tracker, opener in zip(settings, openers, strict=True) if not begun_only or tracker.key in begun
    ]
    trackers = Trackers(chosen, show=show)
    nll = {f"evaluate/{cell.model}/{cell.window}/{cell.scale:g}": cell.nll for cell in evaluation.rows}
    trackers.log(nll, run.config.train.steps)
    left = run.files
    pictures = (left.lengths_picture, left.picture)
    for path in (left.config, left.evaluation, *pictures, left.retrieval, left.retrieval_picture, left.effective):
        if path.exists():
            trackers.log_artifact(path)
    trackers.close()
