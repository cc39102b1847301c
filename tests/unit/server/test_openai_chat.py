"""/v1/chat/completions: whole answers and streams, as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any

import pytest
from live_server import Live

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {
    "model": "novella",
    "messages": [{"role": "user", "content": "Tell me of the sea."}],
    "temperature": 0,
}


def content_of(events: list[Any]) -> str:
    deltas = [
        each["choices"][0]["delta"] for each in events if each != "[DONE]" and each["choices"]
    ]
    return "".join(delta.get("content") or "" for delta in deltas)


def test_a_whole_answer_has_what_clients_read(server: Live) -> None:
    answer = server.post(CHAT, **ASK, max_tokens=8)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "novella"
    choice = answer["choices"][0]
    assert choice["index"] == 0
    assert choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    usage = answer["usage"]
    assert usage["completion_tokens"] == 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + 8


def test_a_stream_is_the_whole_answer_in_pieces(server: Live) -> None:
    whole = server.post(CHAT, **ASK, max_tokens=12)["choices"][0]["message"]["content"]
    events = server.events(CHAT, **ASK, max_tokens=12)
    assert events[-1] == "[DONE]"
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert content_of(events) == whole
    reasons = [each["choices"][0]["finish_reason"] for each in events[:-1]]
    assert reasons[:-1] == [None] * (len(reasons) - 1), "null, never empty, until the last"
    assert reasons[-1] == "length"
    assert len({(each["id"], each["created"]) for each in events[:-1]}) == 1


def test_usage_comes_in_a_stream_only_when_it_is_asked_for(server: Live) -> None:
    plain = server.events(CHAT, **ASK, max_tokens=4)
    assert all("usage" not in each for each in plain[:-1])
    events = server.events(CHAT, **ASK, max_tokens=4, stream_options={"include_usage": True})
    last = events[-2]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4


def test_max_completion_tokens_counts_as_max_tokens(server: Live) -> None:
    answer = server.post(CHAT, **ASK, max_completion_tokens=3)
    assert answer["usage"]["completion_tokens"] == 3


def test_several_choices_come_with_their_index(server: Live) -> None:
    asked = ASK | {"temperature": 1.0, "seed": 5, "n": 3, "max_tokens": 6}
    answer = server.post(CHAT, **asked)
    assert [each["index"] for each in answer["choices"]] == [0, 1, 2]
    assert len({each["message"]["content"] for each in answer["choices"]}) > 1
    assert answer["usage"]["completion_tokens"] == 18
    events = server.events(CHAT, **asked)
    for index in range(3):
        mine = [e["choices"][0] for e in events[:-1] if e["choices"][0]["index"] == index]
        text = "".join(each["delta"].get("content") or "" for each in mine)
        assert text == answer["choices"][index]["message"]["content"]


def test_a_seed_gives_the_same_answer_again(server: Live) -> None:
    asked = ASK | {"temperature": 1.0, "seed": -3, "max_tokens": 10}
    first, second = (server.post(CHAT, **asked)["choices"] for _ in range(2))
    assert first == second


def test_logprobs_belong_to_the_tokens_of_the_text(server: Live) -> None:
    answer = server.post(CHAT, **ASK, max_tokens=5, logprobs=True, top_logprobs=2)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 5
    for token in content:
        assert token["logprob"] <= 0
        assert len(token["top_logprobs"]) == 2
        assert token["logprob"] == token["top_logprobs"][0]["logprob"], "greedy took the best"
    streamed = server.events(CHAT, **ASK, max_tokens=5, logprobs=True, top_logprobs=2)
    parts = [each["choices"][0]["logprobs"] for each in streamed[:-1]]
    assert [token for part in parts if part for token in part["content"]] == content


def test_parts_of_text_are_one_text(server: Live) -> None:
    parts = [{"type": "text", "text": "Tell me "}, {"type": "text", "text": "of the sea."}]
    asked = ASK | {"messages": [{"role": "user", "content": parts}], "max_tokens": 6}
    plain = server.post(CHAT, **ASK, max_tokens=6)
    assert server.post(CHAT, **asked)["choices"] == plain["choices"]


def test_a_developer_is_the_system(server: Live) -> None:
    def asked(role: str) -> dict[str, Any]:
        return ASK | {"messages": [{"role": role, "content": "Be brief."}, *ASK["messages"]]}

    one, other = (
        server.post(CHAT, **asked(role), max_tokens=6) for role in ("system", "developer")
    )
    assert one["choices"] == other["choices"]


def test_an_answer_goes_on_from_its_beginning(server: Live) -> None:
    first = server.post(CHAT, **ASK, max_tokens=4)["choices"][0]["message"]["content"]
    both = server.post(CHAT, **ASK, max_tokens=8)["choices"][0]["message"]["content"]
    messages = [*ASK["messages"], {"role": "assistant", "content": first}]
    rest = server.post(
        CHAT, **(ASK | {"messages": messages}), max_tokens=4, continue_final_message=True
    )
    assert first + rest["choices"][0]["message"]["content"] == both


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("temperature", 1000),
        ("top_p", 2),
        ("max_tokens", 1.5),
        ("n", 0),
        ("stop", [1]),
        ("logit_bias", {"x": 1}),
        ("messages", []),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        ("response_format", {"type": "xml"}),
        ("temprature", 1),
        ("functions", [{"name": "f"}]),
        ("tool_choice", "some"),
    ],
)
def test_a_field_that_cannot_be_is_refused_by_its_name(
    server: Live, field: str, value: Any
) -> None:
    status, answer = server.refused(CHAT, **(ASK | {field: value}))
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert field in f"{answer['error']['param']} {answer['error']['message']}"


@pytest.mark.parametrize(
    ("field", "value"),
    [("user", "me"), ("store", False), ("metadata", {}), ("audio", None), ("functions", [])],
)
def test_a_field_that_changes_nothing_is_let_pass(server: Live, field: str, value: Any) -> None:
    assert server.post(CHAT, **(ASK | {field: value}), max_tokens=1)["choices"]


def test_an_unknown_model_is_404_with_its_code(server: Live) -> None:
    status, answer = server.refused(CHAT, **(ASK | {"model": "gpt-9"}))
    assert status == 404
    assert answer["error"]["code"] == "model_not_found"
