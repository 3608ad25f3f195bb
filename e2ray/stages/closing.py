"""What a run ends with: its page, what was measured for its trackers, and the lines for whoever waited."""

from pathlib import Path

from e2ray.config.base import brief
from e2ray.data.pace import Pace, show
from e2ray.records.evaluation import Evaluation
from e2ray.records.folders import ExportFolder
from e2ray.report.run_folder import open_runs
from e2ray.report.runs import write_report
from e2ray.stages.run import ResolvedRun, result_line
from e2ray.train.trackers import Trackers, configured, located


def write_page(run: ResolvedRun) -> Path | None:
    """Write the page of a measured run into its folder, with the Markdown of the same and its pictures.

    Returns:
        Its path; None where the run was not measured, or where it cannot be written, which is told: the run is done.
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
    """Return what a person wants to read last: what was found, where the page is, and what to type next."""
    told = [result_line(run)]
    if page is not None:
        told.append(f"page: {page}")
    read = f"e2ray generate {run.folder} --prompt-file TEXT"
    cards = ExportFolder(run.files.export).serving.glob(f"*/{ExportFolder.card.name}")
    served = sorted(cards, key=lambda path: int(path.parent.name))
    told.append(f"next: {read}{f'; to serve it: {served[-1]}' if served else ''}")
    return told


def track_evaluation(run: ResolvedRun) -> None:
    """Log what was measured where the recipe's trackers are: each NLL as a number, the tables and pictures as files."""
    found = Evaluation.find(run.files.evaluation)
    if not run.config.trackers or found is None:
        return
    settings = located(run.config.trackers, run.folder.parent)
    told = Trackers(configured(settings, run.folder, name=run.config.name, continued=True), show=show)
    nll = {f"evaluate/{cell.model}/{cell.window}/{cell.scale:g}": cell.nll for cell in found.rows}
    told.log(nll, run.config.train.steps)
    left = run.files
    pictures = (left.lengths_picture, left.picture)
    for path in (left.config, left.evaluation, *pictures, left.retrieval, left.retrieval_picture, left.effective):
        if path.exists():
            told.log_artifact(path)
    told.close()
