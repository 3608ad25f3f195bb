"""Which relative distances the draws of a recipe will show the model, before any training.

No model, no data and no cluster are used.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from e2ray.config.base import SettingsError
from e2ray.config.positions import PositionSettings
from e2ray.config.run import RunConfig
from e2ray.core.base import base_facts
from e2ray.core.coverage import Coverage, measure
from e2ray.core.methods.linear import Linear
from e2ray.core.methods.registry import method_of
from e2ray.core.scales import default_scales, paper_scale
from e2ray.data.pace import show
from e2ray.report.sections.coverage import lines, write_coverage


def cover(config: RunConfig, out: str | None) -> None:
    """Show which relative distances a recipe's draws will show the model, and write the picture."""
    coverage(
        config.positions,
        name=config.name,
        window=config.data.window,
        base_context_length=base_facts(config.model).base_context_length,
        steps=config.train.steps,
        batch_sequences=config.train.batch_sequences,
        seed=config.seed,
        windows=config.evaluate.windows if config.evaluate else None,
        out=Path(out or f"{config.name}-coverage.png"),
        show=show,
    )


def coverage(
    positions: PositionSettings,
    *,
    name: str,
    window: int,
    base_context_length: int,
    steps: int,
    batch_sequences: int,
    seed: int,
    windows: Sequence[int] | None = None,
    out: Path | None = None,
    show: Callable[[str], None] = print,
) -> Coverage:
    """Show which distances a recipe's draws cover, and return it.

    Args:
        positions: The distributions to draw from.
        name: The recipe's name, for the picture's title.
        window: R, tokens of a training row.
        base_context_length: L in tokens.
        steps: Steps of the training.
        batch_sequences: Rows of a step.
        seed: Seed of the run, whose own first rows are shown.
        windows: Context lengths that will be read, W in tokens, each served at scale W / L, at least 1; None stands
            for L, 2L, 4L, ... up to the largest scale.
        out: PNG to write.
        show: Takes each line of the result.

    Raises:
        SettingsError: If the placement does not fit the window, or the picture cannot be written.
    """
    scales = [paper_scale(w, base_context_length) for w in windows] if windows else default_scales(positions.max_scale)
    try:
        result = measure(
            positions,
            window=window,
            base_context_length=base_context_length,
            scales=scales,
            steps=steps,
            batch_sequences=batch_sequences,
            seed=seed,
        )
    except ValueError as error:
        raise SettingsError(f"the coverage cannot be measured: {error}") from None
    for line in lines(result, name):
        show(line)
    label = method_of(positions.method).label
    if label != Linear.label:
        show(
            f"Read by {label}: distances are counted as pairs see them that a scale divides in full; pairs that it "
            "leaves alone see them undivided, as the base does."
        )
    if out is not None:
        write_coverage(out, result, title=f"Distances that {name} will show the model, rows of R = {window:,} tokens")
        show(f"picture: {out}")
    return result
