"""Patterns that name modules, as quantization settings use them: matched in bounded time.

In: regular expressions from a configuration, module names. Out: the first rule that applies.
A pattern must match from the start of a name, not to its end. Positions in a name are bits of one
integer, so no pattern makes matching exponential, and a budget of steps ends what is still slow.
Refuses syntax beyond groups, classes, quantifiers, lookahead and anchors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from crumb.architectures.configuration import shown
from crumb.errors import CheckpointError

LONGEST_PATTERN = 1000
LONGEST_NAME = 500
DEEPEST = 20
LARGEST_COUNT = 1000
STEPS = 1_000_000
"""Steps of all matches that one set of rules may take: about a second."""

Value = TypeVar("Value")


class _Subject:
    """A name, and where each kind of character is in it, as bits."""

    def __init__(self, name: str, spend: Callable[[], None]) -> None:
        self.end = 1 << len(name)
        self.spend = spend
        self.places: dict[str, int] = {}
        for place, letter in enumerate(name):
            self.places[letter] = self.places.get(letter, 0) | 1 << place

    def where(self, accepts: Callable[[str], bool]) -> int:
        return sum(bits for letter, bits in self.places.items() if accepts(letter))


Node = Callable[[_Subject, int], int]
"""Where a part of a pattern may end, given where it may begin: bits to bits."""


def _letter(accepts: Callable[[str], bool]) -> Node:
    def ends(subject: _Subject, starts: int) -> int:
        subject.spend()
        return (starts & subject.where(accepts)) << 1

    return ends


def _sequence(parts: list[Node]) -> Node:
    def ends(subject: _Subject, starts: int) -> int:
        for part in parts:
            if not starts:
                break
            starts = part(subject, starts)
        return starts

    return ends


def _either(choices: list[Node]) -> Node:
    def ends(subject: _Subject, starts: int) -> int:
        ends_of_any = 0
        for choice in choices:
            ends_of_any |= choice(subject, starts)
        return ends_of_any

    return ends


def _repeated(part: Node, lowest: int, highest: int | None) -> Node:
    def ends(subject: _Subject, starts: int) -> int:
        for _ in range(lowest):
            reached = part(subject, starts)
            if reached in (0, starts):
                starts = reached
                break
            starts = reached
        done = 0
        while starts and (highest is None or done < highest - lowest):
            reached = starts | part(subject, starts)
            if reached == starts:
                break
            starts, done = reached, done + 1
        return starts

    return ends


def _ahead(part: Node, matching: bool) -> Node:
    def ends(subject: _Subject, starts: int) -> int:
        passed, rest = 0, starts
        while rest:
            start = rest & -rest
            rest ^= start
            subject.spend()
            if bool(part(subject, start)) is matching:
                passed |= start
        return passed

    return ends


KINDS: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "D": lambda letter: not letter.isdecimal(),
    "w": lambda letter: letter.isalnum() or letter == "_",
    "W": lambda letter: not (letter.isalnum() or letter == "_"),
    "s": str.isspace,
    "S": lambda letter: not letter.isspace(),
}
"""Escaped letters that stand for a kind of character."""

ANCHORS: dict[str, Node] = {
    "^": lambda subject, starts: starts & 1,
    "$": lambda subject, starts: starts & subject.end,
}

GROUPS: dict[str, Callable[[Node], Node]] = {
    "(?:": lambda part: part,
    "(?=": lambda part: _ahead(part, True),
    "(?!": lambda part: _ahead(part, False),
    "(": lambda part: part,
}
"""How a group begins, the longest first, and what its content means."""

QUANTIFIERS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}

COUNTS = re.compile(r"\{(\d{0,4})(?:(,)(\d{0,4}))?\}")


RANGE = re.compile(r"-[^\]]")
"""The rest of a range inside square brackets, behind its first letter."""


def _between(low: str, high: str) -> Callable[[str], bool]:
    return lambda letter: low <= letter <= high


class _Refused(Exception):
    """What a pattern may not hold."""


class _Parser:
    """Recursive descent over one pattern."""

    def __init__(self, pattern: str) -> None:
        self.text, self.at, self.depth = pattern, 0, 0

    def whole(self) -> Node:
        node = self.choices()
        if self.at < len(self.text):
            raise _Refused("a closing bracket without its opening one")
        return node

    def choices(self) -> Node:
        sequences = [self.sequence()]
        while self.take("|"):
            sequences.append(self.sequence())
        return sequences[0] if len(sequences) == 1 else _either(sequences)

    def sequence(self) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self.quantified(self.atom()))
        return _sequence(parts)

    def take(self, text: str) -> bool:
        is_next = self.text.startswith(text, self.at)
        self.at += len(text) if is_next else 0
        return is_next

    def next(self) -> str:
        if self.at == len(self.text):
            raise _Refused("an end too early")
        self.at += 1
        return self.text[self.at - 1]

    def quantified(self, node: Node) -> Node:
        counts = COUNTS.match(self.text, self.at)
        sign = self.text[self.at : self.at + 1]
        if sign in QUANTIFIERS:
            self.at += 1
            lowest, highest = QUANTIFIERS[sign]
        elif counts is not None and counts[0] not in ("{}", "{,}"):
            self.at = counts.end()
            lowest = int(counts[1] or 0)
            highest = (int(counts[3]) if counts[3] else None) if counts[2] else lowest
            if max(lowest, highest or 0) > LARGEST_COUNT or (highest or lowest) < lowest:
                raise _Refused("such a count")
        else:
            return node
        self.take("?")  # lazy or not, the same names match
        if self.text[self.at : self.at + 1] in (*QUANTIFIERS, "{"):
            raise _Refused("two quantifiers in a row")
        return _repeated(node, lowest, highest)

    def atom(self) -> Node:
        for opening, meaning in GROUPS.items():
            if self.take(opening):
                if opening == "(" and self.take("?"):
                    raise _Refused("such a group")
                return meaning(self.group())
        letter = self.next()
        if letter in ANCHORS:
            return ANCHORS[letter]
        if letter in QUANTIFIERS:
            raise _Refused("a quantifier of nothing")
        if letter == ".":
            return _letter(lambda letter: letter != "\n")
        return _letter(self.members() if letter == "[" else self.single(letter))

    def group(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise _Refused("brackets this deep")
        node = self.choices()
        if not self.take(")"):
            raise _Refused("an opening bracket without its closing one")
        self.depth -= 1
        return node

    def single(self, letter: str) -> Callable[[str], bool]:
        """What one letter, or an escaped one, accepts."""
        if letter == "\\":
            letter = self.next()
            if letter in KINDS:
                return KINDS[letter]
            if letter.isalnum():
                raise _Refused("such an escape")
        return letter.__eq__

    def members(self) -> Callable[[str], bool]:
        """What a class in square brackets accepts."""
        inverted = self.take("^")
        accepted: list[Callable[[str], bool]] = []
        while not accepted or not self.take("]"):
            first = self.next()
            single = self.single(first)
            if RANGE.match(self.text, self.at) is None:
                accepted.append(single)
                continue
            high = self.text[self.at + 1]
            self.at += 2
            if "\\" in (first, high) or high < first:
                raise _Refused("such a range")
            accepted.append(_between(first, high))
        return lambda letter: any(each(letter) for each in accepted) is not inverted


def literal_name(pattern: str) -> str | None:
    """The one name that a pattern without any freedom stands for, such as a\\.b$; or None."""
    text = pattern[1:] if pattern.startswith("^") else pattern
    if not text.endswith("$") or text.endswith("\\$"):
        return None
    escaped = text[:-1]
    name = re.sub(r"\\([^\w\s])", lambda match: match[1], escaped)
    return name if re.escape(name) == escaped else None


@dataclass
class Rules(Generic[Value]):
    """Patterns in order, each with what it decides."""

    where: str
    values: list[Value] = field(default_factory=list)
    exact: dict[str, int] = field(default_factory=dict)  # name -> place of its rule
    loose: dict[int, Node] = field(default_factory=dict)  # places of the rules with real patterns
    steps: int = 0

    @classmethod
    def of(cls, patterns: Iterable[tuple[str, Value]], where: str) -> Rules[Value]:
        """Rules from patterns. Raises: CheckpointError for one that cannot be used."""
        made = cls(where)
        for place, (pattern, value) in enumerate(patterns):
            made.values.append(value)
            name = literal_name(pattern)
            if name is None:
                made.loose[place] = made.node(pattern)
            else:
                made.exact.setdefault(name, place)
        return made

    def node(self, pattern: str) -> Node:
        if len(pattern) > LONGEST_PATTERN:
            raise self.refusal(f"at most {LONGEST_PATTERN} characters", pattern)
        try:
            return _Parser(pattern).whole()
        except _Refused as error:
            raise self.refusal(f"a regular expression without {error}", pattern) from error

    def refusal(self, expected: str, found: str) -> CheckpointError:
        return CheckpointError(
            "a pattern of module names cannot be used",
            where=self.where,
            expected=expected,
            found=shown(found),
        )

    def find(self, name: str) -> Value | None:
        """What the first rule that matches decides. Raises: CheckpointError."""
        place = self.exact.get(name, len(self.values))
        if self.loose and len(name) > LONGEST_NAME:
            raise self.refusal(f"names of at most {LONGEST_NAME} characters", name)
        subject = _Subject(name, self.spend) if self.loose else None
        for loose, node in self.loose.items():
            if loose > place or subject is None:
                break
            if node(subject, 1):
                place = loose
                break
        return self.values[place] if place < len(self.values) else None

    def spend(self) -> None:
        self.steps += 1
        if self.steps > STEPS:
            raise self.refusal(f"patterns that take at most {STEPS} steps", f"{self.steps} steps")
