"""How numbers, times and names are written, in pages, model cards and on the terminal alike.

What was not measured is a dash, never a number.
"""

import json
import math

DASH = "\N{EN DASH}"
MISSING = object()  # a setting that a run does not have


def printable(text: str) -> str:
    """Return a text on one line, without what a terminal or a picture could take for a command."""
    return "".join(character if character.isprintable() else "\ufffd" for character in " ".join(text.split()))


def task_text(task: str) -> str:
    """Return the name of a task: `common words`."""
    return printable(task.replace("_", " "))


def whole(value: float | None) -> str:
    """Return a whole number with thousands marked, e.g. 4,096."""
    return DASH if value is None else f"{value:,.0f}"


def number(value: object) -> str:
    """Return the value of a setting: 0.13, 16, 1.4e-3, yes, random breaks."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, float):
        return str(value).replace("_", " ")
    if value == 0 or not math.isfinite(value) or 0.01 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def setting_text(value: object) -> str:
    """Return a setting's value as a recipe has it."""
    if value is MISSING:
        return DASH
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def signed(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a difference with its sign, and its 95 % interval where it is known: `+0.012 (-0.003 to +0.020)`."""
    if value is None:
        return DASH
    return f"{value:+.3f}" if low is None or high is None else f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def less(values: tuple[float | None, float | None]) -> str:
    """Return the second whole number minus the first."""
    left, right = values
    return DASH if left is None or right is None else f"{right - left:+,.0f}"


def share(found: float, trials: int) -> str:
    """Return `75 % (3 of 4)`; a dash where nothing was asked."""
    return f"{found / trials:.0%} ({found:g} of {trials})".replace("%", " %", 1) if trials else DASH


def nats(value: float | None) -> str:
    """Return a number of nats with three decimals, a small one with four, or one digit where those would hide it."""
    if value is None:
        return "unknown"
    if value == 0 or abs(value) >= 0.01:
        return f"{value:.3f}"
    return f"{value:.4f}" if abs(value) >= 0.0001 else f"{value:.0e}"


def plus_minus(value: float | None, noise: float | None, *, signed: bool = False) -> str:
    """Return `3.512 ± 0.004`; `(noise unknown)` where it was not measured, `missing` for no value."""
    if value is None:
        return "missing"
    return f"{value:{'+' if signed else ''}.3f} " + ("(noise unknown)" if noise is None else f"± {nats(noise)}")


def count(value: float) -> str:
    """Return a number of tokens: 950, 12.3 k, 1.23 M, 4.5 G."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / min(size, 1e3 if unit == ' k' else size):.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Return a time: `38 s`, `12 min` or `3.2 h`."""
    if seconds is None:
        return DASH
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"


def plural(number_of: int, noun: str) -> str:
    """Return `3 trials`, `1 trial`, `no trial`."""
    return f"{number_of or 'no'} {noun}{'s' if number_of > 1 else ''}"


def share_words(share: float, interval: tuple[float, float] | list[float] | None) -> str:
    """Return a share with its lowest and highest value, where these are known: `31 % (24 to 40)`."""
    known = "" if interval is None else f" ({100 * interval[0]:.0f} to {100 * interval[1]:.0f})"
    return f"{100 * share:.0f} %{known}"
