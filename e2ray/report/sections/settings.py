"""The settings in which runs differ: first those that decide a result, then where and how fast a run ran."""

from collections.abc import Callable, Sequence

from e2ray.config.run import FREE_ON_RESUME
from e2ray.config.uris import public
from e2ray.report.frame.page import Column, Part, Row, Table, Words
from e2ray.report.frame.text import MISSING, printable, setting_text
from e2ray.report.run_files import RunRecord
from e2ray.report.sections.section import RunSection


def flat(settings: object, path: str = "") -> dict[str, object]:
    """Return settings by dotted path, as `--set` names them; a list of plain values is one value."""
    if isinstance(settings, dict) and settings:
        items = [(str(key), value) for key, value in settings.items()]
    elif isinstance(settings, list) and any(isinstance(value, dict) for value in settings):
        items = [(str(index), value) for index, value in enumerate(settings)]
    else:
        return {path: settings}
    below: dict[str, object] = {}
    for key, value in items:
        below |= flat(value, f"{path}.{key}" if path else key)
    return below


def differing(records: Sequence[RunRecord]) -> list[tuple[str, list[object], bool]]:
    """Return (dotted path, value of each run or MISSING, whether it decides the result) of all that differs.

    What decides the result comes first. Where and how fast a run ran (`FREE_ON_RESUME`), and versions and hardware,
    under `environment`, come last. The name is left out: it names the run in a report.
    """
    every = [
        flat(record.run.settings) | (flat({"environment": record.environment.plain()}) if record.environment else {})
        for record in records
    ]
    paths = dict.fromkeys(path for each in every for path in each if path != "name")
    rows = []
    for path in paths:
        values = [each.get(path, MISSING) for each in every]
        if any(value != values[0] or (value is MISSING) != (values[0] is MISSING) for value in values):
            rows.append((path, values, not _is_free(path)))
    return sorted(rows, key=lambda row: not row[2])


def _is_free(path: str) -> bool:
    return any(path == free or path.startswith(f"{free}.") for free in (*FREE_ON_RESUME, "environment"))


def settings_table(
    records: Sequence[RunRecord], *, shown: Callable[[object], object] = lambda value: value
) -> Table | None:
    """Return the settings that differ between runs, None where none do; `shown` says how a value is written."""
    differences = differing(records)
    if not differences:
        return None
    columns = [Column("setting"), *(Column(record.name) for record in records)]
    rows = [
        Row([printable(path), *(setting_text(shown(value)) for value in values)], "" if decides else "faint")
        for path, values, decides in differences
    ]
    caption = (
        "Dotted paths are those of `--set`; a dash: the run has no such setting. Faint: where and how fast it ran, "
        "versions and hardware, which decide no result."
    )
    return Table(columns, rows, caption)


def _parts(records: Sequence[RunRecord]) -> list[Part]:
    if len(records) < 2:
        return []
    return [settings_table(records, shown=public) or Words("None but the names.")]


SETTINGS = RunSection("Settings that differ", "settings", _parts)
