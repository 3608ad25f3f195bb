"""Settings without effect beside the others of their recipe, each reported in one line that names it.

A setting without effect may still be intended: a search combines it with many others, and one file serves several
commands. So it is reported, not refused. Nothing here is guessed: `tests/config/test_effect.py` walks over every
setting and requires that it is refused, changes what is made, or is reported here.
"""

import math
from collections.abc import Iterator

from e2ray.config.compare import CompareSettings
from e2ray.config.data import DataSettings, HuggingFaceSource, PretrainedTokenizer
from e2ray.config.evaluate import EvaluateSettings
from e2ray.config.methods import UNTRAINED, RampPowerMethod, YarnMethod
from e2ray.config.model import PretrainedModel
from e2ray.config.positions import (
    BetaScale,
    ChoiceScale,
    ChunksPlacement,
    EndsJump,
    FixedScale,
    NonePlacement,
    PositionSettings,
    PowerScale,
    PrefixPlacement,
    TerminalPlacement,
)
from e2ray.config.retrieval import WITHOUT_DEPTH, WITHOUT_NUMBERS, RetrievalSettings
from e2ray.config.run import RunConfig
from e2ray.config.search import SearchSettings
from e2ray.config.train import TrainSettings

PUBLISHED_FAST = YarnMethod().fast  # which recipes for short windows keep as it is
HUB_ID = "it belongs to a hub id, and {path} is a folder"


def without_effect(config: RunConfig, base_context_length: int) -> list[str]:
    """Return one line for each setting without effect in a recipe; `base_context_length` is L of its model."""
    lines = [*_model(config), *_data(config.data)]
    lines += _positions(config.positions, config.data.window, base_context_length)
    lines += _train("train", config.train)
    if config.pretrain:
        lines += _train("pretrain", config.pretrain)
    if config.evaluate:
        lines += _evaluate(config.evaluate)
        own = [lane for lane in config.evaluate.untrained if UNTRAINED[lane] == config.positions.method]
        lines += [_idle("evaluate.untrained", lane, "positions.method reads the base so anyway") for lane in own]
    if config.export and config.export.scale == "paper" and config.evaluate is None:
        lines.append(_idle("export.scale", "paper", "evaluate is null, so that no other scale is measured"))
    if config.compare:
        lines += _compare(config.compare)
        lines += _own_lanes(config.compare, config.data.window, base_context_length)
    if config.search:
        lines += _search(config.search)
        trial = without_effect(config.trial(), base_context_length)
        lines += [f"search.trial: {line}" for line in trial if line not in lines]
    return lines


def _idle(path: str, value: object, reason: str) -> str:
    return f"{path}: {value} is without effect, since {reason}"


def _model(config: RunConfig) -> Iterator[str]:
    model, tokenizer = config.model, config.data.tokenizer
    if isinstance(model, PretrainedModel) and model.is_folder and model.revision:
        yield _idle("model.revision", model.revision, HUB_ID.format(path="model.path"))
    if isinstance(tokenizer, PretrainedTokenizer) and tokenizer.revision and tokenizer.is_folder:
        yield _idle("data.tokenizer.revision", tokenizer.revision, HUB_ID.format(path="data.tokenizer.path"))


def _data(data: DataSettings) -> Iterator[str]:
    default = DataSettings.model_fields
    if data.pack != "best_fit" and data.pack_waiting != default["pack_waiting"].default:
        yield _idle("data.pack_waiting", data.pack_waiting, f"data.pack is {data.pack}, which chooses among none")
    if not data.validation_share and data.seed != default["seed"].default:
        yield _idle("data.seed", data.seed, "data.validation_share is 0, so that no document is chosen by it")
    if len(data.corpus) == 1 and data.corpus[0].weight is not None:
        yield _idle("data.corpus.0.weight", data.corpus[0].weight, "there is no other source to share the rows with")
    sources = [(f"data.corpus.{n}", source) for n, source in enumerate(data.corpus)]
    sources += [(f"data.validation_corpus.{n}", source) for n, source in enumerate(data.validation_corpus)]
    if 1 < data.min_tokens <= min(source.min_tokens for _, source in sources):
        yield _idle("data.min_tokens", data.min_tokens, "every source asks for at least as many of its own")
    for path, source in sources:
        if 1 < source.min_tokens < data.min_tokens:
            yield _idle(f"{path}.min_tokens", source.min_tokens, f"data.min_tokens asks for more ({data.min_tokens})")
        if isinstance(source, HuggingFaceSource) and source.is_folder:
            for name in ("name", "revision"):
                if getattr(source, name) is not None:
                    yield _idle(f"{path}.{name}", getattr(source, name), HUB_ID.format(path=f"{path}.path"))


def _positions(positions: PositionSettings, window: int, base_context_length: int) -> Iterator[str]:
    scale, placement, largest = positions.scale, positions.placement, positions.max_scale
    if isinstance(scale, ChoiceScale) and len(scale.choices) == 1 and scale.choices[0].weight != 1:
        yield _idle("positions.scale.choices.0.weight", scale.choices[0].weight, "there is no other choice")
    if scale.native_share == 1 and largest > 1:
        yield _idle(
            "positions.scale.choices" if isinstance(scale, ChoiceScale) else "positions.scale.max_scale",
            f"{largest:g}",
            "native_share 1 draws every row at scale 1, and no longer text is trained for; lower native_share, or take "
            "preset native",
        )
        largest = 1.0
    elif largest == 1:
        if scale.native_share:
            yield _idle("positions.scale.native_share", f"{scale.native_share:g}", "max_scale 1 leaves no other scale")
        if isinstance(scale, PowerScale | BetaScale):
            yield _idle("positions.scale.kind", scale.kind, "max_scale 1 leaves no other scale")
    without_scale = "lower native_share" if scale.native_share == 1 else "raise max_scale, shorten data.window"
    method, turns = positions.method, base_context_length / (2 * math.pi)  # of the fastest pair of plain RoPE within L
    if isinstance(method, YarnMethod | RampPowerMethod) and method.fast > max(turns, PUBLISHED_FAST):
        yield _idle(
            "positions.method.fast",
            f"{method.fast:g}",
            f"no pair turns more often than {turns:.3g} times within L, from which on none is kept whole",
        )
    room = math.floor(max(0.0, largest * base_context_length - window))
    shifts = room > 0
    if isinstance(placement, NonePlacement):
        shifts = False
    elif not shifts:
        yield _idle(
            "positions.placement",
            placement.kind,
            f"rows of data.window {window} tokens have no room to shift below scale {largest:g} times L "
            f"({largest * base_context_length:g} tokens); {without_scale}, or take kind none",
        )
    elif isinstance(placement, PrefixPlacement) and not placement.prefix:
        shifts = False
        yield _idle(
            "positions.placement.prefix", 0, "all tokens of a row move alike, which rotary attention does not see"
        )
    elif isinstance(placement, ChunksPlacement) and placement.num_chunks == 1:
        shifts = False
        yield _idle(
            "positions.placement.num_chunks", 1, "all tokens of a row move alike, which rotary attention does not see"
        )
    if positions.per == "step" and not _scale_varies(positions, largest) and not (shifts and _shift_varies(positions)):
        yield _idle("positions.per", "step", "all rows are drawn alike anyway")


def _scale_varies(positions: PositionSettings, largest: float) -> bool:
    scale = positions.scale
    alone = isinstance(scale, FixedScale) or (isinstance(scale, ChoiceScale) and len(scale.choices) == 1)
    return largest > 1 and (not alone or 0 < scale.native_share < 1)


def _shift_varies(positions: PositionSettings) -> bool:
    """Return whether a placement that shifts rows of one scale shifts them by chance."""
    placement = positions.placement
    if isinstance(placement, PrefixPlacement | TerminalPlacement):
        return not (isinstance(placement.jump, EndsJump) and placement.jump.p == 1)
    return True


def _train(key: str, train: TrainSettings) -> Iterator[str]:
    if train.warmup_steps and train.warmup_steps >= train.steps:
        most = train.lr * train.steps / train.warmup_steps
        yield (
            f"{key}.warmup_steps: the warm-up of {train.warmup_steps} steps is not over before the {train.steps} steps "
            f"of {key}.steps are, so {key}.lr reaches {most:g} of {train.lr:g}, and {key}.schedule and "
            f"{key}.final_lr_share are without effect"
        )
    elif train.schedule == "constant" and train.final_lr_share:
        reason = f"{key}.schedule is constant; take linear or cosine"
        yield _idle(f"{key}.final_lr_share", train.final_lr_share, reason)
    elif train.schedule != "constant" and train.final_lr_share == 1:
        yield _idle(f"{key}.schedule", train.schedule, f"{key}.final_lr_share 1 leaves the learning rate as it is")
    if train.watch_every is None and train.watch_documents != TrainSettings.model_fields["watch_documents"].default:
        yield _idle(f"{key}.watch_documents", train.watch_documents, f"{key}.watch_every is null; set it")
    if train.reduce_dtype == "bf16" and (train.precision == "fp32" or train.zero_stage == 0):
        cause = f"{key}.zero_stage is 0" if train.zero_stage == 0 else f"{key}.precision is fp32"
        yield _idle(f"{key}.reduce_dtype", train.reduce_dtype, f"{cause}, and gradients of fp32 weights stay fp32")


def _evaluate(evaluate: EvaluateSettings) -> Iterator[str]:
    cut = evaluate.document_tokens
    beyond = [window for window in evaluate.windows or () if cut is not None and window > cut]
    if beyond:
        listed = ", ".join(map(str, beyond))
        yield _idle("evaluate.windows", listed, f"evaluate.document_tokens cuts documents to {cut} tokens")
    if evaluate.retrieval:
        yield from _retrieval("evaluate.retrieval", evaluate.retrieval)
    suites = evaluate.suites
    for name in ("leval", "longproc"):
        if suites and getattr(suites, name) and not any(task.startswith(f"{name}:") for task in suites.tasks):
            yield _idle(f"evaluate.suites.{name}", getattr(suites, name), f"no {name}: task is asked")


def _retrieval(key: str, retrieval: RetrievalSettings) -> Iterator[str]:
    default = RetrievalSettings()
    if set(retrieval.tasks) <= set(WITHOUT_DEPTH) and retrieval.depths != default.depths:
        yield _idle(f"{key}.depths", list(retrieval.depths), "none of its tasks has a depth")
    if retrieval.greedy > retrieval.trials:
        yield _idle(f"{key}.greedy", retrieval.greedy, f"a cell has {retrieval.trials} prompts ({key}.trials)")
    if set(retrieval.tasks) <= set(WITHOUT_NUMBERS) and retrieval.digits != default.digits:
        yield _idle(f"{key}.digits", retrieval.digits, "none of its tasks hides numbers")


def _compare(compare: CompareSettings) -> Iterator[str]:
    if compare.best is not None and "best" not in compare.lanes:
        yield _idle("compare.best", compare.best, "the lane best is not among compare.lanes")
    if "pi_long" not in compare.lanes and compare.long_window_seeds != 1:
        reason = "the lane pi_long is not among compare.lanes"
        yield _idle("compare.long_window_seeds", compare.long_window_seeds, reason)
    elif compare.long_window_seeds > len(compare.seeds):
        reason = f"compare.seeds has {len(compare.seeds)}"
        yield _idle("compare.long_window_seeds", compare.long_window_seeds, reason)
    if compare.retrieval:
        yield from _retrieval("compare.retrieval", compare.retrieval)


def _own_lanes(compare: CompareSettings, window: int, base_context_length: int) -> Iterator[str]:
    for name, own in compare.own.items():
        for line in _positions(own.positions, window, base_context_length):
            yield f"compare.own.{name}.{line}"
        if own.seeds is not None and own.seeds > len(compare.seeds):
            yield _idle(f"compare.own.{name}.seeds", own.seeds, f"compare.seeds has {len(compare.seeds)}")


def _search(search: SearchSettings) -> Iterator[str]:
    default = SearchSettings.model_fields
    if search.trials == search.fixed_trials:
        yield (
            f"search.trials: {search.trials} are the published methods and repeats, so search.space, "
            "search.sampler and search.startup_trials are without effect; raise it"
        )
    elif search.sampler == "random" and search.startup_trials != default["startup_trials"].default:
        yield _idle("search.startup_trials", search.startup_trials, "search.sampler is random")
    if search.weights.asks:
        yield from _retrieval("search.retrieval", search.retrieval)
    else:
        for name, field in RetrievalSettings.model_fields.items():
            if getattr(search.retrieval, name) != field.default:
                reason = "search.weights.retrieval and answer_nll are 0, which asks for nothing"
                yield _idle(f"search.retrieval.{name}", getattr(search.retrieval, name), reason)
