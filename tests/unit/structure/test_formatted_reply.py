"""Answers are read the same however they are cut, in the formats of all families."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.structure.replies import (
    FORMATS,
    THINK,
    TOOLS,
    WRITERS,
    calls_of,
    content_of,
    parser_of,
    reasoning_of,
)

from crumb.pieces import (
    Content,
    Piece,
    ToolCallArguments,
    ToolCallStart,
)
from crumb.structure.formatted_reply import FormattedReply, parse_reply
from crumb.structure.reader import join_pieces

WORDS = st.text(alphabet='ab {}[]":,\\\n;é', max_size=12)
CITIES = st.text(alphabet="abc {}[]:,;é", min_size=1, max_size=12).filter(
    lambda text: text.strip() == text
)
CALLS = st.lists(
    st.one_of(
        st.tuples(
            st.just("weather"),
            st.fixed_dictionaries(
                {"city": CITIES},
                optional={
                    "days": st.integers(-5, 99999),
                    "kinds": st.lists(st.sampled_from(["sun", "rain"]), max_size=3),
                },
            ),
        ),
        st.just(("time.now", {})),
    ),
    min_size=1,
    max_size=3,
)
MARKS = [mark for row in FORMATS.values() for mark in row.marks]
FRAGMENTS = st.lists(
    st.one_of(
        st.sampled_from(
            [*MARKS, "<think>", "</think>", '{"name": "weather", "arguments": ', '{"city": "x"}']
        ),
        st.sampled_from(["<", "[", "weather", "call:weather{", "city", "\n", " ", "}", "]", '"']),
        WORDS,
    ),
    max_size=14,
).map("".join)


def in_chunks(parser: FormattedReply, text: str, cuts: list[int]) -> list[Piece]:
    """A text fed in parts."""
    pieces: list[Piece] = []
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    for begin, end in pairwise(places):
        pieces += parser.feed(text[begin:end])
    return join_pieces([*pieces, *parser.finish()])


def test_every_format_has_a_writer_here() -> None:
    assert set(WRITERS) == set(FORMATS)


@pytest.mark.parametrize("name", WRITERS)
@given(calls=CALLS, cuts=st.lists(st.integers(0, 400), max_size=30))
def test_calls_are_read_in_every_format_and_however_they_are_cut(
    name: str, calls: list[tuple[str, dict[str, Any]]], cuts: list[int]
) -> None:
    text = WRITERS[name](calls)
    pieces = in_chunks(parser_of(name), text, cuts)
    assert calls_of(pieces) == calls
    assert content_of(pieces) == ""


@pytest.mark.parametrize("name", WRITERS)
@given(text=FRAGMENTS, cuts=st.lists(st.integers(0, 200), max_size=20), opened=st.booleans())
def test_no_cut_changes_what_is_made_of_any_text(
    name: str, text: str, cuts: list[int], opened: bool
) -> None:
    whole = parse_reply(parser_of(name, THINK, begins_open=opened), text)
    assert in_chunks(parser_of(name, THINK, begins_open=opened), text, cuts) == whole
    assert join_pieces(whole) == whole


@given(text=st.text(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=9))
def test_without_tools_all_of_a_text_is_content(text: str, cuts: list[int]) -> None:
    pieces = in_chunks(FormattedReply(), text, cuts)
    assert pieces == ([Content(text)] if text else [])


@given(text=st.text(alphabet="abc <>/tokl_{}\n", max_size=60))
def test_a_text_without_calls_is_content_up_to_its_last_space(text: str) -> None:
    for name in ("hermes", "smollm", "mistral", "glm", "qwen-coder", "gemma"):
        assert content_of(parse_reply(parser_of(name), text)) == text


def test_a_call_streams_its_own_characters_as_they_come() -> None:
    parser = parser_of("hermes")
    assert parser.feed('<tool_call>\n{"name": "weather", "arguments": {"ci')[1:] == [
        ToolCallArguments(0, '{"ci')
    ]
    assert parser.feed('ty": "x') == [ToolCallArguments(0, 'ty": "x')]
    assert parser.feed(' }"}}\n</tool') == [ToolCallArguments(0, ' }"}')]
    assert parser.feed("_call>") == []
    assert parser.finish() == []


def test_arguments_before_the_name_and_arguments_as_a_text_are_read() -> None:
    text = '<tool_call>{"arguments": {"city": "x"}, "name": "weather"}</tool_call>'
    assert calls_of(parse_reply(parser_of("hermes"), text)) == [("weather", {"city": "x"})]
    inner = json.dumps(json.dumps({"city": "y"}))
    text = f'<tool_call>{{"name": "weather", "arguments": {inner}}}</tool_call>'
    assert calls_of(parse_reply(parser_of("hermes"), text)) == [("weather", {"city": "y"})]


def test_a_call_of_an_unknown_tool_and_a_broken_call_are_content() -> None:
    for text in (
        'Well: <tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        "Well: <tool_call>[1, 2]</tool_call>",
        "Well: <tool_call>{name: weather}",
        'Well: <tool_call>{"name": "wea',
    ):
        pieces = parse_reply(parser_of("hermes"), text)
        assert content_of(pieces) == text
        assert calls_of(pieces) == []


def test_a_call_inside_what_seemed_to_be_one_is_found() -> None:
    text = '<tool_call> no <tool_call>{"name": "time.now", "arguments": {}}</tool_call>'
    pieces = parse_reply(parser_of("hermes"), text)
    assert content_of(pieces) == "<tool_call> no"
    assert calls_of(pieces) == [("time.now", {})]


def test_text_around_calls_stays_in_order_without_the_white_space_between() -> None:
    call = '<tool_call>\n{"name": "time.now", "arguments": {}}\n</tool_call>'
    pieces = parse_reply(parser_of("hermes"), f"Let me see.\n\n{call}\n Done. \n")
    assert pieces[0] == Content("Let me see.")
    assert pieces[-1] == Content("Done. \n")


def test_reasoning_is_apart_from_content_and_calls_in_it_are_none() -> None:
    text = '<think>\nA <tool_call>{"name": "time.now"}</tool_call>?\n</think>\n\nYes.'
    pieces = parse_reply(parser_of("hermes", THINK), text)
    assert reasoning_of(pieces) == 'A <tool_call>{"name": "time.now"}</tool_call>?'
    assert content_of(pieces) == "Yes."


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("hm\n</think>\n\nYes", True, "hm", "Yes"),
        ("<think>hm</think>Yes", True, "hm", "Yes"),
        ("hm, and the end", True, "hm, and the end", ""),
        ("Yes <think>no</think>", False, "", "Yes <think>no</think>"),
        ("<think></think>Yes", False, "", "Yes"),
        ("  Yes", False, "", "  Yes"),
        ("<thin", False, "", "<thin"),
        ("hm </think", True, "hm </think", ""),
    ],
)
def test_the_marks_of_reasoning(text: str, opened: bool, reasoning: str, content: str) -> None:
    pieces = parse_reply(FormattedReply((), None, THINK, begins_open=opened), text)
    assert reasoning_of(pieces) == reasoning
    assert content_of(pieces) == content


def test_channels_are_reasoning_content_and_calls() -> None:
    text = (
        "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary"
        "<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        '<|constrain|>json<|message|>{"city": "x"}<|call|>'
    )
    pieces = parse_reply(parser_of("harmony"), text)
    assert reasoning_of(pieces) == "Let me see."
    assert content_of(pieces) == "I look."
    assert calls_of(pieces) == [("weather", {"city": "x"})]
    plain = parse_reply(parser_of("harmony"), "<|channel|>final<|message|>a < b<|return|>")
    assert plain == [Content("a < b")]


def test_an_empty_list_of_calls_is_no_content() -> None:
    assert parse_reply(parser_of("smollm"), "<tool_call>[]</tool_call>") == []


def test_bare_values_have_the_types_of_the_schema() -> None:
    text = (
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>12</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>12</arg_value>\n<arg_key>more</arg_key>\n"
        "<arg_value>true</arg_value>\n</tool_call>"
    )
    expected = {"city": "12", "days": 12, "more": True}
    assert calls_of(parse_reply(parser_of("glm"), text)) == [("weather", expected)]


def test_a_call_cut_off_gives_what_was_there() -> None:
    parser = parser_of("hermes")
    pieces = parse_reply(parser, '<tool_call>{"name": "weather", "arguments": {"city": "Par')
    assert pieces[-1] == ToolCallArguments(0, '{"city": "Par')
    assert parser.calls == 1


def test_mistral_ids_have_nine_letters() -> None:
    pieces = FormattedReply(TOOLS, FORMATS["mistral"]).feed('[TOOL_CALLS][{"name": "time.now"}]')
    (start,) = [each for each in pieces if isinstance(each, ToolCallStart)]
    assert len(start.id) == 9
    assert start.id.isalnum()
