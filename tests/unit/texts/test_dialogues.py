"""The embedded dialogues: turns become messages, and what is no dialogue is refused."""

from __future__ import annotations

import pytest

from crumb.errors import TextError
from crumb.texts.dialogues import parse_dialogues, render_plainly
from crumb.texts.hub_texts import Use
from crumb.texts.mixture import DIALOGUE
from crumb.texts.sources import read_text

TWO = """user: One?
assistant: Two.

And a half.
user: And then?
assistant: Three.

user: Go on.
assistant: No.
"""


def test_a_turn_begins_with_its_side_and_may_hold_empty_lines() -> None:
    first, second = parse_dialogues(TWO, "here")
    assert [each["role"] for each in first] == ["user", "assistant"] * 2
    assert first[1]["content"] == "Two.\n\nAnd a half."
    assert second[1] == {"role": "assistant", "content": "No."}


def test_chats_are_written_plainly_where_no_template_is() -> None:
    assert render_plainly(parse_dialogues(TWO, "here")[1]) == "user: Go on.\n\nassistant: No.\n\n"


@pytest.mark.parametrize("text", ["", "One?\nassistant: Two.", "user One?"])
def test_a_text_that_is_no_dialogue_is_refused(text: str) -> None:
    with pytest.raises(TextError, match="a dialogue begins with a side"):
        parse_dialogues(text, "here")


def test_every_embedded_dialogue_is_turns_in_order_and_ends_with_an_answer() -> None:
    dialogues = parse_dialogues(read_text(DIALOGUE, Use.CALIBRATION).text, DIALOGUE)
    assert len(dialogues) > 16
    for dialogue in dialogues:
        sides = [each["role"] for each in dialogue]
        assert sides == ["user", "assistant"] * (len(sides) // 2)
        assert all(each["content"] for each in dialogue)
