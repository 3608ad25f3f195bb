"""One run: every setting, and the checks that need more than one section."""

import re
from collections.abc import Mapping, Sequence

from pydantic import Field, ValidationError, field_validator, model_validator

from e2ray.config.base import Settings
from e2ray.config.compare import CompareSettings, lane_positions
from e2ray.config.data import DataSettings
from e2ray.config.evaluate import EvaluateSettings, ExportSettings
from e2ray.config.family import family
from e2ray.config.model import LlamaModel, Model
from e2ray.config.positions import PositionSettings
from e2ray.config.search import SearchSettings, Space
from e2ray.config.space import assign, check
from e2ray.config.trackers import TrackerSettings
from e2ray.config.train import AnyObjective, ClusterSettings, TrainSettings
from e2ray.config.words import first_of

RESERVED = ("shards", "bases", "tokenizers", "prompts")  # folders of storage that are not runs
# A run may be continued with other values of these: they change where and how fast it runs and what it writes beside
# the weights, not what is trained.
FREE_ON_RESUME = (
    "cluster",
    "trackers",
    "storage",
    "data.ledger",
    "train.checkpoint_every",
    "train.log_every",
    "train.zero_stage",
    "train.offload",
    "data.prefetch_mib",
    "train.micro_batch_sequences",
    "train.progress_s",
    "train.keep_checkpoints",
    "train.max_skipped_steps",
    "train.watch_every",
    "train.watch_documents",
    "train.stop",
    "train.reduce_dtype",
    "train.deepspeed",
    "train.compile",
    "train.fused_loss",
    "pretrain.reduce_dtype",
    "pretrain.deepspeed",
    "pretrain.compile",
    "pretrain.fused_loss",
    "pretrain.zero_stage",
    "pretrain.offload",
    "pretrain.micro_batch_sequences",
    "pretrain.progress_s",
    "pretrain.keep_checkpoints",
    "pretrain.max_skipped_steps",
    "pretrain.watch_every",
    "pretrain.watch_documents",
    "pretrain.stop",
    "model.checkpoint_share",
    "model.attention",
    "model.liger",
)


# Sections on what is measured and written after training: a run may be continued under its name with others.
MENDABLE = ("evaluate", "export")


class RunConfig(Settings):
    """Every setting of a run: prepare, pretrain, train, evaluate and export."""

    name: str = Field(description="Folder of the run under storage.", max_length=100)
    storage: str = Field("~/e2ray", description="Absolute folder (or from ~) on a file system all nodes share.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seeds the row order, the draws and the weights.")
    model: Model
    data: DataSettings
    positions: PositionSettings
    train: TrainSettings
    pretrain: TrainSettings | None = Field(
        None, description="Training of a built model at its base window before `train`; cached under storage."
    )
    cluster: ClusterSettings = ClusterSettings()
    evaluate: EvaluateSettings | None = Field(EvaluateSettings(), description="null leaves the stage out.")
    export: ExportSettings | None = Field(ExportSettings(), description="null leaves the stage out.")
    compare: CompareSettings | None = Field(None, description="Lanes of a comparison, for `e2ray compare`.")
    search: SearchSettings | None = Field(None, description="A study over settings of this recipe, for `e2ray tune`.")
    trackers: tuple[TrackerSettings, ...] = Field(
        (), strict=False, description="Where metrics go beside the run's own files, TensorBoard and Ray's gauges."
    )

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value) or value in RESERVED:
            raise ValueError(
                f"must be letters, digits, '.', '_' and '-', and none of {', '.join(RESERVED)}, got {value!r}"
            )
        return value

    @field_validator("storage")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(f"must be a folder of a shared file system, not a URI, got {value!r}")
        if not value.startswith(("/", "~/")):
            raise ValueError(f"must be absolute, since jobs run in a copy of the working folder, got {value!r}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _native_takes_no_scale(cls, value: object) -> object:
        positions = value.get("positions") if isinstance(value, dict) else None
        if isinstance(positions, dict) and positions.get("preset") == "native":
            if positions.get("max_scale") not in (None, 1):
                raise ValueError(
                    f"positions.max_scale: {positions['max_scale']} is without effect beside preset native, which "
                    "trains at scale 1 alone; leave it out, and set evaluate.windows for what is read"
                )
        return value

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        try:
            self.positions.check_window(self.data.window)
        except ValueError as error:
            raise ValueError(f"positions.placement: {error}") from None
        self._check_attention()
        self.refuse_packed(self.train.objective, "train.objective")
        if self.pretrain and not self.pretrain.objective.is_plain:
            raise ValueError("pretrain.objective: a base is pretrained for the next token alone; leave it out")
        if self.pretrain and self.pretrain.stop is not None:
            raise ValueError("pretrain.stop: a base is shared by recipes that may say otherwise; leave it out")
        if self.evaluate and not (self.data.validation_share or self.data.validation_corpus or self.data.shards):
            raise ValueError(
                "data.validation_share: 0 holds out no document, and evaluate scores held-out ones; raise it, name "
                "data.validation_corpus, or set evaluate: null"
            )
        for key, settings in (("train", self.train), ("pretrain", self.pretrain)):
            if settings and settings.batch_sequences % self.cluster.num_workers:
                raise ValueError(
                    f"{key}.batch_sequences: must be a multiple of cluster.num_workers "
                    f"({self.cluster.num_workers}), got {settings.batch_sequences}"
                )
        if self.pretrain and not isinstance(self.model, LlamaModel):
            raise ValueError("pretrain: belongs to model.kind llama; a pretrained model needs none")
        if isinstance(self.model, LlamaModel) and self.data.tokenizer is None:
            raise ValueError("data.tokenizer: a model built from its sizes has none of its own; name one")
        if self.pretrain and self.data.window != self.model.base_context_length:
            raise ValueError(
                f"data.window: must equal model.base_context_length ({self.model.base_context_length}) where the "
                f"recipe pretrains, since both trainings read the same rows, got {self.data.window}"
            )
        if self.evaluate and self.evaluate.untrained and getattr(self.model, "base_scaling", None) == "keep":
            raise ValueError(
                "evaluate.untrained: extends plain RoPE, and model.base_scaling is keep; set it to replace, or leave "
                "evaluate.untrained out"
            )
        if self.compare:
            self._check_compare(self.compare)
        if self.search:
            self._check_search(self.search)
        return self

    def _check_attention(self) -> None:
        """Refuse an attention that needs a GPU, or bf16 weights, without them."""
        attention = self.model.attention
        if attention in ("auto", "sdpa", "eager"):
            return
        if self.cluster.use_gpu is False:
            raise ValueError(f"model.attention: {attention} needs a GPU, cluster.use_gpu is false; set it to auto")
        if attention == "flex":
            return
        for key, settings in (("train", self.train), ("pretrain", self.pretrain)):
            if settings and (settings.precision == "fp32" or settings.zero_stage == 0):
                cause = "precision is fp32" if settings.precision == "fp32" else "zero_stage is 0, which trains in fp32"
                raise ValueError(f"model.attention: {attention} needs bf16 weights, {key}.{cause}; set it to auto")

    def refuse_packed(self, objective: AnyObjective, key: str) -> None:
        """Raise ValueError if an objective has weights by distance, made for rows of one text, and rows are packed."""
        if objective.weighs_reach and self.data.pack != "concat":
            raise ValueError(
                f"{key}.distance_weights: are made for rows of one text, data.pack is {self.data.pack}; set it to "
                "concat, or leave the weights out"
            )

    def _check_compare(self, compare: CompareSettings) -> None:
        for name, own in compare.own.items():
            if own.objective:
                self.refuse_packed(own.objective, f"compare.own: {name}: objective")
            try:
                own.positions.check_window(self.data.window)
            except ValueError as error:
                raise ValueError(f"compare.own: {name}: {_first(error)}; leave it out, or change it") from None
        for lane in compare.lanes:
            if lane != "best":
                try:
                    lane_positions(lane, self.positions.max_scale).check_window(self.data.window)
                except ValueError as error:
                    raise ValueError(f"compare.lanes: {lane}: {_first(error)}; leave it out of the list") from None

    def _check_search(self, search: SearchSettings) -> None:
        if self.evaluate is None:
            raise ValueError("evaluate: is null, a search compares trials by it; give it a section")
        if isinstance(self.model, LlamaModel) and not self.pretrain:
            raise ValueError("pretrain: a search fine-tunes one base model; give a built model a pretrain section")
        for path in search.trial:
            if not path.startswith(("train.", "evaluate.", "cluster.")):
                raise ValueError(
                    f"search.trial.{path}: wanted settings of train, evaluate or cluster; change the recipe itself"
                )
            if search.trial[path] is None:
                raise ValueError(f"search.trial.{path}: is null, wanted a value; leave it out to take the recipe's")
        try:
            trial = self.trial()
        except ValidationError as error:
            where, text, _ = first_of(error)
            raise ValueError(f"search.trial: {where}: {text}" if where else f"search.trial: {text}") from None
        first = search.first_rung(trial.train.steps, trial.train.log_every) if search.early_stopping else None
        if first is not None and (first % trial.train.log_every or first >= trial.train.steps):
            raise ValueError(
                f"search.early_stopping.min_steps: must be a multiple of train.log_every ({trial.train.log_every}) "
                f"below the {trial.train.steps} steps of a trial, got {first}; lower train.log_every, or set "
                "early_stopping: null"
            )
        for name in search.baselines:
            try:
                baseline = PositionSettings.model_validate({"preset": name, "max_scale": self.positions.max_scale})
                baseline.check_window(self.data.window)
            except ValueError as error:
                raise ValueError(f"search.baselines: {name}: {_first(error)}; leave it out of the list") from None
        try:
            check(self.space(), trial.model_dump(mode="json"), RunConfig)
        except ValueError as error:
            raise ValueError(f"search.space.{error}") from None

    def alone(self) -> "RunConfig":
        """Return the recipe of one run: without search and compare, the sections of other commands."""
        return self.model_copy(update={"search": None, "compare": None})

    def trial(self) -> "RunConfig":
        """Return the recipe that trials start from: `search.trial` applied, and without the search."""
        assert self.search is not None
        recipe = self.model_dump(mode="json", exclude={"search"})
        return RunConfig.model_validate(assign(recipe, self.search.trial, RunConfig))

    def space(self) -> Space:
        """Return the searched settings by dotted path, the default family where the recipe names none."""
        assert self.search is not None
        if self.search.space is not None:
            return self.search.space
        return family(
            self.positions,
            window=self.data.window,
            lr=self.trial().train.lr,
            packed=self.data.pack != "concat",
        )


def _first(error: ValueError) -> str:
    """Return the text of an error; if pydantic reports several, that of the first."""
    if not isinstance(error, ValidationError):
        return str(error)
    where, text, _ = first_of(error)
    return f"{re.sub(r'[.][0-9]+', '', where)}: {text}"


def differences(
    old: Mapping[str, object], new: Mapping[str, object], prefix: str = "", free: Sequence[str] = FREE_ON_RESUME
) -> list[str]:
    """Return one line per setting that differs and is not `free` to: `key: <old> in the run, <new> asked for`."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        path, before, after = f"{prefix}{key}", old.get(key), new.get(key)
        if path in free or before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{path}.", free)
        else:
            lines.append(f"{path}: {before!r} in the run, {after!r} asked for")
    return lines


def difference(
    old: Mapping[str, object], new: Mapping[str, object], free: Sequence[str] = FREE_ON_RESUME
) -> str | None:
    """Return the first of the `differences` and how many more there are; None where there are none."""
    lines = differences(old, new, free=free)
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    return f"{lines[0]}{more}" if lines else None
