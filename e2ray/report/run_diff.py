"""Two runs side by side on a terminal: the settings that differ, and their figures with the difference."""

from collections.abc import Sequence

from rich.text import Text

from e2ray.report.frame.page import Column, Row, Table
from e2ray.report.frame.terminal import console, grid
from e2ray.report.run_files import RunRecord, comparable, read_run, together
from e2ray.report.run_folder import RunFolder
from e2ray.report.runs import SECTIONS
from e2ray.report.sections.method import incomparable
from e2ray.report.sections.settings import settings_table


def show_diff(runs: Sequence[RunFolder]) -> None:
    """Print what differs between two runs.

    Args:
        runs: What `open_runs` returns of two folders.

    Raises:
        SettingsError: If a file of a run is damaged.
    """
    one, other = (read_run(run) for run in runs)
    terminal = console()
    reasons = [f"{point.head} {point.text}" for point in incomparable(comparable([one, other]))]
    reasons += [f"{record.name}: {record.run.what_is_missing}" for record in (one, other) if not record.cells]
    for reason in [*reasons, *undiffered(one, other)]:
        terminal.print(Text(reason, style="yellow"))
    settings = settings_table([one, other])
    terminal.print(grid(settings) if settings else "No setting differs.")
    terminal.print(grid(figures(one, other)))


def figures(one: RunRecord, other: RunRecord) -> Table:
    """Return the figures of two runs side by side: those of every section that has any.

    Differences of what a model can do are formed only if `comparable` puts both runs into one group; those of retrieval
    for each context length, over the cells that both runs have.
    """
    columns = [
        Column("figure"), Column(one.name, "number"), Column(other.name, "number"),
        Column(f"{other.name} - {one.name}", "number"),
    ]  # fmt: skip
    caption = (
        "NLL in nats per token, tuned at scale W/L, with 95 % intervals over documents, ± one standard error where "
        "there are none; differences document by document, where both scored the same ones. Lengths in tokens. A dash: "
        "not measured, or not to be compared."
    )
    return Table(columns, [Row(line) for section in SECTIONS for line in section.diff(one, other)], caption)


def undiffered(one: RunRecord, other: RunRecord) -> list[str]:
    """Return why figures that both runs have get no difference, or count only some cells, a line for each reason."""
    if together(one, other):
        return [reason for section in SECTIONS for reason in section.undiffered(one, other)]
    lacking = [record.name for record in (one, other) if not record.cells]
    why = f"{' and '.join(lacking)} {'have' if len(lacking) > 1 else 'has'} no evaluation" if lacking else (
        "they did not score the same tokens of the same documents in the same way"
    )  # fmt: skip
    return [f"No difference of NLL, reach, retrieval or suites is formed between these runs: {why}."]
