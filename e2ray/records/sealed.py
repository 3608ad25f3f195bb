"""Files of JSON lines that show reliably whether a line was changed, lost, doubled or moved.

Every line is a JSON object that ends with its number, from 1, and a seal: a digest of itself and of the seal before it.
So each byte of each line is covered, and each line vouches for all before it. A file alone cannot show whether lines
are missing at its end; code that has to know keeps the last number and seal (`End`) elsewhere. Programs that know
nothing of seals read such lines as they always did, with two keys more.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from e2ray import files
from e2ray.config.base import Plain, SettingsError

SEALED = re.compile(rb'(\{.*\S),"line":([1-9]\d{0,11}),"seal":"([0-9a-f]{32})"\}', re.DOTALL)

DIGITS, HEXADECIMAL = b"0123456789", b"0123456789abcdef"


@dataclass(frozen=True)
class End:
    """The end of a sealed file: how many lines there are, and the seal of the last one."""

    lines: int = 0
    seal: str = "0" * 32


@dataclass(frozen=True)
class Lines:
    """What a file of lines holds.

    Attributes:
        values: One per whole line, without number and seal.
        ends: The end of the file after each of them.
        torn: Bytes after the last line break: of a line that is being written, or that a kill has cut off.
        sealed: Whether seals vouch for the lines; False for those of an earlier version, and where there are none.
    """

    values: list[Plain]
    ends: list[End]
    torn: int
    sealed: bool

    @property
    def end(self) -> End:
        """The end after all lines."""
        return self.ends[-1] if self.ends else End()


def seal(text: str, end: End) -> tuple[str, End]:
    """Return a line, its line break included, and the end after it.

    Args:
        text: Of a JSON object of at least one key, on one line.
        end: Of the file so far.
    """
    body = text.removesuffix("}")
    number = end.lines + 1
    own_seal = _seal(body.encode(), number, end.seal)
    return f'{body},"line":{number},"seal":"{own_seal}"}}\n', End(number, own_seal)


def sealed(texts: Sequence[str], end: End = End()) -> tuple[str, End]:
    """Return several lines that follow an end, and the end after them."""
    lines = []
    for text in texts:
        line, end = seal(text, end)
        lines.append(line)
    return "".join(lines), end


def read(path: Path, *, advice: Callable[[int], str], must_be_sealed: bool = False) -> Lines:
    """Return what a file holds; there are no lines where there is no file.

    Args:
        path: The file.
        advice: Returns the next move where a line is damaged; takes the number of lines before that one.
        must_be_sealed: Whether lines without any seal are damaged, too.

    Raises:
        SettingsError: If a line, named by its number, is not what was written, or the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    *whole, torn = content.split(b"\n")
    matches = [SEALED.fullmatch(line) for line in whole]
    has_seals = must_be_sealed or any(matches) or (len(whole) == 1 and _is_nearly_sealed(whole[0]))
    values, ends, end = [], [], End()
    for number, (line, match) in enumerate(zip(whole, matches, strict=True), start=1):
        damage, value = _damage(match, end) if has_seals else None, None
        if damage is None:
            where = f"{path}: is damaged, line {number} of {len(whole)}"
            try:
                value = files.parse_json(line, where=where, wanted="an object")
            except SettingsError as error:
                raise SettingsError(f"{error}; {advice(number - 1)}") from None
        if not isinstance(value, dict):
            raise SettingsError(
                f"{path}: line {number} of {len(whole)} {damage or 'holds no object'}; {advice(number - 1)}"
            )
        end = End(number, match[3].decode() if match else "")
        ends.append(end)
        values.append(without_seal(value) if match else value)
    return Lines(values, ends, len(torn), has_seals and bool(whole))


def without_seal(value: Plain) -> Plain:
    """Return a line's value without its number and its seal."""
    return {key: item for key, item in value.items() if key not in ("line", "seal")}


def _is_nearly_sealed(line: bytes) -> bool:
    """Return whether a line ends with number and seal except for one byte, as a lone line with a flipped bit may."""
    for digits in range(1, 13):
        end = [*b',"line":', *[DIGITS] * digits, *b',"seal":"', *[HEXADECIMAL] * 32, *b'"}']
        tail = line[-len(end) :]
        others = sum(
            byte not in each if isinstance(each, bytes) else byte != each for byte, each in zip(tail, end, strict=False)
        )
        if len(tail) == len(end) and others <= 1:
            return True
    return False


def _damage(match: re.Match[bytes] | None, before: End) -> str | None:
    """Return what is wrong with a line that follows an end, or None."""
    if match is None:
        return "is damaged, it does not end with its number and its seal"
    if int(match[2]) != before.lines + 1:
        return f"says that it is line {int(match[2])}: lines are missing, doubled or in another order"
    if match[3].decode() != _seal(match[1], before.lines + 1, before.seal):
        return "is damaged, its seal does not match"
    return None


def _seal(body: bytes, number: int, before: str) -> str:
    return hashlib.sha256(b"%s %d %s" % (before.encode(), number, body)).hexdigest()[:32]
