"""The `search` section: which settings a study varies, what it minimises, and when it stops a trial early."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from e2ray.config.base import Settings
from e2ray.config.methods import PRESETS, PUBLISHED
from e2ray.config.retrieval import RetrievalSettings

Value = bool | int | float | str | None
Values = Annotated[tuple[Value, ...], Field(min_length=1, strict=False)]
PAPER = "e2llm"  # the preset whose repeated seeds measure the noise


class Conditional(Settings):
    """A parameter that may apply only beside certain values of others."""

    when: dict[str, Values] = Field(
        {}, description="Applies only where each of these searched settings has one of its listed values."
    )


class FloatRange(Conditional):
    """A real number in [low, high]."""

    kind: Literal["float"] = "float"
    low: float = Field(description="Smallest value.")
    high: float = Field(description="Largest value.")
    log: bool = Field(False, description="Search the logarithm.")


class IntRange(Conditional):
    """A whole number in [low, high]."""

    kind: Literal["int"] = "int"
    low: int = Field(ge=-(10**9), le=10**9, description="Smallest value.")
    high: int = Field(ge=-(10**9), le=10**9, description="Largest value.")
    log: bool = Field(False, description="Search the logarithm.")


class Choice(Conditional):
    """One of the options."""

    kind: Literal["choice"] = "choice"
    options: Values = Field(description="What it can be.")


Parameter = Annotated[FloatRange | IntRange | Choice, Field(discriminator="kind")]
Space = dict[str, Parameter]


class AshaStopping(Settings):
    """Asynchronous successive halving: at each rung only the best of those that reached it go on."""

    kind: Literal["asha"] = "asha"
    min_steps: int | None = Field(None, ge=1, description="First rung; null: train.steps / reduction_factor ** 2.")
    reduction_factor: int = Field(3, ge=2, description="One of so many goes on; rungs grow by the same factor.")


class HyperbandStopping(Settings):
    """Successive halving in several brackets, of which the last ones stop late or never."""

    kind: Literal["hyperband"] = "hyperband"
    min_steps: int | None = Field(None, ge=1, description="First rung; null: train.steps / reduction_factor ** 2.")
    reduction_factor: int = Field(3, ge=2, description="One of so many goes on; rungs grow by the same factor.")


Stopping = Annotated[AshaStopping | HyperbandStopping, Field(discriminator="kind")]


class Weights(Settings):
    """The weighted number: long * L + short * S + retrieval * (1 - found share) + answer_nll * A, minimised."""

    long: float = Field(
        1.0, ge=0, le=1e9, description="Of the mean NLL over the windows beyond L, each read at scale W / L."
    )
    short: float = Field(0.25, ge=0, le=1e9, description="Of the rise of the NLL over the base model's at L.")
    retrieval: float = Field(
        0.0, ge=0, le=1e9, description="Of the share of passkeys not found; 0 does not look for any."
    )
    answer_nll: float = Field(
        0.0,
        ge=0,
        le=1e9,
        description="Of the mean NLL of a passkey's tokens behind its question, over the same prompts: it moves before "
        "any is found; 0 does not ask.",
    )

    @property
    def asks(self) -> bool:
        """Whether passkeys are asked for at all."""
        return bool(self.retrieval or self.answer_nll)


class SearchSettings(Settings):
    """A study: many short trainings of one recipe that differ in a few settings."""

    trials: int = Field(ge=1, description="Trials in all, baselines and repeats included.")
    space: Space | None = Field(
        None, description="Searched settings by dotted path; null: the whole family of position draws and train.lr."
    )
    trial: dict[str, object] = Field(
        {},
        description="Settings of train, evaluate and cluster that a trial has instead of the recipe's, by dotted path.",
    )
    mode: Literal["weighted", "pareto"] = Field(
        "weighted", description="Minimise one weighted number, or each objective that has a weight."
    )
    weights: Weights = Weights()
    retrieval: RetrievalSettings = RetrievalSettings()
    early_stopping: Stopping | None = Field(AshaStopping(), description="null runs every trial to its end.")
    baselines: tuple[str, ...] = Field(PUBLISHED, strict=False, description="Presets that are tried first, in full.")
    repeats: int = Field(3, ge=1, description="Seeds of the paper's preset, which measure the noise of a trial.")
    sampler: Literal["tpe", "random"] = Field("tpe", description="How Optuna proposes trials.")
    startup_trials: int = Field(10, ge=0, description="Sampled trials before tpe follows what was found.")
    surface: bool = Field(
        True,
        description="Measure a full trial at every window and scale, not only W / L, unless an earlier one was as good "
        "on both objectives.",
    )
    concurrency: int | None = Field(None, ge=1, description="Trials at once; null: as many as the cluster holds.")
    progress_s: float = Field(60.0, gt=0, description="Seconds between tables of the best trials in the log.")

    @field_validator("baselines")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if name not in PRESETS]
        if unknown or len(set(value)) != len(value):
            raise ValueError(f"must name each of {', '.join(PRESETS)} at most once, got {list(value)}")
        if PAPER not in value:
            raise ValueError(f"must hold {PAPER}, whose repeats measure the noise, got {list(value)}")
        return value

    @field_validator("space")
    @classmethod
    def _not_empty(cls, value: Space | None) -> Space | None:
        if value is not None and not value:
            raise ValueError("is empty, there is nothing to search; name settings, or null for the family of draws")
        return value

    @model_validator(mode="after")
    def _check(self) -> "SearchSettings":
        fixed = self.fixed_trials
        if self.trials < fixed:
            raise ValueError(
                f"trials: must be at least {fixed} ({len(self.baselines)} baselines and {self.repeats - 1} repeats of "
                f"{PAPER}), got {self.trials}; name fewer baselines"
            )
        if self.mode == "pareto" and self.early_stopping:
            raise ValueError("early_stopping: needs one number to compare by; set it to null, or mode: weighted")
        if self.mode == "pareto" and sum(weight > 0 for weight in self.weights.model_dump().values()) < 2:
            raise ValueError("mode: pareto weighs several objectives, wanted at least two weights above 0")
        if not self.weights.long and not self.weights.short:
            raise ValueError("weights: long and short are both 0, wanted one of them above 0")
        return self

    @property
    def fixed_trials(self) -> int:
        """Trials that are not sampled: the published methods and the paper's repeats."""
        return len(self.baselines) + self.repeats - 1

    def rungs(self, steps: int, log_every: int) -> tuple[int, ...]:
        """Return the steps at which a trial of `steps` updates may be stopped, ascending, without its last step."""
        if self.early_stopping is None:
            return ()
        factor, rungs = self.early_stopping.reduction_factor, []
        step = self.first_rung(steps, log_every)
        while step < steps:
            rungs.append(step)
            step *= factor
        return tuple(rungs)

    def first_rung(self, steps: int, log_every: int) -> int:
        """Return the first rung of a trial of `steps` updates, a multiple of `log_every`."""
        assert self.early_stopping is not None
        min_steps = self.early_stopping.min_steps
        if min_steps is not None:
            return min_steps
        return max(1, round(steps / self.early_stopping.reduction_factor**2 / log_every)) * log_every
