"""What a run or a trial draws, in words, and the table of what each run is."""

from collections.abc import Mapping, Sequence
from typing import Any

from e2ray.config.uris import public
from e2ray.report.frame.page import Column, Row, Table
from e2ray.report.frame.text import DASH, number, printable, whole
from e2ray.report.run_files import RunRecord
from e2ray.report.sections.section import RunSection

Section = Mapping[str, Any]  # of a recipe


def settings_words(settings: Section) -> str:
    """Return a trial's settings: `scale: power, exponent -0.8, 13 % native; placement: ...; per sequence; lr ...`."""
    positions = settings.get("positions") or {}
    parts = []
    if "scale" in positions:
        scale = dict(positions["scale"])
        native = scale.pop("native_share", 0)
        words = _section_words(scale, {"max_scale": "at" if scale.get("kind") == "fixed" else "up to"})
        parts.append(f"scale: {words}" + (f", {100 * native:.3g} % native" if native else ""))
    if "placement" in positions:
        placement = dict(positions["placement"])
        jump = placement.pop("jump", None)
        words = _section_words(placement, {"num_breaks": "", "prefix": "", "num_chunks": ""})
        parts.append(f"placement: {words}" + (f", jump {_section_words(jump, {})}" if jump else ""))
    if "per" in positions:
        parts.append(f"per {number(positions['per'])}")
    method = dict(positions.get("method") or {"kind": "linear"})
    if method["kind"] != "linear":
        heat = method.pop("temperature", None) or {}
        method = {key: value for key, value in method.items() if not isinstance(value, list | tuple)}
        temperature = f", temperature {_section_words(heat, {'coefficient': ''})}" if heat else ""
        parts.append(f"read by {_section_words(method, {'max_scale': 'listed at'})}{temperature}")
    rest = [(path.removeprefix("train."), value) for path, value in settings.items() if path != "positions"]
    return "; ".join(parts + [f"{name} {number(value)}" for name, value in rest])


def _section_words(section: Section, names: Mapping[str, str]) -> str:
    """Return a section's kind and its values; a flag is named if set, a list of scales keeps its weights."""
    words = [number(section["kind"])] if "kind" in section else []
    for key, value in section.items():
        name = names.get(key, key.replace("_", " "))
        if key == "kind" or value is False:
            continue
        if value is True:
            words.append(name)
        elif key == "choices":
            words += [f"{number(c['scale'])} (weight {number(c['weight'])})" for c in value]
        else:
            words.append(f"{name} {number(value)}".strip())
    return ", ".join(words)


def _parts(records: Sequence[RunRecord]) -> list[Table]:
    """Return what each run is: its state, its base model, its draws."""
    columns = [
        Column("run"), Column("state"), Column("base model"), Column("base length L", "number"),
        Column("training window", "number"), Column("draws", "wide"), Column("seed", "number"), Column("commit"),
    ]  # fmt: skip
    rows = []
    for record in records:
        settings = record.run.settings
        model, commit = settings["model"], record.environment.commit if record.environment else None
        cells = [
            record.name,
            record.run.state,
            printable(str(public(model["path"]))) if "path" in model else f"built, {model['num_layers']} layers",
            whole(record.base_context_length if record.cells else model["base_context_length"]),
            whole(settings["data"]["window"]),
            settings_words({"positions": settings["positions"]}),
            str(settings["seed"]),
            printable(commit[:8] + commit[40:]) if commit else DASH,
        ]
        rows.append(Row(cells))
    caption = "Lengths in tokens. The training window is all that a run ever saw at once."
    return [Table(columns, rows, caption, compact=True)]


DRAWS = RunSection("What was run", "runs", _parts)
