"""`crumb serve` as a process of its own: from its start to the signal that ends it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from live_server import chat_model, until

from crumb.kernels.engine import PAGE_TOKENS

SECRET = "a word that nobody else says"


@contextmanager
def process(
    model: Path, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server, its address, and the lines of its log."""
    command = [sys.executable, "-m", "crumb", "serve", f"novella={model}", "--threads", "1"]
    environment = os.environ | {"CRUMB_PORT": "0"} | variables
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    assert running.stderr is not None
    reader = threading.Thread(target=lambda: lines.extend(iter(running.stderr.readline, "")))
    reader.start()
    try:
        address = until(lambda: re.search(r"http://[\d.]+:\d+", "".join(lines)), 60)[0]
        with httpx2.Client(base_url=address, trust_env=False, timeout=30) as client:
            until(lambda: client.get("/health").status_code == 200)
        yield running, address, lines
    finally:
        running.kill()
        running.wait(20)
        reader.join(20)
        running.stderr.close()


def ask(address: str, tokens: int, stream: bool) -> httpx2.Response:
    body = {
        "messages": [{"role": "user", "content": SECRET}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
    }
    return httpx2.post(f"{address}/v1/chat/completions", json=body, timeout=30, trust_env=False)


def test_a_signal_lets_what_runs_end_and_the_log_has_no_word_of_it(tmp_path: Path) -> None:
    variables = {"CRUMB_CONTEXT": "512", "CRUMB_CACHE_DIR": str(tmp_path / "pages")}
    with process(chat_model(tmp_path / "m"), **variables) as (running, address, lines):
        answers: list[httpx2.Response] = []
        asking = threading.Thread(target=lambda: answers.append(ask(address, 400, True)))
        asking.start()
        metrics = f"{address}/metrics"
        until(lambda: "num_requests_running 1.0" in httpx2.get(metrics, trust_env=False).text)
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
        asking.join(30)
        assert answers[0].text.rstrip().endswith("data: [DONE]")
    logs = [json.loads(line) for line in lines if line.startswith("{")]
    requests = [each for each in logs if each["event"] == "request"]
    assert any(each.get("completion_tokens") == 400 for each in requests)
    assert SECRET not in "".join(lines)
    assert logs[0]["event"] == "model loaded"
    assert len(list((tmp_path / "pages").glob("*.page"))) >= 400 // PAGE_TOKENS


def test_a_deadline_ends_what_runs_for_too_long(tmp_path: Path) -> None:
    variables = {"CRUMB_CONTEXT": "512", "CRUMB_SHUTDOWN_SECONDS": "1"}
    with process(chat_model(tmp_path / "m"), **variables) as (running, address, _):
        asking = [threading.Thread(target=_try, args=(address,), daemon=True) for _ in range(40)]
        for each in asking:
            each.start()
        metrics = f"{address}/metrics"
        until(lambda: "num_requests_running 0.0" not in httpx2.get(metrics, trust_env=False).text)
        running.send_signal(signal.SIGTERM)
        running.wait(20)


def _try(address: str) -> None:
    try:
        ask(address, 400, True)
    except httpx2.HTTPError:
        return
