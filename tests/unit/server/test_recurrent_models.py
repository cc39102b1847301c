"""Completions and chats of a model that keeps a state, over HTTP and the shell.

In: a tiny RWKV-4 behind a server of its own. Out: what the model itself gives, streamed or whole,
turn after turn; a dry run whose memory does not grow with the context.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import crumb as shell
from live_server import TEMPLATE, Live, live, served, until
from recurrent_models import write_recurrent_model

import crumb

TEXT = "User: say the 12\n\n" * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_recurrent_model(tmp_path_factory.mktemp("models") / "rwkv")
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Live]:
    with live(lambda: [served("rwkv", folder, context=2048)], log_prompts=False) as server:
        until(lambda: server.http.get("/health").status_code == 200)
        yield server


@pytest.fixture(scope="module")
def answer(folder: Path) -> Any:
    with crumb.load(folder, threads=1) as model:
        return model.generate(TEXT, max_tokens=9)


def test_a_completion_goes_on_with_the_text(running: Live, answer: Any) -> None:
    asked = {"model": "rwkv", "prompt": [TEXT] * 3, "max_tokens": 9, "temperature": 0}
    whole = running.post("/v1/completions", **asked)
    assert [each["text"] for each in whole["choices"]] == [answer.text] * 3
    events = running.events("/v1/completions", **asked | {"prompt": TEXT})[:-1]
    assert "".join(each["choices"][0]["text"] for each in events) == answer.text


def test_a_chat_goes_on_from_the_state_of_its_last_turn(running: Live) -> None:
    messages = [{"role": "user", "content": TEXT}]
    asked = {"model": "rwkv", "max_tokens": 9, "temperature": 0}
    first = running.post("/v1/chat/completions", messages=messages, **asked)
    messages += [first["choices"][0]["message"] | {"role": "assistant"}]
    messages += [{"role": "user", "content": "then the"}]
    second = running.post("/v1/chat/completions", messages=messages, **asked)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"] - 1


def test_the_shell_answers_the_same_and_plans_the_same_memory_for_any_context(
    folder: Path, answer: Any, capsys: Any
) -> None:
    done = shell(capsys, "generate", folder, TEXT, "--max-tokens", 9, "--threads", 1)
    assert done.code == 0
    assert done.out.rstrip("\n") == answer.text.rstrip("\n")
    caches = set()
    for context in (100, 100_000):
        dry = shell(capsys, "generate", folder, "--dry-run", "--context", context)
        assert dry.code == 0
        caches.add(dry.out.partition("cache ")[2].partition(",")[0])
    assert len(caches) == 1
