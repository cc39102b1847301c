"""Ollama's API: its lines, its numbers, and what front ends ask of models."""

from __future__ import annotations

import json
from typing import Any

import pytest
from live_server import Live

from crumb.errors import UsageError
from crumb.server.protocols.ollama_asking import keep_seconds

CHAT: dict[str, Any] = {
    "model": "novella:latest",
    "messages": [{"role": "user", "content": "Tell me of the sea."}],
    "options": {"temperature": 0, "num_predict": 8, "num_ctx": 4096, "num_gpu": 1},
    "tools": [],
}
LAST = (
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
)


def lines_of(server: Live, path: str, **body: Any) -> list[dict[str, Any]]:
    answer = server.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = answer.text.split("\n")
    assert lines[-1] == ""
    assert "" not in lines[:-1], "clients choke on an empty line"
    return [json.loads(line) for line in lines[:-1]]


def test_a_chat_streams_by_default_one_object_a_line(server: Live) -> None:
    lines = lines_of(server, "/api/chat", **CHAT)
    whole = server.post("/api/chat", **CHAT, stream=False)
    assert "".join(each["message"]["content"] for each in lines) == whole["message"]["content"]
    assert all(each["message"]["role"] == "assistant" for each in lines)
    assert [each["done"] for each in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["done_reason"] == whole["done_reason"] == "length"
    for answer in (lines[-1], whole):
        assert all(answer[name] > 0 for name in LAST)
        assert answer["eval_count"] == 8


def test_a_text_is_answered_under_response(server: Live) -> None:
    options = CHAT["options"]
    asked = {"model": "novella", "prompt": "The sea", "options": options}
    lines = lines_of(server, "/api/generate", **asked)
    whole = server.post("/api/generate", **asked, stream=False)
    assert "".join(each["response"] for each in lines) == whole["response"]
    raw = server.post("/api/generate", **asked, stream=False, raw=True)
    continued = server.post(
        "/v1/completions", model="novella", prompt="The sea", max_tokens=8, temperature=0
    )
    assert raw["response"] == continued["choices"][0]["text"]


def test_an_empty_prompt_only_loads_the_model(server: Live) -> None:
    assert server.post("/api/generate", model="novella")["done_reason"] == "load"
    assert server.post("/api/chat", model="novella", messages=[])["done_reason"] == "load"


def test_vectors_come_in_a_list(server: Live) -> None:
    answer = server.post("/api/embed", model="novella", input=["One", "Two"], dimensions=8)
    assert [len(each) for each in answer["embeddings"]] == [8, 8]
    old = server.post("/api/embeddings", model="novella", prompt="One")
    assert len(old["embedding"]) > 8


def test_a_text_that_is_cut_for_its_vector_says_so(server: Live) -> None:
    long = "The sea was calm. " * 200
    answer = server.post("/api/embed", model="novella", input=long)
    assert answer["truncated_tokens"] > 0
    status, error = server.refused("/api/embed", model="novella", input=long, truncate=False)
    assert status == 400
    assert "context" in error["error"]


def test_models_are_listed_as_front_ends_read_them(server: Live) -> None:
    (model,) = server.http.get("/api/tags").json()["models"]
    assert model["name"] == model["model"] == "novella"
    assert model["size"] > 0
    assert model["modified_at"].endswith("Z")
    (running,) = server.http.get("/api/ps").json()["models"]
    assert running["context_length"] == 256
    assert running["expires_at"]
    assert server.http.get("/api/version").json()["version"].count(".") == 2
    for key in ("model", "name"):
        shown = server.post("/api/show", **{key: "novella"})
        assert shown["model_info"]["general.architecture"]
        assert all(len(line.split()) == 2 for line in shown["parameters"].split("\n"))


def test_the_root_says_what_clients_look_for(server: Live) -> None:
    assert server.http.get("/").text == "Ollama is running"
    assert server.http.head("/").status_code == 200


@pytest.mark.parametrize("path", ["/api/pull", "/api/push", "/api/create", "/api/copy"])
def test_models_are_not_changed_over_http(server: Live, path: str) -> None:
    status, answer = server.refused(path, model="x")
    assert status == 501
    assert isinstance(answer["error"], str)


def test_errors_are_a_text(server: Live) -> None:
    status, answer = server.refused("/api/chat", **(CHAT | {"model": "other"}))
    assert status == 404
    assert "not found" in answer["error"]
    status, answer = server.refused("/api/chat", **(CHAT | {"options": {"heat": 1}}))
    assert status == 400
    assert "options.heat" in answer["error"]


@pytest.mark.parametrize(
    ("keep", "seconds"),
    [(None, None), (0, 0), ("5m", 300), ("1h30m", 5400), ("300", 300), (-1, "inf"), ("-1m", "inf")],
)
def test_a_span_of_time_is_read_as_go_writes_it(keep: Any, seconds: Any) -> None:
    assert keep_seconds(keep) == (None if seconds is None else float(seconds))


def test_what_is_no_span_of_time_is_refused() -> None:
    with pytest.raises(UsageError, match="keep_alive"):
        keep_seconds("soon")
