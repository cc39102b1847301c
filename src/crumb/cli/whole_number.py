"""Whole numbers on the command line, where cyclopts would round 3.5 to 4.

In: the word behind an option. Out: an integer. Refuses everything but a sign and 18 digits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token

WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


def parse_whole(_: Any, tokens: Sequence[Token]) -> int:
    """The integer that one word spells. Raises: ValueError."""
    word = tokens[0].value
    if not WHOLE.fullmatch(word):
        raise ValueError(f"{word[:40]!r} is not a whole number of at most 18 digits")
    return int(word)


Whole = Annotated[int, Parameter(converter=parse_whole)]
OptionalWhole = Annotated[int | None, Parameter(converter=parse_whole)]
