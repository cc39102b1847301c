"""Stop strings are found however the text is cut, and nothing of them is shown.

The reference looks at every beginning of the whole text in turn.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crumb.errors import UsageError
from crumb.run.stop_strings import StopStrings

TEXTS = st.text(alphabet="ab\n", max_size=30)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4)


def stopped_reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What comes before the stop string that is complete first; the longest of several."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def could_begin(text: str, stops: list[str]) -> int:
    """How many last characters of a text may be the beginning of a stop string."""
    beginnings = [stop[:length] for stop in stops for length in range(len(stop))]
    return max((len(part) for part in beginnings if text.endswith(part)), default=0)


@given(st.lists(TEXTS, max_size=8), STOPS)
@example(["aab", "b"], ["aabb", "ab"])
@example(["ab", "ab", "a"], ["abac", "ba"])
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    watcher = StopStrings(stops)
    expected, expected_hit = stopped_reference("".join(pieces), stops)
    shown, hit, seen = "", None, ""
    for piece in pieces:
        safe, hit = watcher.push(piece)
        shown, seen = shown + safe, seen + piece
        if hit is not None:
            break
        # exactly what may still become a stop string is held back, no more and no less
        assert len(seen) - len(shown) == could_begin(seen, stops)
    if hit is None:
        shown += watcher.finish()
    assert (shown, hit) == (expected, expected_hit)


def test_the_first_to_be_complete_wins_and_of_two_the_longer() -> None:
    assert StopStrings(["abcd", "bc"]).push("xabcd") == ("xa", "bc")
    assert StopStrings(["bc", "abc"]).push("xabc") == ("x", "abc")


def test_a_stop_string_that_does_not_come_is_given_back() -> None:
    watcher = StopStrings(["\n\nUser:"])
    assert watcher.push("Hello\n\nUse") == ("Hello", None)
    assert watcher.push("d") == ("\n\nUsed", None)
    assert watcher.push(" it\n") == (" it", None)
    assert watcher.finish() == "\n"
    assert watcher.finish() == ""


def test_a_long_stop_string_costs_no_more_than_its_length() -> None:
    """Comparing every suffix with every beginning would take 10^10 steps here."""
    stop = "a" * 100_000 + "b"
    watcher = StopStrings([stop])
    for _ in range(200):
        assert watcher.push("a" * 500) == ("", None)
    assert watcher.push("ab") == ("a", stop)


@pytest.mark.parametrize("stops", [[""], ["a", ""], "ab", [3]])
def test_what_is_no_stop_string_is_refused(stops: list[str]) -> None:
    with pytest.raises(UsageError, match="stop"):
        StopStrings(stops)
