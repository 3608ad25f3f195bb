"""A coverage in words: a table with its meaning in sentences under it, for the terminal, before any training."""

from collections.abc import Sequence

from e2ray.core.coverage import SEEN_PAIRS_PER_ROW, Coverage, ScaleCoverage, percent


def lines(coverage: Coverage, name: str) -> list[str]:
    """Return a coverage as a table with its meaning in sentences under it."""
    header = ["scale g", "window W", "rows", "reach", "(ordinary)", "overlap", "neighbours", "farthest", "(ordinary)"]
    return [
        f"{name}: {coverage.headline}",
        "",
        *_aligned([header, *(_row(row) for row in coverage.scales)]),
        "",
        *(f"- {sentence}" for sentence in sentences(coverage)),
        "",
        *_legend(coverage),
    ]


def sentences(coverage: Coverage) -> list[str]:
    """Return what a coverage means for serving, in plain words."""
    texts = []
    gaps = [f"{row.scale:g}" for row in coverage.scales if not row.rows]
    if gaps:
        texts.append(f"No row is drawn near scale {', '.join(gaps)}: the model will not be trained for reading there.")
    seen = [row for row in coverage.scales if row.rows]
    if seen and seen[-1].near is not None:
        texts.append(_largest(coverage, seen[-1], seen[-1].near))
    beyond = float(coverage.beyond.sum()) / (coverage.window * (coverage.window - 1) / 2)
    if beyond:
        texts.append(
            f"{percent(beyond)} of all pairs stand {coverage.base_context_length:,} tokens (L) apart or more, at "
            "angles the base model never met."
        )
    torn = [row for row in coverage.scales if row.neighbours is not None and row.neighbours < 0.5]
    if torn:
        texts.append(
            f"At scale {', '.join(f'{row.scale:g}' for row in torn)} fewer than half of the neighbouring tokens stay "
            "neighbours; such rows show every distance and are still known to train poorly."
        )
    return texts


def _largest(coverage: Coverage, row: ScaleCoverage, near: float) -> str:
    """Return what the largest scale that is drawn shows."""
    text = (
        f"At scale {row.scale:g} (W = {row.context_length:,}) the draws show {percent(row.reach)} of the distances up "
        f"to L = {coverage.base_context_length:,}, {percent(row.reach_ordinary)} between ordinary tokens, which stand "
        f"at most {_tokens(row.farthest_ordinary)} tokens apart."
    )
    if row.scale > 1:
        text += (
            f" {percent(near)} of the pairs are nearer than R = {coverage.window:,} tokens before scaling; in real "
            f"text of W tokens it is {percent(row.near_text)}."
        )
    if row.reach_ordinary < row.reach / 2:
        leading = coverage.leading
        text += f" So the long distances are shown almost only between the first {leading} tokens and the rest."
    return text


def _row(row: ScaleCoverage) -> list[str]:
    return [
        f"{row.scale:g}",
        f"{row.context_length:,}",
        percent(row.rows),
        percent(row.reach),
        percent(row.reach_ordinary),
        percent(row.overlap),
        "none" if row.neighbours is None else percent(row.neighbours),
        _tokens(row.farthest) if row.rows else "none",
        _tokens(row.farthest_ordinary) if row.rows else "none",
    ]


def _tokens(distance: float) -> str:
    return f"{distance:,.1f}" if distance < 1000 else f"{distance:,.0f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]


def _legend(coverage: Coverage) -> list[str]:
    """Return what the columns mean and what was measured."""
    draws, rows = coverage.num_draws, coverage.num_rows
    shared = "" if draws == rows else f" ({draws:,} draws, each shared by a step)"
    return [
        f"rows: share of the rows drawn nearest to this scale. reach: share of the distances [0, L), in "
        f"{len(coverage.edges) - 1} bins, that {1 / SEEN_PAIRS_PER_ROW:g} rows",
        f"show at least once; ordinary: between tokens that are not among the first {coverage.leading} of their row. "
        "overlap: 1 - total variation between the",
        "distances shown and those of real text of W tokens. neighbours: adjacent tokens that stay adjacent. farthest: "
        "largest distance",
        f"shown, in base-model tokens. Measured on every pair of the first {rows:,} of the run's "
        f"{coverage.run_rows:,} rows{shared}.",
    ]
