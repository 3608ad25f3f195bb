"""From a recipe file and `--set a.b=c` to checked settings, or one line that says what is wrong.

YAML is read with its 1.2 idea of numbers (`1e-5` is a number, `no` and `on` are text) and without its
dangerous parts: tags, anchors and aliases, repeated keys, NaN and infinities are refused.
"""

import hashlib
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from e2ray.config.base import SettingsError
from e2ray.config.run import RunConfig
from e2ray.config.words import shown, wanted

MAX_RECIPE_BYTES = 1_000_000
MAX_DEPTH = 40


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, stricter in what it takes."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
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

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
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


def parse_yaml(text: str, *, source: str) -> object:
    """Return the value of strict YAML; `source` names it in errors.

    Raises:
        SettingsError: One line with the place and the problem.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = ": ".join(part for part in (error.context, error.problem) if part)
        raise SettingsError(f"{source}{where}: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    _refuse_non_finite(value, source, "")
    return value


def _refuse_non_finite(value: object, source: str, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{source}: {path or 'value'}: got {value}, wanted a finite number")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        _refuse_non_finite(item, source, f"{path}.{key}" if path else str(key))


def read_recipe(path: str | Path) -> dict[str, object]:
    """Return the mapping a recipe file holds.

    Raises:
        SettingsError: If the file is missing, unreadable, empty or not a mapping of strict YAML.
    """
    path = Path(path)
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(MAX_RECIPE_BYTES + 1)  # a pipe or a device has no known size
        if len(data) > MAX_RECIPE_BYTES:
            raise SettingsError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes, which no recipe is")
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such recipe; jobs/recipes/ holds some to start from") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: ~somebody without a home
        raise SettingsError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    value = parse_yaml(text, source=str(path))
    if value is None:
        raise SettingsError(f"{path}: is empty; wanted a mapping of settings, see `e2ray schema`")
    if not isinstance(value, dict):
        raise SettingsError(f"{path}: got a {type(value).__name__}, wanted a mapping of settings")
    return value


def apply_override(recipe: dict[str, object], assignment: str) -> None:
    """Set one dotted key of a recipe in place: `train.lr=1e-4`, `data.corpus.0.paths=[a.txt]`.

    Raises:
        SettingsError: If the text is no assignment, or the path leads through a plain value.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not 1 <= len(key.split(".")) <= MAX_DEPTH or not all(key.split(".")):
        raise SettingsError(f"--set {assignment}: wanted key.path=value, e.g. --set train.lr=1e-4")
    value = parse_yaml(text, source=f"--set {key}")
    *parents, last = key.split(".")
    section: object = recipe
    for depth, part in enumerate(parents):
        if isinstance(section, dict) and section.get(part) is None:
            section[part] = {}
        section = _item(section, part, ".".join(parents[:depth]), assignment)
    if isinstance(section, dict):
        section[last] = value
        return
    _item(section, last, ".".join(parents), assignment)
    if isinstance(section, list):
        section[int(last)] = value


def _item(section: object, part: str, path: str, assignment: str) -> object:
    if isinstance(section, dict):
        return section[part]
    if isinstance(section, list):
        if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(section):
            entries = f"has entries 0 to {len(section) - 1}" if section else "is an empty list"
            raise SettingsError(f"--set {assignment}: {path} {entries}, got {part!r}")
        return section[int(part)]
    raise SettingsError(f"--set {assignment}: {path} is {section!r}, not a section")


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the checked settings of a recipe with overrides applied in order.

    Raises:
        SettingsError: One line with key path, value found and value wanted.
    """
    recipe = read_recipe(path)
    for assignment in overrides:
        apply_override(recipe, assignment)
    return validate(recipe, source=str(path))


def validate(recipe: Mapping[str, object], *, source: str) -> RunConfig:
    """Return the checked settings of a plain mapping; `source` names it in errors.

    Raises:
        SettingsError: One line with key path, value found and value wanted; of several errors the first.
    """
    try:
        return RunConfig.model_validate(recipe)
    except ValidationError as error:
        by_path: dict[str, list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False):
            by_path.setdefault(_key_path(detail["loc"], recipe), []).append(detail)
        path, details = next(iter(by_path.items()))
        # a wrong entry makes its list "too short" as well
        others = [other for other in by_path if other != path and not path.startswith(f"{other}.")]
        more = f" (and {len(others)} more)" if others else ""
        raise SettingsError(f"{source}: {path + ': ' if path else ''}{_problem(details)}{more}") from None


def _problem(details: list[ErrorDetails]) -> str:
    """Return `got X, wanted Y` for pydantic's errors at one key, the members of a choice of types among them."""
    detail = details[0]
    context = detail.get("ctx", {})
    value = shown(detail["input"])
    match detail["type"]:
        case "missing":
            return "is missing; the recipe must set it"
        case "extra_forbidden":
            return f"unknown setting (value {value}); `e2ray schema` lists the known ones"
        case "value_error":
            return str(context["error"])
        case "union_tag_not_found":
            return f"got {value}, wanted a section with `kind`"
        case "union_tag_invalid":
            return f"kind is {context['tag']!r}, wanted one of {context['expected_tags']}"
    return f"got {value}, wanted {wanted(details)}"


_CHOICES = {"model", "scale", "placement", "jump", "tokenizer"}  # keys whose section has a `kind`


def _key_path(location: tuple[int | str, ...], recipe: Mapping[str, object]) -> str:
    """Return an error's dotted path in the recipe.

    Pydantic puts the `kind` after a choice of classes and the type after a choice of types, and it reports the
    scale of a preset at the path it was expanded to.
    """
    parts: list[str] = []
    previous: int | str | None = None
    for part in location:
        is_source = isinstance(previous, int) and len(parts) >= 2 and parts[-2].endswith("corpus")
        is_kind = isinstance(part, str) and (previous in _CHOICES or is_source)
        is_type = part == "bool" or str(part).startswith("literal[")
        if not is_kind and not is_type:
            parts.append(str(part))
        previous = None if is_kind else part
    path = ".".join(parts)
    positions = recipe.get("positions")
    if path == "positions.scale.max_scale" and isinstance(positions, dict) and "preset" in positions:
        return "positions.max_scale"
    return path


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper; it quotes text that its own loader or ours would read as something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        folded = any(character in data for character in "\x85\u2028\u2029")  # line breaks that plain quotes lose
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if folded else None)


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.yaml_implicit_resolvers = {
    first: [
        *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
        *_Loader.yaml_implicit_resolvers.get(first, []),
    ]
    for first in yaml.SafeDumper.yaml_implicit_resolvers.keys() | _Loader.yaml_implicit_resolvers.keys()
}


def dump(config: RunConfig) -> str:
    """Return the resolved settings as YAML that `load` reads back to the same settings."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def resolved_text(config: RunConfig) -> str:
    """Return what a run's config.yaml holds: the resolved settings, and a last line with their digest."""
    text = dump(config)
    return f"{text}# digest: {hashlib.sha256(text.encode()).hexdigest()}\n"


def read_vouched_recipe(path: str | Path) -> dict[str, object]:
    """Return the mapping that a run's config.yaml holds.

    Raises:
        SettingsError: As `read_recipe`, or if it is not what the run wrote there.
    """
    recipe, text = read_recipe(path), Path(path).expanduser().read_bytes()
    vouched = re.fullmatch(rb"(.*\n)# digest: ([0-9a-f]{64})\n", text, re.DOTALL)
    if vouched and hashlib.sha256(vouched[1]).hexdigest() != vouched[2].decode():
        raise SettingsError(
            f"{path}: is not what the run has written, its digest does not match; put it back from a copy, or remove "
            "its last line to take it as it is"
        )
    return recipe


def read_resolved(path: str | Path) -> RunConfig:
    """Return the settings of a run's config.yaml.

    Raises:
        SettingsError: As `load`, or if they are not those that the run wrote there.
    """
    return validate(read_vouched_recipe(path), source=str(path))


def schema() -> dict[str, object]:
    """Return the JSON schema of a recipe."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | RunConfig.model_json_schema()
