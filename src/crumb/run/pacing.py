"""How long an engine's steps take, and how much of a prompt may be read beside texts that decode.

In: the rows of steps and their seconds. Out: seconds of a step to come; rows of prompts that make
it last no longer than readers of the texts should wait. Only speed follows from these figures:
the tokens are the same for any rows of a step.
"""

from __future__ import annotations

LEARNING_RATE = 0.2

LONGEST = 2.0
"""A step that took more times as long as usual was interrupted by something else."""

ROW_COST = 0.1
"""What one more row adds to a step of one, as long as nothing was measured."""

MOST_STEPS = 1.7
"""A step that also reads prompts takes about as long as so many without; single ones take more."""

UNNOTICED_SECONDS = 0.015
"""Reading prompts may always add this much: without it one fast text would hold up many others."""

LEAST_ROWS, FIRST_ROWS = 4, 32
"""Rows of prompts beside texts: at least, and before anything was measured."""


class StepTimes:
    """How long an engine's steps take, by their rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    @property
    def is_measured(self) -> bool:
        """Whether there was a step."""
        return bool(self._seconds)

    def note(self, rows: int, seconds: float) -> None:
        """A step took so long."""
        before = self._seconds.get(rows, seconds)
        seconds = min(seconds, LONGEST * before)
        self._seconds[rows] = before + LEARNING_RATE * (seconds - before)

    def seconds(self, rows: int) -> float:
        """Of a step: measured, or between what was measured of fewer and of more rows."""
        if rows in self._seconds:
            return self._seconds[rows]
        fewer = max((each for each in self._seconds if each < rows), default=None)
        more = min((each for each in self._seconds if each > rows), default=None)
        if fewer is None:
            return self._seconds[more] if more is not None else 1.0
        begin = self._seconds[fewer]
        if more is None:
            one = self._seconds[min(self._seconds)]
            return begin + ROW_COST * one * (rows - fewer)
        share = (rows - fewer) / (more - fewer)
        return begin + share * (self._seconds[more] - begin)


class PromptPace:
    """Rows of prompts for a step that also decodes."""

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self._row_seconds: float | None = None  # of one row of a prompt beside texts

    def rows(self, decoding: int, reading: int, most: int) -> int:
        """So many of `reading` prompts beside so many texts, from 1 to `most`.

        Where more prompts wait than there are texts, they have as much more of the time.
        """
        if self._row_seconds is None or not self._times.is_measured:
            return min(FIRST_ROWS, most)
        plain = self._times.seconds(decoding)
        share = max(1.0, reading / decoding)
        budget = max(share * (MOST_STEPS - 1.0) * plain, UNNOTICED_SECONDS)
        return min(max(int(budget / self._row_seconds), LEAST_ROWS), most)

    def note(self, decoding: int, prompt_rows: int, seconds: float) -> None:
        """A step with so many texts and rows of prompts took so long."""
        if not self._times.is_measured:
            return
        each = max(seconds - self._times.seconds(decoding), 0.1 * seconds) / prompt_rows
        if self._row_seconds is None:
            self._row_seconds = each
        each = min(each, LONGEST * self._row_seconds)
        self._row_seconds += LEARNING_RATE * (each - self._row_seconds)
