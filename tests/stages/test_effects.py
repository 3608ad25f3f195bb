"""No setting is accepted and does nothing: a walk over every field of the schema with the extremes of each.

For each value one of three is wanted: it is refused in one line; something changes that is made of it by the functions
which a run calls (`observed.py`); or a line that names it says that it is without effect. A new setting fails here
until `SEEN` says what changes with it, a new section until `recipes` in `walk_recipes.py` puts it into a recipe.
"""

import copy
import json
import re
from pathlib import Path

import observed
import observed_after
import pytest
from observed import without_ray
from walk import Place, extremes, is_section, places, put, read
from walk_recipes import JUMPS, METHODS, PLACEMENTS, SCALES, TEMPERATURES, recipe, recipes, write_world

from e2ray.config.base import SettingsError
from e2ray.config.load import validate
from e2ray.config.run import RunConfig
from e2ray.config.train import TrainSettings
from e2ray.stages import checks
from e2ray.stages.run import resolve

PLACES = {place.key: place for place in places(RunConfig)}
OBSERVABLES = vars(observed) | vars(observed_after)

# ---- what must change -------------------------------------------------------------------------------------------

SOURCE = {"weight": "shards", "min_tokens": "shards", "max_tokens": "shards", "paths": "shards", "column": "shards"}
RETRIEVED = ("tasks", "context_lengths", "depths", "trials", "digits", "greedy", "seed")
DRAWN = {
    name: "draws"
    for name in ("max_scale", "native_share", "exponent", "a", "b", "choices", "scale", "weight", "p", "prefix", "per")
} | {
    name: "draws"
    for name in ("num_breaks", "pin_first", "pin_last", "tokens", "sigma", "num_chunks", "jump", "placement")
}
METHOD = dict.fromkeys(("fast", "slow", "factors", "max_scale", "coefficient", "temperature"), "frequencies")
TRAINED = {
    "steps": "rates",
    "max_skipped_steps": "patience",
    "batch_sequences": "rows",
    "micro_batch_sequences": "deepspeed",
    "lr": "rates",
    "betas": "updates",
    "eps": "updates",
    "weight_decay": "updates",
    "warmup_steps": "rates",
    "schedule": "rates",
    "final_lr_share": "rates",
    "clip_norm": "updates",
    "zero_stage": "deepspeed",
    "offload": "deepspeed",
    "reduce_dtype": "deepspeed",
    "deepspeed": "deepspeed",
    "compile": "compiled",
    "fused_loss": "compiled",
    "precision": "deepspeed",
    "checkpoint_every": "left_behind",
    "keep_checkpoints": "left_behind",
    "log_every": "left_behind",
    "progress_s": "progress_lines",
    "objective": "updates",
    "watch_every": "left_behind",
    "watch_documents": "left_behind",
    "stop": "ends",
}
# Class -> setting -> the observable in observed.py that must change with it; there is no default.
SEEN = {
    "RunConfig": {
        **{"name": "place", "storage": "place", "seed": "draws", "pretrain": "stages", "evaluate": "stages"},
        **{"export": "stages", "compare": "jobs", "search": "study", "trackers": "logged"},
    },
    "MlflowTracker": dict.fromkeys(("uri", "experiment"), "logged"),
    "WandbTracker": dict.fromkeys(("project", "entity", "online"), "logged"),
    "LlamaModel": {
        **dict.fromkeys(("hidden_size", "num_layers", "num_heads", "num_key_value_heads"), "model"),
        **dict.fromkeys(("intermediate_size", "base_frequency", "initializer_range", "tie_embeddings"), "model"),
        **{"base_context_length": "draws", "attention": "attention"},
        **{"checkpoint_share": "adapters", "lora": "adapters", "liger": "kernels"},
    },
    "PretrainedModel": {
        **{"path": "model", "revision": "model", "base_context_length": "draws", "base_scaling": "model"},
        **{"attention": "attention", "checkpoint_share": "adapters", "lora": "adapters", "liger": "kernels"},
    },
    "LoraSettings": dict.fromkeys(("rank", "alpha", "dropout", "targets", "trainable"), "adapters"),
    "DataSettings": {
        **{"corpus": "items", "validation_corpus": "items", "tokenizer": "shards", "window": "shards"},
        **dict.fromkeys(("pack", "pack_waiting", "validation_share", "min_tokens", "near_duplicates"), "shards"),
        **{"on_bad": "shards", "seed": "shards", "shard_rows": "shards", "shuffle_shards": "rows"},
        **{"max_document_mib": "limits", "max_unpack_ratio": "limits"},
        **{"prefetch_mib": "reading", "ledger": "left_behind", "shards": "shards_place"},
    },
    "TextSource": SOURCE,
    "JsonlSource": SOURCE,
    "ParquetSource": SOURCE,
    "HuggingFaceSource": SOURCE | dict.fromkeys(("path", "name", "split", "revision"), "shards"),
    "PythonStdlibSource": SOURCE,
    "PasskeySource": SOURCE
    | dict.fromkeys(("documents", "min_characters", "max_characters", "digits", "seed"), "shards"),
    "PretrainedTokenizer": {"path": "shards", "revision": "shards"},
    "ByteLevelBpe": {"vocab_size": "shards", "training_bytes": "shards"},
    "PositionSettings": DRAWN | {"method": "frequencies"},
    **dict.fromkeys([*SCALES, "ChoiceScale", "ScaleWeight", *PLACEMENTS, *JUMPS], DRAWN),
    **dict.fromkeys([*METHODS, *TEMPERATURES], METHOD),
    "TrainSettings": TRAINED,
    "ObjectiveSettings": dict.fromkeys(("next_token", "distill", "distance_weights"), "updates"),
    "StopSettings": {"price_at_base": "ends"},
    "OwnLane": dict.fromkeys(("positions", "objective", "seeds"), "jobs"),
    "ClusterSettings": dict.fromkeys(
        (
            *("num_workers", "use_gpu", "cpus_per_worker", "autoscaling", "wait_s", "max_failures", "object_store_mib"),
            *("hang_s", "allow_open"),
        ),
        "to_ray",
    ),
    "EvaluateSettings": {
        **dict.fromkeys(("windows", "scales", "documents", "skip_documents", "document_tokens", "stride"), "surface"),
        "untrained": "surface",
        **{"loss_gap": "plausible", "least_loss_share": "plausible", "batch_tokens": "surface"},
        **{"retrieval": "stages", "suites": "stages"},
    },
    "RetrievalSettings": dict.fromkeys(RETRIEVED, "retrieval"),
    "SuiteSettings": dict.fromkeys(
        (
            *("tasks", "limit", "num_fewshot", "seed", "include_path", "max_context_length", "too_long"),
            *("context_lengths", "chat_template", "unsafe_code", "leval", "longproc"),
        ),
        "suites",
    ),
    "ExportSettings": {"context_lengths": "profiles", "scale": "served"},
    "CompareSettings": dict.fromkeys(
        ("lanes", "untrained", "own", "best", "seeds", "long_window_seeds", "retrieval"), "jobs"
    ),
    "SearchSettings": {
        **dict.fromkeys(("trials", "space", "trial", "mode", "weights", "retrieval", "early_stopping"), "study"),
        **dict.fromkeys(("baselines", "repeats", "sampler", "startup_trials", "surface"), "study"),
        **{"concurrency": "room", "progress_s": "tables"},
    },
    "Weights": dict.fromkeys(("long", "short", "retrieval", "answer_nll"), "study"),
    **{name: {"min_steps": "study", "reduction_factor": "study"} for name in ("AshaStopping", "HyperbandStopping")},
    **{name: dict.fromkeys(("when", "low", "high", "log"), "study") for name in ("FloatRange", "IntRange")},
    "Choice": {"when": "study", "options": "study"},
}
# The same class elsewhere: a run's own grid is asked for above, here that it arrives.
SEEN_AT = {
    "compare.retrieval": "jobs",
    "compare.own{}": "jobs",
    "train.stop": "ends",
    "pretrain.stop": "ends",
    "search.retrieval": "shared",
    "pretrain": "pretraining",
    "data.validation_corpus[]": "held_out",
}
# Settings of which more is nothing but more of the same, and takes longer than a test may: the most that is tried here.
MOST = {
    "RetrievalSettings.trials": 5,
    "PasskeySource.documents": 40,
    "TrainSettings.batch_sequences": 64,
    "ClusterSettings.wait_s": 1000.0,
}


def seen(place, name):
    """Return the observable that a setting changes."""
    known = SEEN.get(place.cls.__name__, {})
    if name not in known:
        pytest.fail(
            f"{place.path}.{name}: is a setting that no observable is known for; say in SEEN of {__file__}, under "
            f"{place.cls.__name__}, which function of observed.py or observed_after.py changes with it; write one if "
            "none does"
        )
    for path, observable in SEEN_AT.items():
        if place.path.startswith(path):
            return observable
    return known[name]


# ---- the walk ---------------------------------------------------------------------------------------------------


def outcome(made, name, path):
    """Return ("refused", line), or the observed data and the lines on settings without effect."""
    try:
        run = resolve(validate(made, source="walk"))
        checks.refuse_unfit(run)
        return OBSERVABLES[name](run, path), run.ignored
    except (SettingsError, FileNotFoundError) as error:
        return "refused", str(error)


def placed(folder, place, section, changes, *only):
    """Return the recipe with some changes and a section in its place."""
    base = recipe(folder)
    for path, value in changes.items():
        put(base, path, copy.deepcopy(value))
    if section is not None:
        put(base, place.path, copy.deepcopy(section))
    return base


def walked(folder, place):
    """Yield (setting, extreme, the recipe with it, observable, the recipe without) of a place."""
    known = recipes(folder)
    key = place.key if place.path else ""
    if key not in known:
        pytest.fail(f"{place.key}: no recipe reaches these settings; add one to recipes() of walk_recipes.py")
    for section, changes, *only in known[key]:
        base = placed(folder, place, section, changes)
        try:
            at = resolve(validate(base, source="walk")).config.model_dump(mode="json")
        except SettingsError as error:
            pytest.fail(f"{place.key}: {error}")
        for name, field in place.cls.model_fields.items():
            if name == "kind" or is_section(field.annotation) or (only and name not in only[0]):
                continue  # the sections of other kinds have recipes of their own
            observable, most = seen(place, name), MOST.get(f"{place.cls.__name__}.{name}")
            for value in extremes(field, read(at, place.path)[name]):
                value = min(value, most) if most and isinstance(value, int | float) else value
                changed = copy.deepcopy(base)
                put(changed, f"{place.path}.{name}".lstrip("."), value)
                yield name, value, changed, observable, base


def silent(key, world, library):
    """Return one line for each extreme of a place that is accepted, changes nothing and is not told."""
    place, found, before = PLACES[key], [], {}
    path = place.path.replace("[]", ".0").replace("{}", ".{}")
    with without_ray(library):
        for name, value, changed, observable, base in walked(world, place):
            at, setting = json.dumps([base, observable], default=str), f"{path}.{name}".lstrip(".")
            if at not in before:
                before[at] = outcome(base, observable, place.path)
                assert before[at][0] != "refused" or observable in ("jobs", "study"), (setting, observable, before[at])
            try:
                data, told = outcome(changed, observable, place.path)
            except Exception as error:  # a value that is neither refused nor of use
                found.append(f"{setting} = {value!r}: {observable} fails: {type(error).__name__}: {error}")
                continue
            if data == "refused":
                assert "\n" not in told, told
                if not names(told, setting, value):
                    found.append(f"{setting} = {value!r} is refused without its name: {told}")
            elif data == before[at][0] and not any(
                line not in before[at][1] and names(line.partition(":")[0], setting) for line in told
            ):
                found.append(f"{setting} = {value!r} changes nothing of {observable} and is not told")
    return found


def names(line, setting, value=None):
    """Return whether a line names a setting: by its path, its own name, its section, or the value that it has."""
    _, _, own = setting.rpartition(".")
    section = setting.split(".")[-2] if "." in setting else own
    words = (re.escape(setting), own.rstrip("s").replace("_", "[ _]"), section)
    values = [re.escape(str(each)[:100]) for each in (value if isinstance(value, list | tuple) else [value])]
    found = (rf"(^|[^\w]){word}s?($|[^\w])" for word in words)
    shown = (rf"(^|[^\w]){each}($|[^\w]|x)" for each in values)
    return any(re.search(pattern, line) for pattern in (*found, *shown))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A standard library of six modules: the real one takes seconds to read."""
    folder = tmp_path_factory.mktemp("library")
    for n in range(6):
        lines = (f"def f{k}(x):\n    return x + {k * n}\n" for k in range(2 + 15 * n))
        (folder / f"module_{n}.py").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("key", PLACES)
def test_every_setting_is_refused_or_changes_something_or_is_told_as_without_effect(
    key, world, library, request, monkeypatch
):
    monkeypatch.setattr("e2ray.config.space.RANDOM_POINTS", 20)  # of hundreds, for each of hundreds of recipes
    for start, fixture in (("train", "one_rank"), ("data:", "one_rank"), ("evaluate.suites", "own_tasks_only")):
        if key.startswith(start):
            request.getfixturevalue(fixture)
    found = silent(key, world, library)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "observable"),
    [
        ("positions.scale", "draws"),
        ("positions.placement", "draws"),
        ("positions.placement.jump", "draws"),
        ("data.tokenizer", "shards"),
        ("data.corpus[]", "items"),
        ("model", "model"),
    ],
)
def test_a_section_of_another_kind_is_another_thing(path, observable, world, library):
    found = {}
    with without_ray(library):
        for place in PLACES.values():
            if place.path == path:
                made = placed(world, place, *recipes(world)[place.key][0])
                data, _ = outcome(made, observable, path)
                found[place.cls.__name__] = json.dumps(data)
    assert len(found) > 1 and len(set(found.values())) == len(found), found.keys()


def test_a_setting_that_does_nothing_is_found(world, library, monkeypatch):
    monkeypatch.setattr("e2ray.stages.run.without_effect", lambda config, base_context_length: [])
    assert silent("positions:PositionSettings", world, library) == [
        "positions.per = 'step' changes nothing of draws and is not told"
    ]


def test_a_value_that_fails_where_it_is_used_is_found(world, library, monkeypatch):
    real = observed.attention

    def attention(run, path):
        if run.config.model.attention == "eager":
            raise ZeroDivisionError("no eagerness")
        return real(run, path)

    monkeypatch.setitem(OBSERVABLES, "attention", attention)
    found = silent("model:LlamaModel", world, library)
    assert found == ["model.attention = 'eager': attention fails: ZeroDivisionError: no eagerness"]


def test_a_setting_without_an_observable_says_where_to_add_one():
    class Newer(TrainSettings):
        patience: int = 3

    with pytest.raises(
        pytest.fail.Exception, match=r"train\.patience: is a setting that no observable .* SEEN of .*Newer"
    ):
        seen(Place("train", Newer), "patience")
    with pytest.raises(
        pytest.fail.Exception, match=r"train:Newer: no recipe reaches these settings; add one to recipes\(\)"
    ):
        list(walked(Path("/nowhere"), Place("train", Newer)))
