"""One run: every setting, and the checks that need more than one section."""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from e2ray.config.base import Settings, SettingsError
from e2ray.config.compare import CompareSettings
from e2ray.config.data import DataSettings
from e2ray.config.evaluate import EvaluateSettings, ExportSettings
from e2ray.config.model import LlamaModel, Model
from e2ray.config.positions import PositionSettings
from e2ray.config.search import SearchSettings, Space
from e2ray.config.space import assign, check, family
from e2ray.config.train import ClusterSettings, TrainSettings

RESERVED = ("shards", "bases", "tokenizers", "prompts")  # folders of storage that are no runs
# A run may be continued with other values of these: they change where and how fast it runs, not what it computes.
FREE_ON_RESUME = (
    "cluster",
    "storage",
    "data.ledger",
    "train.zero_stage",
    "train.offload",
    "data.prefetch_mib",
    "train.micro_batch_sequences",
    "train.progress_s",
    "train.keep_checkpoints",
    "train.max_skipped_steps",
    "pretrain.zero_stage",
    "pretrain.offload",
    "pretrain.micro_batch_sequences",
    "pretrain.progress_s",
    "pretrain.keep_checkpoints",
    "pretrain.max_skipped_steps",
    "model.gradient_checkpointing",
    "model.attention",
)


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

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        try:
            self.positions.check_window(self.data.window)
        except ValueError as error:
            raise ValueError(f"positions.placement: {error}") from None
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
        if self.search:
            self._check_search(self.search)
        return self

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
            detail = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in detail["loc"])
            text = str(detail.get("ctx", {}).get("error", detail["msg"]))
            raise ValueError(f"search.trial: {where}: {text}" if where else f"search.trial: {text}") from None
        first = search.first_rung(trial.train.steps, trial.train.log_every) if search.early_stopping else None
        if first is not None and (first % trial.train.log_every or first >= trial.train.steps):
            raise ValueError(
                f"search.early_stopping.min_steps: must be a multiple of train.log_every ({trial.train.log_every}) "
                f"below the {trial.train.steps} steps of a trial, got {first}; lower train.log_every, or set "
                "early_stopping: null"
            )
        for name in search.baselines:
            baseline = PositionSettings.model_validate({"preset": name, "max_scale": self.positions.max_scale})
            try:
                baseline.check_window(self.data.window)
            except ValueError as error:
                raise ValueError(f"search.baselines: {name}: {error}; leave it out of the list") from None
        try:
            check(self.space(), trial.model_dump(mode="json"), RunConfig)
        except ValueError as error:
            raise ValueError(f"search.space.{error}") from None

    def trial(self) -> "RunConfig":
        """Return the recipe that trials start from: `search.trial` put in its place, without the search."""
        assert self.search is not None
        recipe = self.model_dump(mode="json", exclude={"search"})
        return RunConfig.model_validate(assign(recipe, self.search.trial, RunConfig))

    def space(self) -> Space:
        """Return the searched settings by dotted path, the default family where the recipe names none."""
        assert self.search is not None
        if self.search.space is not None:
            return self.search.space
        return family(self.positions, window=self.data.window, lr=self.trial().train.lr)


def differences(
    old: dict[str, Any], new: dict[str, Any], prefix: str = "", free: Sequence[str] = FREE_ON_RESUME
) -> list[str]:
    """Return one text per setting that differs and is not `free` to: `key: <old> in the run, <new> asked for`."""
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        path = f"{prefix}{key}"
        if path in free or old.get(key) == new.get(key):
            continue
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            found += differences(old[key], new[key], f"{path}.", free)
        else:
            found.append(f"{path}: {old.get(key)!r} in the run, {new.get(key)!r} asked for")
    return found


__all__ = ["FREE_ON_RESUME", "RunConfig", "SettingsError", "differences"]
