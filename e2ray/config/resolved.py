"""A recipe whose defaults that depend on the model are filled in, with types that say so.

`stages/run.py:resolve` finds the values; a field that a recipe may leave out has a value in these classes. They are
made of checked settings, are not checked again, and are written to a file as the classes that they extend.
"""

from typing import TypeVar, cast

from e2ray.config.base import Settings
from e2ray.config.data import DataSettings, Tokenizer
from e2ray.config.evaluate import EvaluateSettings, ExportSettings
from e2ray.config.run import RunConfig

Filled = TypeVar("Filled", bound=Settings)


class ResolvedData(DataSettings):
    """Where rows come from, and which tokenizer reads them."""

    tokenizer: Tokenizer


class ResolvedEvaluate(EvaluateSettings):
    """What is measured."""

    windows: tuple[int, ...]
    scales: tuple[float, ...]
    stride: int


class ResolvedExport(ExportSettings):
    """Which context lengths get a serving profile."""

    context_lengths: tuple[int, ...]


class ResolvedConfig(RunConfig):
    """A recipe whose defaults that depend on the model are filled in."""

    data: ResolvedData
    evaluate: ResolvedEvaluate | None
    export: ResolvedExport | None

    @classmethod
    def read(cls, config: RunConfig) -> "ResolvedConfig":
        """Return a recipe that is already filled in, such as a run's own, with the types that say so."""
        return filled(
            ResolvedConfig,
            config,
            data=filled(ResolvedData, config.data),
            evaluate=config.evaluate and filled(ResolvedEvaluate, config.evaluate),
            export=config.export and filled(ResolvedExport, config.export),
        )

    def trial(self) -> "ResolvedConfig":
        """Return the recipe that trials start from."""
        return ResolvedConfig.read(super().trial())


def filled(kind: type[Filled], settings: Settings, **values: object) -> Filled:
    """Return settings as a class that leaves nothing out; `values` are put in and count as set from now on."""
    return cast(Filled, kind.model_construct(settings.model_fields_set | set(values), **(dict(settings) | values)))
