"""Find stop strings in a text that arrives in pieces, without showing any part of them.

In: stop strings, then pieces of text. Out: text that no stop string can begin in any more, and the
stop string that was found. The one whose last character comes first wins, of two that end with the
same character the longer: so the cuts between the pieces change nothing. Refuses empty strings.
Source: Knuth, Morris and Pratt (1977), the failure function.
"""

from __future__ import annotations

from collections.abc import Sequence

from crumb.requests.generate_request import check_stops


class StopStrings:
    """Watches one text; costs a step per character and stop string, however the text is cut."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises: UsageError for an empty stop string."""
        check_stops(stops)
        # the longest first, so that of two that end together it is found
        self._stops = sorted(set(stops), key=lambda stop: (-len(stop), stop))
        self._failures = [_failures(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)  # characters of each stop at the end of the text
        self._held = ""
        self._hit: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """What may be shown now, and the stop string if the text reached one; the rest is lost."""
        assert self._hit is None, "nothing comes after a stop string"
        if not self._stops:
            return text, None
        waiting = self._held + text
        for index, character in enumerate(text, len(self._held)):
            for which, stop in enumerate(self._stops):
                matched = self._step(which, character)
                if matched == len(stop):
                    self._held, self._hit = "", stop
                    return waiting[: index + 1 - matched], stop
                self._matched[which] = matched
        shown = len(waiting) - max(self._matched)
        self._held = waiting[shown:]
        return waiting[:shown], None

    def finish(self) -> str:
        """What was held back; the text has ended, so nothing in it is a stop string."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _step(self, which: int, character: str) -> int:
        """How much of a stop string the text ends with after one more character."""
        stop, failures, matched = self._stops[which], self._failures[which], self._matched[which]
        while matched and stop[matched] != character:
            matched = failures[matched - 1]
        return matched + (stop[matched] == character)


def _failures(stop: str) -> list[int]:
    """For each prefix of a string, the length of its longest proper prefix that also ends it."""
    table, matched = [0], 0
    for character in stop[1:]:
        while matched and stop[matched] != character:
            matched = table[matched - 1]
        matched += stop[matched] == character
        table.append(matched)
    return table
