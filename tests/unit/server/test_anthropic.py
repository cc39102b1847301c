"""/v1/messages: messages and their events, as Anthropic's clients read them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from live_server import Live

from crumb.pieces import Content, Reasoning, ToolCallArguments, ToolCallStart
from crumb.server.protocols.anthropic import MessageWriter, blocks_of
from crumb.server.protocols.anthropic_messages import conversation

MESSAGES = "/v1/messages"
ASK: dict[str, Any] = {
    "model": "novella",
    "max_tokens": 8,
    "messages": [{"role": "user", "content": "Tell me of the sea."}],
    "temperature": 0,
}


def events_of(server: Live, **body: Any) -> list[tuple[str, Any]]:
    answer = server.http.post(MESSAGES, json=body | {"stream": True})
    assert answer.status_code == 200, answer.text
    pairs = [each.split("\n") for each in answer.text.strip().split("\n\n")]
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in pairs
    ]


def test_a_message_has_what_clients_read(server: Live) -> None:
    answer = server.post(MESSAGES, **ASK)
    assert answer["type"] == "message"
    assert answer["role"] == "assistant"
    assert [each["type"] for each in answer["content"]] == ["text"]
    assert answer["stop_reason"] == "max_tokens"
    assert answer["stop_sequence"] is None
    assert answer["usage"]["output_tokens"] == 8


def test_events_are_the_message_in_pieces_with_one_block_at_a_time(server: Live) -> None:
    whole = server.post(MESSAGES, **ASK)
    events = events_of(server, **ASK)
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events if name != "ping"]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[2:-3]) == {"content_block_delta"}
    deltas = [data["delta"]["text"] for name, data in events if name == "content_block_delta"]
    assert "".join(deltas) == whole["content"][0]["text"]
    start, delta = events[0][1]["message"], events[-2][1]
    assert start["content"] == []
    assert start["usage"]["input_tokens"] > 0
    assert delta["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] == 8


def test_cached_tokens_are_not_among_the_input_tokens(server: Live) -> None:
    long = ASK | {"messages": [{"role": "user", "content": "The sea was calm. " * 12}]}
    first = server.post(MESSAGES, **long)["usage"]
    again = server.post(MESSAGES, **long)["usage"]
    assert again["cache_read_input_tokens"] > 0
    total = first["input_tokens"] + first["cache_read_input_tokens"]
    assert again["input_tokens"] + again["cache_read_input_tokens"] == total


def test_the_stop_sequence_that_was_hit_is_told(server: Live) -> None:
    text = server.post(MESSAGES, **ASK)["content"][0]["text"]
    stop = text[6:9]
    answer = server.post(MESSAGES, **ASK, stop_sequences=["~~~", stop])
    assert answer["stop_reason"] == "stop_sequence"
    assert answer["stop_sequence"] == stop
    assert stop not in answer["content"][0]["text"]


def test_tokens_are_counted_as_a_message_counts_them(server: Live) -> None:
    system = {"system": "Be brief."}
    usage = server.post(MESSAGES, **ASK, **system)["usage"]
    body = {name: value for name, value in ASK.items() if name != "max_tokens"}
    counted = server.post(f"{MESSAGES}/count_tokens", **body, **system)
    assert counted["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_a_claude_model_is_the_model_that_is_there(server: Live) -> None:
    answer = server.post(MESSAGES, **(ASK | {"model": "claude-haiku-4-5"}))
    assert answer["model"] == "claude-haiku-4-5"
    status, error = server.refused(MESSAGES, **(ASK | {"model": "other"}))
    assert status == 404
    assert error["error"]["type"] == "not_found_error"


def test_what_claude_code_sends_is_taken(server: Live) -> None:
    extra = {
        "context_management": {"edits": []},
        "output_config": {"effort": "high"},
        "thinking": {"type": "adaptive"},
        "metadata": {"user_id": "someone"},
    }
    assert server.http.head("/api/hello").status_code == 200
    assert server.http.head("/").status_code == 200
    answer = server.http.post(f"{MESSAGES}?beta=true", json=ASK | extra)
    assert answer.status_code == 200, answer.text


def test_an_error_has_its_type_and_the_id_of_its_header(server: Live) -> None:
    answer = server.http.post(MESSAGES, json={"model": "novella", "messages": []})
    assert answer.status_code == 400
    content = answer.json()
    assert content["type"] == "error"
    assert content["error"]["type"] == "invalid_request_error"
    assert content["request_id"] == answer.headers["request-id"]


def test_a_prompt_that_is_too_long_is_413_with_both_numbers(server: Live) -> None:
    long = ASK | {"messages": [{"role": "user", "content": "The sea was calm. " * 200}]}
    status, answer = server.refused(MESSAGES, **long)
    assert status == 413
    assert answer["error"]["type"] == "request_too_large"
    assert "tokens > 256 maximum" in answer["error"]["message"]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "source": {"type": "base64", "data": ""}},
        {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "image"}]},
        {"type": "document"},
    ],
)
def test_what_is_no_text_is_refused(server: Live, block: dict[str, Any]) -> None:
    status, answer = server.refused(
        MESSAGES, **(ASK | {"messages": [{"role": "user", "content": [block]}]})
    )
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"


def test_a_billing_header_never_reaches_the_prompt() -> None:
    header = "x-anthropic-billing-header: cc_version=2; cch={}"
    heads = []
    for nonce in ("fa690", "00b1c"):
        blocks = [{"type": "text", "text": header.format(nonce)}, {"type": "text", "text": "Help."}]
        heads.append(conversation(blocks, [{"role": "user", "content": "Hi"}], True))
        heads.append(
            conversation(
                f"{header.format(nonce)}\nHelp.", [{"role": "user", "content": "Hi"}], True
            )
        )
    assert all(each == heads[0] for each in heads)
    assert heads[0][0][0] == {"role": "system", "content": "Help."}


def test_results_of_tools_come_before_what_the_user_says() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
    turn = [
        {"type": "text", "text": "and now?"},
        {"type": "tool_result", "tool_use_id": "t1", "content": "42"},
        {"type": "tool_result", "tool_use_id": "t2", "content": "no", "is_error": True},
    ]
    written, continues = conversation(
        None,
        [
            {"role": "user", "content": "Go"},
            {"role": "assistant", "content": [{"type": "text", "text": "Well"}, call]},
            {"role": "user", "content": turn},
        ],
        True,
    )
    assert [each["role"] for each in written] == ["user", "assistant", "tool", "tool", "user"]
    assert written[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert written[3]["content"] == "Error: no"
    assert not continues


def test_a_system_message_in_the_middle_never_changes_the_head() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Go"},
    ]
    note = {"role": "system", "content": "You have used 40 tokens."}
    before, _ = conversation("Help.", messages, False)
    after, _ = conversation("Help.", [*messages, note], False)
    assert after[:3] == before[:3]
    assert after[3]["content"].startswith(before[3]["content"])
    kept, _ = conversation("Help.", [*messages, note], True)
    assert kept[:4] == before
    assert kept[4]["role"] == "system"


PIECES = (
    Reasoning("Hm"),
    Reasoning("m"),
    Content("Hi"),
    ToolCallStart(0, "toolu_1", "f"),
    ToolCallArguments(0, '{"a"'),
    ToolCallArguments(0, ":1}"),
    ToolCallStart(1, "toolu_2", "g"),
    Content("done"),
)


def test_thinking_text_and_calls_are_blocks_in_their_order() -> None:
    blocks = blocks_of(PIECES)
    assert [each["type"] for each in blocks] == [
        "thinking",
        "text",
        "tool_use",
        "tool_use",
        "text",
    ]
    assert blocks[0]["thinking"] == "Hmm"
    assert blocks[0]["signature"]
    assert blocks[2]["input"] == {"a": 1}
    assert blocks[3]["input"] == {}


def test_every_block_of_a_stream_is_begun_and_ended_once() -> None:
    writer = MessageWriter(_Call(), _Body(), 5)
    raw = b"".join(event for piece in PIECES for event in writer._piece(piece))
    raw += b"".join(writer._close())
    lines = [line for line in raw.decode().split("\n") if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    open_block: int | None = None
    begun = []
    for event in events:
        if event["type"] == "content_block_start":
            assert open_block is None
            open_block = event["index"]
            begun.append(event["content_block"]["type"])
        else:
            assert event["index"] == open_block
        if event["type"] == "content_block_stop":
            open_block = None
    assert begun == ["thinking", "text", "tool_use", "tool_use", "text"]
    assert open_block is None


class _Call:
    id = "1"


class _Body:
    model = "m"
