"""What other servers got wrong, each as a test here; the facts behind them are their issues.

A server of its own, whose engine can be slowed, made to say certain tokens, or made to fail.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from live_server import chat_model, data_of, live, served, until
from puppet_engine import Puppet

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
TEXT = "The old man looked at the sea."
ASK: dict[str, Any] = {"model": "novella", "prompt": TEXT, "temperature": 0}


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Puppet]:
    path = chat_model(tmp_path_factory.mktemp("models") / "novella-chat")
    models = [served("novella", path, waiting=2, sequences=4)]
    with live(lambda: models) as running:
        until(lambda: running.http.get("/health").status_code == 200)
        yield Puppet(running, models[0].model)


@pytest.fixture
def puppet(own_server: Puppet) -> Iterator[Puppet]:
    own_server.reset()
    yield own_server
    own_server.reset()
    until(own_server.idle)


def raw_request(puppet: Puppet, path: str, body: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", puppet.live.port), timeout=20)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/v1/messages", "/api/chat"])
def test_generation_ends_within_a_token_when_the_client_leaves(
    puppet: Puppet, path: str, stream: bool
) -> None:
    puppet.seconds = 0.1
    messages = [{"role": "user", "content": TEXT}]
    body = {"model": "novella", "stream": stream, "max_tokens": 200}
    if path == COMPLETIONS:
        body |= {"prompt": TEXT, "ignore_eos": True}
    elif path == "/api/chat":
        del body["max_tokens"]
        body |= {"messages": messages}
    else:
        body |= {"messages": messages}
    connection = raw_request(puppet, path, json.dumps(body).encode())
    until(lambda: puppet.steps >= 4)
    connection.close()
    left = puppet.steps
    until(puppet.idle)
    assert puppet.steps - left <= 3, "one step is on its way, one more may have begun"


def test_a_new_request_does_not_interrupt_a_running_one(puppet: Puppet) -> None:
    asked = ASK | {"max_tokens": 40}
    other = asked | {"prompt": "Once upon a time"}
    alone = [puppet.live.post(COMPLETIONS, **each) for each in (asked, other)]
    puppet.seconds = 0.005
    with ThreadPoolExecutor(2) as threads:
        together = list(
            threads.map(lambda each: puppet.live.post(COMPLETIONS, **each), (asked, other))
        )
    texts = [[each["choices"][0]["text"] for each in group] for group in (alone, together)]
    assert texts[0] == texts[1]


def streamed(puppet: Puppet, **body: Any) -> str:
    events = puppet.live.events(COMPLETIONS, **body)
    return "".join(each["choices"][0]["text"] for each in events[:-1])


def test_a_stop_string_split_across_tokens_does_not_leak(puppet: Puppet) -> None:
    answer = puppet.live.post(COMPLETIONS, **ASK, max_tokens=12, logprobs=0)
    text = answer["choices"][0]["text"]
    first, second = answer["choices"][0]["logprobs"]["tokens"][4:6]
    stop = first[-1:] + second[:2]
    at = text.index(stop)
    assert streamed(puppet, **ASK, max_tokens=12, stop=stop) == text[:at]
    whole = puppet.live.post(COMPLETIONS, **ASK, max_tokens=12, stop=[stop])
    assert whole["choices"][0]["text"] == text[:at]
    assert whole["choices"][0]["finish_reason"] == "stop"


def test_what_only_began_like_a_stop_string_is_not_lost(puppet: Puppet) -> None:
    text = puppet.live.post(COMPLETIONS, **ASK, max_tokens=12)["choices"][0]["text"]
    stop = text[-3:] + "never"
    assert streamed(puppet, **ASK, max_tokens=12, stop=stop) == text


def test_an_emoji_split_across_tokens_stays_whole(puppet: Puppet) -> None:
    text = " sea 🌊 man 👩‍🚀 end"
    tokens = puppet.model.tokenizer.encode(text, special=False)
    assert len(tokens) > 12, "several tokens for a character"
    puppet.forced = list(tokens)
    events = puppet.live.events(COMPLETIONS, **ASK, max_tokens=len(tokens))
    pieces = [each["choices"][0]["text"] for each in events[:-1]]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_emoji_that_is_cut_by_the_limit_is_whole_or_marked_at_the_end(puppet: Puppet) -> None:
    tokens = puppet.model.tokenizer.encode(" a 🌊", special=False)
    puppet.forced = list(tokens[:-1])
    text = streamed(puppet, **ASK, max_tokens=len(tokens) - 1)
    assert text.startswith(" a ")
    assert "\ufffd" not in text[:-1]


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}},
    ],
)
def test_a_schema_is_held_to_or_refused_but_never_ignored(
    puppet: Puppet, response_format: dict[str, Any]
) -> None:
    asked = {
        "model": "novella",
        "messages": [{"role": "user", "content": TEXT}],
        "max_tokens": 60,
        "temperature": 0,
        "response_format": response_format,
    }
    answer = puppet.live.http.post(CHAT, json=asked)
    if answer.status_code == 400:
        assert answer.json()["error"]["param"] == "response_format"
        return
    choice = answer.json()["choices"][0]
    if choice["finish_reason"] == "stop":
        json.loads(choice["message"]["content"])
    else:
        assert choice["message"]["content"].lstrip()[:1] in "{-0123456789"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (CHAT, 400),
        (COMPLETIONS, 400),
        ("/v1/messages", 413),
        ("/v1/responses", 400),
        ("/api/chat", 400),
        ("/api/generate", 400),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers_and_never_cut(
    puppet: Puppet, path: str, status: int
) -> None:
    long = "The sea was calm. " * 200
    chat = {"messages": [{"role": "user", "content": long}]}
    body = {
        CHAT: chat,
        COMPLETIONS: {"prompt": long},
        "/v1/messages": chat | {"max_tokens": 4},
        "/v1/responses": {"input": long},
        "/api/chat": chat,
        "/api/generate": {"prompt": long},
    }[path]
    answer = puppet.live.http.post(path, json=body | {"model": "novella"})
    assert answer.status_code == status
    assert "256" in answer.text
    assert "long" in answer.text
    if path in (CHAT, COMPLETIONS, "/v1/responses"):
        assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_the_end_of_a_text_has_its_finish_reason(puppet: Puppet, path: str) -> None:
    (end,) = puppet.model.tokenizer.end_tokens
    body: dict[str, Any] = {"model": "novella", "temperature": 0, "max_tokens": 9}
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": TEXT}]
    else:
        body["prompt"] = TEXT
    for stream in (False, True):
        puppet.forced = [*puppet.model.tokenizer.encode(" sea", special=False), end]
        if stream:
            reason = puppet.live.events(path, **body)[-2]["choices"][0]["finish_reason"]
        else:
            reason = puppet.live.post(path, **body)["choices"][0]["finish_reason"]
        assert reason == "stop"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/v1/messages", "/v1/responses", "/api/chat"])
def test_a_stream_is_over_after_an_error_and_the_server_goes_on(puppet: Puppet, path: str) -> None:
    chat = {"messages": [{"role": "user", "content": TEXT}]}
    body = {
        CHAT: chat,
        COMPLETIONS: {"prompt": TEXT},
        "/v1/messages": chat | {"max_tokens": 30},
        "/v1/responses": {"input": TEXT},
        "/api/chat": chat,
    }[path]
    puppet.seconds, puppet.fails_at = 0.05, puppet.steps + 6
    answer = puppet.live.http.post(path, json=body | {"model": "novella", "stream": True})
    assert answer.status_code in (200, 500), "500 where all came together with its first byte"
    last = [line for line in answer.text.split("\n") if line][-1]
    error = data_of(last)
    assert "error" in error
    assert "torn" not in answer.text, "what failed inside stays in the log"
    assert puppet.live.post(COMPLETIONS, **ASK, max_tokens=1)


def test_a_large_prompt_does_not_end_the_server(puppet: Puppet) -> None:
    answer = puppet.live.http.post(COMPLETIONS, json=ASK | {"prompt": "word " * 10000})
    assert answer.status_code == 400
    assert puppet.live.post(COMPLETIONS, **ASK, max_tokens=1)


def test_a_full_queue_is_503_with_when_to_come_again(puppet: Puppet) -> None:
    puppet.seconds = 0.4
    asked = ASK | {"max_tokens": 200, "ignore_eos": True}
    connections, scheduler = [], puppet.model.scheduler
    for running, waiting in (1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (4, 2):
        connections.append(raw_request(puppet, COMPLETIONS, json.dumps(asked).encode()))
        counts = (running, waiting)
        until(lambda counts=counts: (scheduler.running, scheduler.waiting) == counts)
    answer = puppet.live.http.post(COMPLETIONS, json=ASK)
    other = puppet.live.http.post(
        "/v1/messages",
        json={"model": "novella", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]},
    )
    for connection in connections:
        connection.close()
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-should-retry"] == "true"
    assert other.status_code == 529
    assert other.json()["error"]["type"] == "overloaded_error"


def test_an_error_that_will_not_pass_is_not_to_be_tried_again(puppet: Puppet) -> None:
    answer = puppet.live.http.post(COMPLETIONS, json=ASK | {"model": "other"})
    assert answer.headers["x-should-retry"] == "false"


RUDE = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b'{"model": "novella", "prompt": "\xff\xfe"}',
    b'{"model": "novella", "prompt": "x", "temperature": NaN}',
    b'{"model": "novella", "prompt": "x", "temperature": 1e999}',
    b'{"model": "novella", "prompt": "\\ud800"}',
    b'{"model": "novella", "prompt": ' + b"[" * 50000 + b"]" * 50000 + b"}",
    b'{"a":' * 20000 + b"1" + b"}" * 20000,
    b'{"model": "novella", "prompt": "x", "seed": 1' + b"0" * 5000 + b"}",
    b'{"model": "novella", "prompt": "x", "max_tokens": 1e40}',
    b'{"model": "novella", "prompt": "x", "logit_bias": {"1": 1e308, "2": -1e308}}',
    b'{"model": "' + b"m" * 100000 + b'", "prompt": "x"}',
    b'{"model": "novella", "prompt": "x", "stop": ["' + b"s" * 100000 + b'"]}',
)


@pytest.mark.parametrize("body", RUDE, ids=range(len(RUDE)))
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/v1/messages", "/v1/responses", "/api/chat"])
def test_what_is_no_request_is_a_4xx_in_the_protocols_words(
    puppet: Puppet, path: str, body: bytes
) -> None:
    answer = puppet.live.http.post(path, content=body)
    is_fine = b"1e308" in body and path == COMPLETIONS
    assert answer.status_code == 200 if is_fine else 400 <= answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text
    assert is_fine or answer.json()["error"]


def test_a_body_that_is_too_large_is_413_before_it_is_read(puppet: Puppet) -> None:
    connection = socket.create_connection(("127.0.0.1", puppet.live.port), timeout=20)
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 40}\r\n\r\n"
    connection.sendall(head.encode())
    assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]
    connection.close()


def test_many_who_leave_take_nothing_from_those_who_stay(puppet: Puppet) -> None:
    asked = ASK | {"max_tokens": 30}
    alone = puppet.live.post(COMPLETIONS, **asked)["choices"][0]["text"]
    end = threading.Event()

    def rude() -> None:
        body = json.dumps(asked | {"stream": True, "max_tokens": 200}).encode()
        while not end.is_set():
            connection = raw_request(puppet, COMPLETIONS, body)
            connection.recv(64)
            connection.close()

    threads = [threading.Thread(target=rude) for _ in range(2)]
    for thread in threads:
        thread.start()
    answers = []
    for _ in range(8):
        answer = puppet.live.http.post(COMPLETIONS, json=asked)
        if answer.status_code == 200:
            answers.append(answer.json()["choices"][0]["text"])
    end.set()
    for thread in threads:
        thread.join()
    assert answers
    assert set(answers) == {alone}
    assert np.isclose(puppet.model.engine.cache_use, 0.0) or until(puppet.idle)
