"""Completions and chats of a model that reads a text before it writes, over HTTP and the shell.

In: a tiny T5 behind a server of its own. Out: what the model itself gives, streamed or whole; what
it cannot do, refused by the protocol's own words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import crumb as shell
from live_server import Live, live, served, until
from source_models import write_source_model

import crumb

TEXT = "Where does the old captain live?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source_model(tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Live]:
    with live(lambda: [served("t5", folder, context=96)], log_prompts=False) as server:
        until(lambda: server.http.get("/health").status_code == 200)
        yield server


@pytest.fixture(scope="module")
def answer(folder: Path) -> Any:
    with crumb.load(folder, context_tokens=96, threads=1) as model:
        return model.generate(TEXT, max_tokens=9)


def test_a_completion_answers_the_text(running: Live, answer: Any) -> None:
    asked = {"model": "t5", "prompt": [TEXT] * 3, "max_tokens": 9, "temperature": 0}
    whole = running.post("/v1/completions", **asked)
    assert [each["text"] for each in whole["choices"]] == [answer.text] * 3
    assert whole["usage"]["prompt_tokens"] == 3 * answer.prompt_tokens
    events = running.events("/v1/completions", **asked | {"prompt": TEXT})[:-1]
    assert "".join(each["choices"][0]["text"] for each in events) == answer.text


def test_a_chat_answers_its_messages(running: Live, answer: Any) -> None:
    messages = [{"role": "user", "content": TEXT}]
    asked = {"model": "t5", "messages": messages, "max_tokens": 9, "temperature": 0}
    whole = running.post("/v1/chat/completions", **asked)
    assert whole["choices"][0]["message"]["content"] == answer.text.strip()
    assert whole["usage"]["prompt_tokens"] == answer.prompt_tokens


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v1/completions", {"prompt": ""}, "the text to read is empty"),
        ("/v1/completions", {"prompt": [[5] * 97]}, "97"),
        ("/v1/completions", {"prompt": TEXT, "echo": True, "logprobs": 1}, "scores what it writes"),
        ("/v1/embeddings", {"input": TEXT}, "no vector"),
    ],
)
def test_what_it_cannot_do_is_refused(
    running: Live, path: str, body: dict[str, Any], told: str
) -> None:
    status, error = running.refused(path, model="t5", **body)
    assert status == 400
    assert told in str(error)


def test_the_shell_answers_the_same(folder: Path, answer: Any, capsys: Any) -> None:
    small = ("--context", 96, "--threads", 1)
    done = shell(capsys, "generate", folder, TEXT, "--max-tokens", 9, *small)
    assert done.code == 0
    assert done.out.rstrip("\n") == answer.text.rstrip("\n")
    dry = shell(capsys, "generate", folder, "--dry-run", *small)
    assert dry.code == 0
    assert "cache" in dry.out
