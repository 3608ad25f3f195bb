"""A table of a page on the terminal."""

import sys

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from e2ray.report.frame.page import Table

WIDE = 160  # columns where no terminal tells its width


def console() -> Console:
    """Return the terminal, on which nothing is taken for markup."""
    return Console(width=None if sys.stdout.isatty() else WIDE, markup=False, highlight=False, emoji=False)


def grid(table: Table) -> Grid:
    """Return a table for the terminal; no cell is cut, and nothing in one is taken for markup."""
    shown = Grid(caption=Text(table.caption), caption_justify="left")
    for column in table.columns:
        justify = "right" if column.style == "number" else "left"
        shown.add_column(Text(column.title), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in table.rows:
        shown.add_row(*map(Text, row.cells), style="dim" if row.style == "faint" else "")
    return shown
