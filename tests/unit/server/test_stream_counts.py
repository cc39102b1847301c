"""Counts in the middle of a stream: how far a prompt is read, how many tokens there are."""

from __future__ import annotations

from typing import Any

import pytest
from live_server import Live

from crumb.server.protocols import openai_chat

MESSAGES = [{"role": "user", "content": "The sea was calm and the old man waited. " * 12}]


def chunks(server: Live, **body: Any) -> list[dict[str, Any]]:
    """The chunks of a short chat."""
    events = server.events("/v1/chat/completions", messages=MESSAGES, max_tokens=8, **body)
    assert events[-1] == "[DONE]"
    return events[:-1]


def test_a_prompt_tells_how_far_it_is_read_where_that_is_asked(
    server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_chat, "PROGRESS_SECONDS", 1e-4)
    came = chunks(server, return_progress=True, stream_options={"include_usage": True})
    prompt_tokens = came[-1]["usage"]["prompt_tokens"]
    told = [chunk["prompt_progress"] for chunk in came if "prompt_progress" in chunk]
    assert told
    assert {each["total"] for each in told} == {prompt_tokens}
    processed = [each["processed"] for each in told]
    assert processed == sorted(processed)
    assert all(0 <= each["cache"] <= each["total"] for each in told)
    first_text = next(
        index for index, chunk in enumerate(came) if chunk["choices"][0]["delta"].get("content")
    )
    assert all("prompt_progress" not in chunk for chunk in came[first_text:])


def test_a_prompt_tells_nothing_where_that_is_not_asked(
    server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_chat, "PROGRESS_SECONDS", 1e-4)
    assert all("prompt_progress" not in chunk for chunk in chunks(server))


def test_every_chunk_counts_the_tokens_where_that_is_asked(server: Live) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    came = chunks(server, stream_options=options, ignore_eos=True)
    counts = [chunk["usage"]["completion_tokens"] for chunk in came]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2] == 8
    assert len({chunk["usage"]["prompt_tokens"] for chunk in came}) == 1


def test_usage_is_null_before_the_last_chunk_where_nothing_more_is_asked(server: Live) -> None:
    came = chunks(server, stream_options={"include_usage": True})
    assert {chunk["usage"] for chunk in came[:-1]} == {None}
