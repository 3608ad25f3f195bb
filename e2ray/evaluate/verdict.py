"""The verdict from the cells of a surface: the tuned model against the base, in numbers and in plain words.

Three questions: is the tuned model, served at scale W / L, better than doing nothing and than scaling without
training; what does it cost inside the base window; and does it read past the base window without raising the
scale, which nobody had measured before.
"""

from collections.abc import Mapping, Sequence

from e2ray.config.methods import UNTRAINED, untrained_model
from e2ray.core.methods.linear import Linear
from e2ray.core.methods.registry import method_of
from e2ray.core.scales import paper_scale
from e2ray.evaluate.perplexity import BOS_POLICY
from e2ray.evaluate.removed import base_name, scaling_of, sentence
from e2ray.records.evaluation import Cell, Protocol, RemovedScaling, ShortCost, UnscaledRow, Verdict, WindowRow

# nats per token: a longer window whose NLL rises by no more than this counts as read
READ_TOLERANCE = 0.01

Table = dict[tuple[str, int, float], Cell]


def verdict(
    cells: Sequence[Cell],
    base_context_length: int,
    *,
    removed: RemovedScaling | None = None,
    method: str = Linear.label,
    text: Mapping[str, str] | None = None,
) -> Verdict:
    """Return how the tuned model compares with the base, in figures and in sentences.

    Args:
        cells: Cells of the models `tuned` and `base`; some may be missing, figures that need them are then None.
        base_context_length: L in tokens.
        removed: Effect of removing the base's own scaling (`evaluate.removed`); None where the base is the checkpoint.
        method: Label of the frequency method by which both models are read.
        text: Names of the scored text and the weights, further fields of `Protocol`.
    """
    table = {(cell.model, cell.window, _key(cell.scale)): cell for cell in cells}
    lanes = lanes_of(cells)
    windows = [
        _window_row(table, window, base_context_length, lanes) for window in sorted({cell.window for cell in cells})
    ]
    longer = [row for row in windows if row.window > base_context_length]
    gains = [gain for row in longer for gain in (row.gain_over_untouched, row.gain_over_untrained)]
    unscaled = [_unscaled_row(table, row.window, base_context_length) for row in longer]
    rises = [row.rise_over_base_window for row in unscaled]
    first = cells[0] if cells else None
    result = Verdict(
        base_context_length=base_context_length,
        windows=tuple(windows),
        below_base_everywhere=None if not gains or None in gains else all((gain or 0) > 0 for gain in gains),
        short_cost=_short_cost(table, base_context_length),
        unscaled=tuple(unscaled),
        reads_unscaled=None if not rises or None in rises else all((rise or 0) <= READ_TOLERANCE for rise in rises),
        method=method,
        protocol=Protocol(
            method="sliding window, token-weighted over documents",
            stride=max(cell.stride for cell in cells) if cells else None,
            documents=first.documents if first else None,
            tokens=first.tokens if first else None,
            bos=BOS_POLICY,
            read_tolerance_nats=READ_TOLERANCE,
            **(text or {}),
        ),
        removed_scaling=removed,
        sentences=(),
    )
    return result.changed(sentences=_sentences(result))


def lanes_of(cells: Sequence[Cell]) -> list[str]:
    """Return the further methods by which the base was read without training, in the order of `UNTRAINED`."""
    models = {cell.model for cell in cells}
    return [lane for lane in UNTRAINED if untrained_model(lane) in models]


def lane_label(lane: str) -> str:
    """Return the name of an untrained lane in a sentence: `linear`, `YaRN`."""
    return method_of(UNTRAINED[lane]).label


def _key(scale: float) -> float:
    return round(scale, 6)


def _nll(table: Table, model: str, window: int, scale: float) -> float | None:
    cell = table.get((model, window, _key(scale)))
    return None if cell is None else cell.nll


def _best(table: Table, model: str, window: int) -> Cell | None:
    row = [cell for cell in table.values() if (cell.model, cell.window) == (model, window)]
    return min(row, key=lambda cell: (cell.nll, cell.scale), default=None)


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _window_row(table: Table, window: int, base_context_length: int, lanes: Sequence[str]) -> WindowRow:
    scale = paper_scale(window, base_context_length)
    tuned, untouched, untrained = (
        _nll(table, model, window, g) for model, g in (("tuned", scale), ("base", 1.0), ("base", scale))
    )
    tuned_best, base_best = _best(table, "tuned", window), _best(table, "base", window)
    tuned_best_nll = None if tuned_best is None else tuned_best.nll
    base_best_nll = None if base_best is None else base_best.nll
    return WindowRow(
        window=window,
        paper_scale=scale,
        tuned=tuned,
        tuned_best=tuned_best_nll,
        tuned_best_scale=None if tuned_best is None else tuned_best.scale,
        base_untouched=untouched,
        base_untrained=untrained,
        base_best=base_best_nll,
        base_best_scale=None if base_best is None else base_best.scale,
        gain_over_untouched=_minus(untouched, tuned),
        gain_over_untrained=_minus(untrained, tuned),
        gain_over_base_best=_minus(base_best_nll, tuned),
        best_over_paper_scale=_minus(tuned, tuned_best_nll),
        untrained={lane: _nll(table, untrained_model(lane), window, scale) for lane in lanes} if lanes else None,
    )


def _short_cost(table: Table, base_context_length: int) -> ShortCost:
    tuned, base = (_nll(table, model, base_context_length, 1.0) for model in ("tuned", "base"))
    return ShortCost(window=base_context_length, tuned=tuned, base=base, rise=_minus(tuned, base))


def _unscaled_row(table: Table, window: int, base_context_length: int) -> UnscaledRow:
    unscaled = _nll(table, "tuned", window, 1.0)
    return UnscaledRow(
        window=window,
        tuned_unscaled=unscaled,
        rise_over_base_window=_minus(unscaled, _nll(table, "tuned", base_context_length, 1.0)),
        rise_over_paper_scale=_minus(unscaled, _nll(table, "tuned", window, paper_scale(window, base_context_length))),
    )


def _sentences(verdict: Verdict) -> list[str]:
    """Return the verdict in plain words, one sentence per finding that was measured."""
    length, removed = verdict.base_context_length, verdict.removed_scaling
    longer = [row for row in verdict.windows if row.window > length]
    name = base_name(scaling_of(removed))
    lines = _against_base(longer, verdict.below_base_everywhere, name, verdict.method)
    lines += _against_untrained(longer, name)
    gains = {row.window: row for row in longer if (row.best_over_paper_scale or 0) > 0}
    if gains:
        row = max(gains.values(), key=lambda row: row.best_over_paper_scale or 0)
        lines.append(
            f"W/L is not always the best scale: a window of {row.window} is read best at scale "
            f"{row.tuned_best_scale:g}, {row.best_over_paper_scale:.3f} nats below scale {row.paper_scale:g}."
        )
    rise = verdict.short_cost.rise if verdict.short_cost else None
    if rise is not None:
        word = "costs" if rise >= 0 else "gains"
        against = "" if removed is None else f" against the {name}"
        lines.append(
            f"At the base window of {length} tokens, scale 1, tuning {word} {abs(rise):.3f} nats per token{against}."
        )
    if verdict.reads_unscaled is not None:
        worst = max(verdict.unscaled, key=lambda row: row.rise_over_base_window or 0)
        answer = "does" if verdict.reads_unscaled else "does not"
        lines.append(
            f"Without raising the scale the tuned model {answer} read past {length} tokens: at a window of "
            f"{worst.window} and scale 1 its NLL is {worst.rise_over_base_window:+.3f} nats against a window of "
            f"{length}."
        )
    return [*lines, sentence(removed)] if removed else lines


def _against_base(longer: Sequence[WindowRow], below_everywhere: bool | None, name: str, method: str) -> list[str]:
    """Return the sentence on the tuned model at W / L against both bases; none where nothing was measured."""
    bases = "the untouched base and the base" if name == "base" else f"the {name}, at scale 1 and"
    gains = {row.window: gain for row in longer if (gain := least_gain(row)) is not None}
    if not gains:
        return []
    behind = [window for window, gain in gains.items() if gain <= 0]
    if behind:
        return [
            f"Served at scale W/L, the tuned model is not below both bases everywhere: it is not at "
            f"{', '.join(map(str, behind))} tokens."
        ]
    rest = "" if below_everywhere else " Other windows miss a cell."
    return [
        f"Served at scale W/L, the tuned model is below {bases} under untrained {method} "
        f"scaling at {_window_words(list(gains))}, by at least {min(gains.values()):.3f} nats per token.{rest}"
    ]


def _against_untrained(longer: Sequence[WindowRow], name: str) -> list[str]:
    """Return a sentence for each further untrained method, on the tuned model at W / L against it."""
    lines = []
    for lane in (longer[0].untrained or ()) if longer else ():
        gains = {row.window: _minus((row.untrained or {})[lane], row.tuned) for row in longer}
        measured = {window: gain for window, gain in gains.items() if gain is not None}
        other = f"the {name} under untrained {lane_label(lane)} scaling"
        behind = [window for window, gain in measured.items() if gain <= 0]
        if behind:
            lines.append(f"It is not below {other} at {', '.join(map(str, behind))} tokens.")
        elif measured:
            where, least = _window_words(list(measured)), min(measured.values())
            lines.append(f"It is below {other} at {where}, by at least {least:.3f} nats per token.")
    return lines


def least_gain(row: WindowRow) -> float | None:
    """Return the gain of the tuned model at W / L over the better of both bases, None where a cell is missing."""
    gains = (row.gain_over_untouched, row.gain_over_untrained)
    known = [gain for gain in gains if gain is not None]
    return min(known) if len(known) == len(gains) else None


def _window_words(windows: list[int]) -> str:
    if len(windows) == 1:
        return f"the window of {windows[0]} tokens"
    return f"every measured window from {windows[0]} to {windows[-1]} tokens" if windows else "no window"


def table(cells: Sequence[Cell], verdict: Verdict) -> str:
    """Return the result as an aligned Markdown table with the verdict's sentences under it.

    It reads the same in a terminal and in a rendered page. A value that was not measured is shown as `missing`,
    never as a number.
    """
    by_key = {(cell.model, cell.window, _key(cell.scale)): cell for cell in cells}
    scaling = scaling_of(verdict.removed_scaling)
    name = base_name(scaling)
    lanes = lanes_of(cells)
    untrained = f"{name} at W/L, untrained"
    header = [
        "window W", "scale W/L", "tuned at W/L", "tuned at its best scale",
        "base untouched" if scaling is None else f"{name}, at 1",
        *(f"{untrained} {lane_label(lane)}" for lane in lanes),
        f"{untrained} {verdict.method}" if lanes else untrained, "gain",
    ]  # fmt: skip
    rows = [header]
    for row in verdict.windows:
        window, scale, best, gain = row.window, row.paper_scale, row.tuned_best_scale, least_gain(row)
        rows.append(
            [
                str(window),
                f"{scale:g}",
                _shown(by_key.get(("tuned", window, _key(scale)))),
                "missing" if best is None else f"{_shown(by_key.get(('tuned', window, _key(best))))} (g = {best:g})",
                _shown(by_key.get(("base", window, 1.0))),
                *(_shown(by_key.get((untrained_model(lane), window, _key(scale)))) for lane in lanes),
                _shown(by_key.get(("base", window, _key(scale)))),
                "missing" if gain is None else f"{gain:+.3f}",
            ]
        )
    protocol = verdict.protocol
    note = (
        f"NLL in nats per token, ± one standard error over documents; the gain is the better base minus tuned at W/L. "
        f"{protocol.documents} documents, {protocol.tokens} scored tokens, stride {protocol.stride}; "
        f"{protocol.bos}."
    )
    return "\n".join([*_aligned(rows), "", note, "", *(f"- {sentence}" for sentence in verdict.sentences)]) + "\n"


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "missing"
    return f"{cell.nll:.3f}" if cell.stderr is None else f"{cell.nll:.3f} ± {cell.stderr:.3f}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "| " + " | ".join("-" * (width - 1) + ":" for width in widths) + " |", *lines[1:]]
