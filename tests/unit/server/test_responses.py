"""/v1/responses: responses, their events, and going on from an earlier one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from live_server import Live

from crumb.errors import ModelNotFound
from crumb.pieces import Content, Reasoning, ToolCallArguments, ToolCallStart
from crumb.server.protocols.response_store import ResponseStore
from crumb.server.protocols.response_writer import ResponseWriter
from crumb.server.protocols.responses_items import ItemReader, input_items

RESPONSES = "/v1/responses"
ASK: dict[str, Any] = {
    "model": "novella",
    "input": "Tell me of the sea.",
    "max_output_tokens": 8,
    "temperature": 0,
}


def events_of(server: Live, **body: Any) -> list[dict[str, Any]]:
    answer = server.http.post(RESPONSES, json=body | {"stream": True})
    assert answer.status_code == 200, answer.text
    blocks = [each.split("\n") for each in answer.text.strip().split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name.removeprefix("event: ") for name, _ in blocks] == [e["type"] for e in events]
    return events


def test_a_response_that_was_cut_says_so(server: Live) -> None:
    answer = server.post(RESPONSES, **ASK)
    assert answer["object"] == "response"
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    (item,) = answer["output"]
    assert item["type"] == "message"
    assert item["content"][0]["type"] == "output_text"
    assert answer["usage"]["output_tokens"] == 8
    chat = server.post(
        "/v1/chat/completions",
        model="novella",
        messages=[{"role": "user", "content": ASK["input"]}],
        max_tokens=8,
        temperature=0,
    )
    assert item["content"][0]["text"] == chat["choices"][0]["message"]["content"]


def test_events_come_in_the_order_that_clients_need(server: Live) -> None:
    events = events_of(server, **ASK)
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    kinds = [each["type"].removeprefix("response.") for each in events]
    deltas = [kind for kind in kinds if kind == "output_text.delta"]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *deltas,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    last = events[-1]["response"]
    assert last["id"] == events[0]["response"]["id"]
    text = "".join(each["delta"] for each in events if each["type"].endswith("text.delta"))
    assert last["output"][0]["content"][0]["text"] == text
    assert events[2]["item"]["content"] == []
    assert last["output"][0]["id"] == events[2]["item"]["id"]


def test_a_response_goes_on_from_an_earlier_one(server: Live) -> None:
    first = server.post(RESPONSES, **ASK)
    second = server.post(
        RESPONSES, **(ASK | {"input": "And then?"}), previous_response_id=first["id"]
    )
    history = [
        {"role": "user", "content": ASK["input"]},
        *first["output"],
        {"role": "user", "content": "And then?"},
    ]
    whole = server.post(RESPONSES, **(ASK | {"input": history}))
    assert second["output"][0]["content"] == whole["output"][0]["content"]
    assert second["usage"]["input_tokens"] == whole["usage"]["input_tokens"]


def test_a_response_is_remembered_until_it_is_forgotten(server: Live) -> None:
    path = f"{RESPONSES}/{server.post(RESPONSES, **ASK)['id']}"
    assert server.http.get(path).json()["object"] == "response"
    assert server.http.get(f"{path}/input_items").json()["data"][0]["content"] == ASK["input"]
    assert server.http.post(f"{path}/cancel").status_code == 400
    assert server.http.delete(path).json()["deleted"]
    assert server.http.get(path).status_code == 404


def test_a_response_that_was_not_to_be_stored_is_not(server: Live) -> None:
    id = server.post(RESPONSES, **ASK, store=False)["id"]
    status, answer = server.refused(RESPONSES, **ASK, previous_response_id=id)
    assert status == 404
    assert answer["error"]["param"] == "previous_response_id"


def test_input_tokens_are_counted_as_a_response_counts_them(server: Live) -> None:
    counted = server.post(f"{RESPONSES}/input_tokens", model="novella", input=ASK["input"])
    assert counted["input_tokens"] == server.post(RESPONSES, **ASK)["usage"]["input_tokens"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("background", True),
        ("truncation", "auto"),
        ("conversation", "c"),
        ("input", [{"type": "input_image"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
        ("input", []),
    ],
)
def test_what_is_not_built_is_refused(server: Live, field: str, value: Any) -> None:
    status, _ = server.refused(RESPONSES, **(ASK | {field: value}))
    assert status == 400


def test_what_codex_sends_is_taken(server: Live) -> None:
    extra = {
        "client_metadata": {"a": "b"},
        "include": ["reasoning.encrypted_content"],
        "instructions": "Be brief.",
        "parallel_tool_calls": True,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "medium"},
        "tool_choice": "auto",
        "tools": [{"type": "web_search"}],
    }
    assert server.post(RESPONSES, **ASK, **extra)["output"]


def test_items_become_turns_with_their_calls_and_thoughts() -> None:
    items = input_items(
        [
            {"role": "developer", "content": "Help."},
            {"role": "user", "content": [{"type": "input_text", "text": "Go"}]},
            {"type": "reasoning", "id": "r", "content": [{"type": "reasoning_text", "text": "Hm"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}'},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "42"},
        ]
    )
    written = ItemReader(lambda id: None, True).read("Rules.", items)
    assert [each["role"] for each in written] == ["system", "user", "assistant", "tool"]
    assert written[0]["content"] == "Rules.\n\nHelp."
    assert written[2]["reasoning_content"] == "Hm"
    assert [each["function"]["name"] for each in written[2]["tool_calls"]] == ["f", "g"]
    with pytest.raises(ModelNotFound):
        ItemReader(lambda id: None, True).read(None, [{"type": "item_reference", "id": "x"}])


def test_reasoning_text_and_calls_are_items_with_their_events() -> None:
    writer = ResponseWriter(_Call(), "m", {})  # type: ignore[arg-type]
    pieces = (
        Reasoning("Hm"),
        Content("Hi"),
        ToolCallStart(0, "call_1", "f"),
        ToolCallArguments(0, '{"a":1}'),
    )
    raw = b"".join(event for piece in pieces for event in writer._piece(piece))
    raw += b"".join(writer._close("completed"))
    lines = [line for line in raw.decode().split("\n") if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    done = [each["item"] for each in events if each["type"] == "response.output_item.done"]
    assert [each["type"] for each in done] == ["reasoning", "message", "function_call"]
    assert [each["status"] for each in done] == ["completed"] * 3
    assert done[2]["arguments"] == '{"a":1}'
    added = [each for each in events if each["type"] == "response.output_item.added"]
    assert [each["output_index"] for each in added] == [0, 1, 2]
    assert added[2]["item"]["arguments"] == ""
    assert done[2]["call_id"] == "call_1"
    assert done[2]["id"] != "call_1"


def test_a_store_forgets_the_longest_unused_and_the_old() -> None:
    store = ResponseStore(most=2)
    for id in ("a", "b"):
        store.add({"id": id, "output": []}, [], [])
    store.get("a")
    store.add({"id": "c", "output": []}, [], [])
    with pytest.raises(ModelNotFound):
        store.get("b")
    assert len(store) == 2
    brief = ResponseStore(seconds=0.0)
    brief.add({"id": "a", "output": []}, [], [])
    with pytest.raises(ModelNotFound):
        brief.get("a")


class _Call:
    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
