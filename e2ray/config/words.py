"""Pydantic's errors about a value in our words: what was wanted of it."""

import re

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_WANTED = {  # pydantic's words for what it wanted, and ours
    r"a valid (?:tuple|list)": "a list",
    r"a valid string": "text",
    r"a valid integer": "a whole number",
    r"a valid number": "a number",
    r"a finite number": "a finite number",
    r"a valid boolean": "true or false",
    r"a valid dictionary or .*": "a section",
    r"a valid dictionary": "an object",
    r"greater than or equal to (.*)": r"at least \1",
    r"less than or equal to (.*)": r"at most \1",
    r"greater than (.*)": r"more than \1",
    r"(?:Tuple|String) should have (at (?:least|most) .*?)(?: after validation, not \d+)?": r"\1",
}
LONGEST_SHOWN = 60  # characters of a value


def shown(value: object) -> str:
    """Return a value as a message quotes it."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def first_of(error: ValidationError) -> tuple[str, str, str]:
    """Return the dotted path, the text and the type of pydantic's first error."""
    detail = error.errors(include_url=False)[0]
    text = str(detail.get("ctx", {}).get("error", detail["msg"]))
    return ".".join(map(str, detail["loc"])), text, detail["type"]


def wanted(details: list[ErrorDetails]) -> str:
    """Return what was wanted of a value; of a choice of types, everything it takes."""
    return " or ".join(_ours(detail["msg"]) for detail in details)


def _ours(message: str) -> str:
    text = message.removeprefix("Input should be ")
    for pattern, ours in _WANTED.items():
        if re.fullmatch(pattern, text):
            return re.sub(f"^{pattern}$", ours, text)
    return text
