"""Connections: a head that never ends is not waited for, an answer that takes its time is."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from live_server import chat_model, live, served

from crumb.server import connections


def closed_after(connection: socket.socket) -> float:
    begin = time.monotonic()
    connection.settimeout(20)
    while connection.recv(4096):
        pass
    return time.monotonic() - begin


def test_a_head_that_does_not_end_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    path = chat_model(tmp_path / "m")
    with live(lambda: [served("novella", path)]) as running:
        address = ("127.0.0.1", running.port)
        for words in (b"", b"POST /v1/completions HTTP/1.1\r\nHost", b"GET /health HTTP/1.1\r\n"):
            with socket.create_connection(address) as connection:
                connection.sendall(words)
                assert closed_after(connection) < 10
        with socket.create_connection(address) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
            assert closed_after(connection) < 10, "the second request of a connection too"
        answer = running.http.post(
            "/v1/completions",
            json={"prompt": "The sea", "max_tokens": 200, "ignore_eos": True, "n": 8},
        )
        assert answer.status_code == 200, "an answer may take longer"
