"""From a recipe file and `--set a.b=c` to checked settings, or one line that says what is wrong.

YAML is read with its 1.2 idea of numbers (`1e-5` is a number, `no` and `on` are text) and without its
dangerous parts: tags, anchors and aliases, repeated keys, NaN and infinities are refused.
"""

import json
import math
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from e2ray.config.base import SettingsError
from e2ray.config.run import RunConfig

MAX_RECIPE_BYTES = 1_000_000
MAX_DEPTH = 40


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, stricter in what it takes."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases are refused", problem_mark=event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem=f"tags are refused, got {event.tag}", problem_mark=event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"deeper than {MAX_DEPTH} levels", problem_mark=event.start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="keys must be plain text", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key_node.value!r} stands twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first]
    )
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: _number(node.value))


def _number(text: str) -> float:
    lowered = text.replace("_", "").lower()
    return float(lowered.replace(".inf", "inf").replace(".nan", "nan"))


def parse_yaml(text: str, *, source: str) -> Any:
    """Return the value of strict YAML; `source` names it in errors.

    Raises:
        SettingsError: One line with the place and the problem.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(f"{source}{place}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    _refuse_non_finite(value, source, "")
    return value


def _refuse_non_finite(value: Any, source: str, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{source}: {path or 'value'}: got {value}, wanted a finite number")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        _refuse_non_finite(item, source, f"{path}.{key}" if path else str(key))


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Return the mapping a recipe file holds.

    Raises:
        SettingsError: If the file is missing, unreadable, empty or not a mapping of strict YAML.
    """
    path = Path(path).expanduser()
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise SettingsError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes, which no recipe is")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such recipe; jobs/recipes/ holds some to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    value = parse_yaml(text, source=str(path))
    if value is None:
        raise SettingsError(f"{path}: is empty; wanted a mapping of settings, see `e2ray schema`")
    if not isinstance(value, dict):
        raise SettingsError(f"{path}: got a {type(value).__name__}, wanted a mapping of settings")
    return value


def apply_override(recipe: dict[str, Any], assignment: str) -> None:
    """Set one dotted key of a recipe in place: `train.lr=1e-4`, `data.corpus.0.paths=[a.txt]`.

    Raises:
        SettingsError: If the text is no assignment, or the path leads through a plain value.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not key or any(not part for part in key.split(".")):
        raise SettingsError(f"--set {assignment}: wanted key.path=value, e.g. --set train.lr=1e-4")
    value = parse_yaml(text, source=f"--set {key}")
    *parents, last = key.split(".")
    place: Any = recipe
    for depth, part in enumerate(parents):
        if isinstance(place, dict) and place.get(part) is None:
            place[part] = {}
        place = _item(place, part, ".".join(parents[:depth]), assignment)
    if isinstance(place, list):
        _item(place, last, ".".join(parents), assignment)
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise SettingsError(f"--set {assignment}: {'.'.join(parents)} is {place!r}, not a section")


def _item(place: Any, part: str, path: str, assignment: str) -> Any:
    if isinstance(place, dict):
        return place[part]
    if isinstance(place, list):
        if not part.isdigit() or int(part) >= len(place):
            raise SettingsError(f"--set {assignment}: {path} has entries 0 to {len(place) - 1}, got {part!r}")
        return place[int(part)]
    raise SettingsError(f"--set {assignment}: {path} is {place!r}, not a section")


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the checked settings of a recipe with overrides applied in order.

    Raises:
        SettingsError: One line with key path, value found and value wanted.
    """
    recipe = read_recipe(path)
    for assignment in overrides:
        apply_override(recipe, assignment)
    return validate(recipe, source=str(path))


def validate(recipe: dict[str, Any], *, source: str) -> RunConfig:
    """Return the settings a plain mapping stands for; `source` names it in errors."""
    try:
        return RunConfig.model_validate(recipe)
    except ValidationError as error:
        details = error.errors(include_url=False)
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        raise SettingsError(f"{source}: {_describe(details[0])}{more}") from None


_UNION_TAGS = re.compile(r"^(pretrained|llama|text|jsonl|parquet|python_stdlib|byte_level_bpe)$")


def _describe(detail: ErrorDetails) -> str:
    """Return `key.path: got X, wanted Y` for one of pydantic's errors."""
    path = ".".join(_without_tags(detail["loc"]))
    where = f"{path}: " if path else ""
    found = detail["input"]
    context = detail.get("ctx", {})
    shown = repr(found) if len(repr(found)) <= 60 else repr(found)[:57] + "..."
    match detail["type"]:
        case "missing":
            return f"{where}is missing; the recipe must set it"
        case "extra_forbidden":
            return f"{where}unknown setting (value {shown}); `e2ray schema` lists the known ones"
        case "value_error":
            return f"{where}{context['error']}"
        case "union_tag_not_found":
            return f"{where}got {shown}, wanted a section with `kind`"
        case "union_tag_invalid":
            return f"{where}kind is {context['tag']!r}, wanted one of {context['expected_tags']}"
    wanted = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{where}got {shown}, wanted {wanted}"


def _without_tags(location: tuple[int | str, ...]) -> list[str]:
    """Return an error's path without the `kind` that pydantic puts behind a choice of classes."""
    parts: list[str] = []
    tagged = {"model", "scale", "placement", "jump", "tokenizer"}
    previous: int | str | None = None
    for part in location:
        is_source = isinstance(previous, int) and len(parts) >= 2 and parts[-2].endswith("corpus")
        if isinstance(part, str) and not (previous in tagged or is_source):
            parts.append(part)
        elif isinstance(part, int):
            parts.append(str(part))
        elif previous in tagged or is_source:
            previous = None
            continue
        previous = part
    return parts


def dump(config: RunConfig) -> str:
    """Return the resolved settings as YAML that `load` reads back to the same settings."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def schema() -> str:
    """Return the JSON schema of a recipe."""
    return json.dumps(TypeAdapter(RunConfig).json_schema(), indent=2)
