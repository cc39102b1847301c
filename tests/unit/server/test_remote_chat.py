"""`crumb chat --url`: a chat with a server, as with a model of this process."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from live_server import Live

from crumb.cli.generation_options import TextOptions
from crumb.cli.main import main
from crumb.cli.remote_conversation import RemoteConversation
from crumb.errors import CrumbError, UsageError

Capsys = pytest.CaptureFixture[str]

GREEDY = TextOptions(max_tokens=12, temperature=0)


def untold(index: int, piece: Any) -> None:
    """What is said of pieces that nobody looks at."""


def test_an_answer_is_the_servers_with_its_counts(server: Live) -> None:
    chat = RemoteConversation(server.url, None, None, GREEDY)
    pieces: list[str] = []
    answer = chat.answer("Hello", lambda _, piece: pieces.append(piece.text), threading.Event())
    whole = server.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=12,
        temperature=0,
    )
    assert chat.model_name == "novella"
    assert "".join(pieces) == answer.generation.text == whole["choices"][0]["message"]["content"]
    assert answer.generation.completion_tokens == 12
    assert answer.generation.finish_reason == "length"
    assert [each.role for each in chat.turns] == ["user", "assistant"]


def test_a_cancelled_answer_keeps_what_was_said(server: Live) -> None:
    chat = RemoteConversation(f"{server.url}/v1/", None, "novella", TextOptions(max_tokens=200))
    cancelled = threading.Event()
    seen: list[str] = []

    def piece(_: int, each: Any) -> None:
        seen.append(each.text)
        if len(seen) > 4:
            cancelled.set()

    answer = chat.answer("Hello", piece, cancelled)
    assert answer.generation.finish_reason == "cancelled"
    assert chat.turns[-1].content == "".join(seen)


def test_what_the_server_refuses_is_told_and_the_turns_stay(server: Live) -> None:
    chat = RemoteConversation(server.url, None, "other", GREEDY)
    with pytest.raises(CrumbError, match=r"404.*not found"):
        chat.answer("Hello", untold, threading.Event())
    assert chat.turns == []


def test_an_address_where_nobody_answers_is_one_line() -> None:
    with pytest.raises(CrumbError, match="does not answer"):
        RemoteConversation("http://127.0.0.1:1", None, None, GREEDY)
    with pytest.raises(UsageError, match="--url"):
        RemoteConversation("localhost:8080", None, None, GREEDY)


def test_the_command_talks_to_a_server_from_a_pipe(
    server: Live, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n/stats\n"))
    assert main(["chat", "--url", server.url, "--max-tokens", "3", "--temperature", "0"]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip()
    assert "novella at http" in shown.err
