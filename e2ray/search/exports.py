"""The results of a study as files: tables for any tool, JSON for programs, recipes to train with.

All of it is computed again from the journal at every export, and the same records give the same bytes. A row of a
finished trial depends on that trial and the study's space alone, so what was exported once is still there, byte for
byte, after the study went on. Each file appears whole or not at all.
"""

import csv
import io
import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from e2ray.config import load, space
from e2ray.config.run import RunConfig
from e2ray.evaluate.removed import base_words
from e2ray.files import atomic_path, write_text
from e2ray.records.folders import StudyExport
from e2ray.records.study import CurveRow, Pareto, Point, StudyNoise, TrialRow
from e2ray.records.table import schema_of
from e2ray.search.objectives import ASKED
from e2ray.search.record import SearchedSetting, StudyFacts, StudyResults, TrialRecord, section
from e2ray.search.results import KEPT_GAIN_SHARE, MAXIMISED, base_long, objectives_of, text_of

PARAM = "param:"
MAX_NAME = 100  # characters of a run's name
HEADER_WIDTH = 110

_OWN = [*TrialRow.model_fields][:14]  # what the record of a trial has under the same name

ROLES = {
    "long-first": "Long first: of the study's Pareto front, the trial with the lowest long objective.",
    "balanced": "Balanced: of the study's Pareto front, the trial with the lowest weighted number among those that are "
    "better than the paper's preset in both objectives, or among all where none is.",
    "short-first": "Short first: of the study's Pareto front, the trial with the lowest short objective among those "
    f"that keep at least {KEPT_GAIN_SHARE:.0%} of what the long-first trial gains over the base model.",
}


def write_tables(folder: Path, results: StudyResults) -> None:
    """Write trials.parquet, trials.csv, curves.parquet, pareto.json and ranges.json into the export folder.

    Raises:
        SettingsError: If the folder cannot be written.
    """
    schema = trials_schema(results.facts)
    rows = [_row(record, schema, results.facts) for record in sorted(results.records, key=lambda record: record.number)]
    export = StudyExport(folder)
    _write_parquet(export.trials, rows, schema)
    _write_csv(export.trials_text, rows, schema)
    _write_parquet(export.curves, _curves(results), schema_of(CurveRow))
    _pareto(results).write(export.pareto)
    results.ranges.write(export.ranges)


def trials_schema(facts: StudyFacts) -> pa.Schema:
    """Return the columns of trials.parquet and trials.csv: what every trial has, then one per searched setting."""
    # by name: a resumed study may list its space in another order
    params = [pa.field(PARAM + path, _type(facts.space[path])) for path in sorted(facts.space)]
    return pa.schema([*schema_of(TrialRow), *params])


def _type(parameter: SearchedSetting) -> pa.DataType:
    """Return the type of a setting's column; options of several types, or null among them, become text."""
    if parameter["kind"] != "choice":
        return {"float": pa.float64(), "int": pa.int64()}[parameter["kind"]]
    types = {type(option) for option in parameter["options"]}
    if types == {bool}:
        return pa.bool_()
    if types == {int}:
        return pa.int64()
    return pa.float64() if types and types <= {int, float} else pa.string()


def _row(record: TrialRecord, schema: pa.Schema, facts: StudyFacts) -> dict[str, object]:
    positions = record.settings.get("positions") or {}
    scale, placement = section(positions, "scale"), section(positions, "placement")
    choices = scale.get("choices")  # this kind names its scales one by one
    listed = [choice["scale"] for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    numbers = [number for number in listed if isinstance(number, int | float)]
    reason = None if record.reason is None else record.reason.encode("utf-8", "replace").decode("utf-8")
    row = {name: getattr(record, name) for name in _OWN} | {
        "reason": None if reason is None else " ".join(reason.split()),
        "scale_kind": scale.get("kind"),
        "max_scale": max(numbers) if numbers else scale.get("max_scale"),
        "native_share": scale.get("native_share"),
        "placement_kind": placement.get("kind"),
        "per": positions.get("per"),
        "lr": record.settings.get("train.lr"),
        "positions": json.dumps(positions, sort_keys=True, ensure_ascii=False) if positions else None,
    }
    row |= {PARAM + path: record.params.get(path) for path in facts.space}
    active = {PARAM + path for path in record.params}
    return {field.name: _cell(row[field.name], field.type, field.name in active) for field in schema}


def _cell(value: object, kind: pa.DataType, active: bool) -> object:
    """Return a value as its column has it; None stays empty unless a searched setting was given null as its value."""
    if value is None:
        return text_of(None) if active else None
    if isinstance(value, int | float) and pa.types.is_floating(kind):
        return float(value)
    if isinstance(value, int | float) and pa.types.is_integer(kind):
        return int(value)
    return text_of(value) if pa.types.is_string(kind) else value


def _curves(results: StudyResults) -> list[dict[str, object]]:
    cells = [(record.number, cell) for record in results.records for cell in record.curves]
    cells.sort(key=lambda pair: (pair[0], pair[1]["step"], pair[1]["window"], pair[1]["scale"]))
    return [{"number": number, **cell} for number, cell in cells]


def _write_parquet(path: Path, rows: list[dict[str, object]], schema: pa.Schema) -> None:
    table = pa.Table.from_pylist(rows, schema=schema)
    with atomic_path(path) as aside:
        pq.write_table(table, aside, compression="zstd", store_schema=False)


def _write_csv(path: Path, rows: list[dict[str, object]], schema: pa.Schema) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(schema.names)
    writer.writerows([_csv_text(row[name]) for name in schema.names] for row in rows)
    with atomic_path(path) as aside:
        aside.write_bytes(text.getvalue().encode("utf-8"))


def _csv_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def _pareto(results: StudyResults) -> Pareto:
    objectives, facts = objectives_of(results.records), results.facts
    base = {"long": base_long(facts), "short": 0.0, **{name: getattr(facts, f"base_{name}") for name in ASKED}}
    points = (results.record(number) for number in results.front)
    return Pareto(
        study=results.facts.name,
        objectives={name: "maximise" if name in MAXIMISED else "minimise" for name in objectives},
        weights=dict(results.facts.weights),
        noise=results.noise,
        base=base,
        front=tuple(Point(**{name: getattr(point, name) for name in Point.model_fields}) for point in points),
        chosen=dict(results.chosen),
    )


def write_recipes(
    folder: Path, results: StudyResults, recipe: Mapping[str, object], *, skip_documents: int | None
) -> None:
    """Write the recipes a study proposes: best-<role>.yaml, best.yaml (the balanced one), front/<number>.yaml.

    Each is the study's own recipe without its `search`, with its full budget and the trial's settings put in.
    Those of an earlier export that are no longer proposed are removed. The evaluation of the new run leaves out
    `skip_documents`, held-out ones that the study chose by; None if there are no others: the recipe's own setting
    stays.

    Raises:
        SettingsError: If the recipe cannot hold a trial's settings, or the folder cannot be written.
    """
    proposed = {f"best-{role}.yaml": (role, number, ROLES[role]) for role, number in results.chosen.items()}
    if "balanced" in results.chosen:
        proposed[StudyExport.best.name] = proposed["best-balanced.yaml"]
    for number in results.front:
        words = "One point of the study's Pareto front: no other trial is at least as good in every objective."
        proposed[f"front/{number}.yaml"] = (f"front-{number}", number, words)
    for name, (role, number, words) in proposed.items():
        record = results.record(number)
        config = _config(record, results, recipe, role=role, skip_documents=skip_documents)
        write_text(folder / name, _header(words, record, results, config, skip_documents) + load.dump(config))
    for path in [*folder.glob("best*.yaml"), *folder.glob("front/*.yaml")]:
        name = path.relative_to(folder).as_posix()
        ours = re.fullmatch(rf"best(-({'|'.join(ROLES)}))?\.yaml|front/[0-9]+\.yaml", name)
        if ours and name not in proposed:
            path.unlink()


def _config(
    record: TrialRecord, results: StudyResults, recipe: Mapping[str, object], *, role: str, skip_documents: int | None
) -> RunConfig:
    plain = {key: value for key, value in recipe.items() if key != "search"}
    source = f"trial {record.number} of study {results.facts.name}"
    config = load.validate(plain, source=source)  # presets expanded
    changes: dict[str, object] = dict(record.params or record.settings)  # of a method that the space cannot express
    changes["name"] = f"{results.facts.name[: MAX_NAME - len(role) - 1]}-{role}"
    if config.evaluate is not None and skip_documents is not None:
        changes["evaluate.skip_documents"] = skip_documents
    return load.validate(space.assign(config.model_dump(mode="json"), changes, RunConfig), source=source)


def _header(
    words: str, record: TrialRecord, results: StudyResults, config: RunConfig, skip_documents: int | None
) -> str:
    """Return the comment on top of a recipe: where it comes from, and how sure that is."""
    facts, noise = results.facts, results.noise
    origin = f"the published method {record.baseline}" if record.baseline else "sampled by the search"
    retrieval = "" if record.retrieval is None else f", passkeys found {_share(record.retrieval, noise.retrieval)}"
    if record.answer_nll is not None:
        retrieval += f", answers {_measured(record.answer_nll, noise.answer_nll)} nats per token"
    paragraphs = [
        words,
        f"Study {facts.name}, trial {record.number} ({origin}): long {_measured(record.long, noise.long)}, short "
        f"{_measured(record.short, noise.short, sign='+')} nats per token{retrieval}. {_noise_words(noise)}",
        f"long: mean NLL over the windows {', '.join(map(str, facts.windows))}, each read at scale W / L; short: NLL "
        f"at {facts.base_context_length} tokens and scale 1 minus that of {base_words(facts.removed_scaling)}. Both "
        f"over {facts.documents} held-out documents.",
        f"Budget of the trial: {record.step} updates of {facts.batch_sequences} rows of {facts.window} tokens, "
        f"{record.tokens} tokens. This recipe trains for {config.train.steps} updates of "
        f"{config.train.batch_sequences} rows.",
    ]
    if config.evaluate is not None and skip_documents is None:
        paragraphs.append("It is evaluated on the documents by which the trial was chosen: there are no others.")
    elif config.evaluate is not None:
        paragraphs.append(
            f"Its evaluation leaves out the first {skip_documents} held-out documents, by which the trial was chosen."
        )
    lines = [line for text in paragraphs for line in textwrap.wrap(text, HEADER_WIDTH, break_on_hyphens=False)]
    return "".join(f"# {line}\n" for line in lines)


def _measured(value: float | None, deviation: float | None, *, sign: str = "") -> str:
    assert value is not None, "a proposed trial is complete"
    return f"{value:{sign}.4f}" if deviation is None else f"{value:{sign}.4f} +- {deviation:.4f}"


def _share(share: float, deviation: float | None) -> str:
    return f"{share:.1%}" if deviation is None else f"{share:.1%} +- {deviation:.1%}"


def _noise_words(noise: StudyNoise) -> str:
    if noise.value is None:
        return "How far trials differ by their seed alone was not measured, so small differences say nothing."
    return f"+- is one standard deviation of the paper's preset over {noise.runs} seeds."
