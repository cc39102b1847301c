"""Lines of Ollama's answers: JSON objects, one for each beat of a reply, or one for all.

In: pieces of a reply. Out: a chat's or a text's lines; the last one says why it ended, with counts
and nanoseconds that are never 0, for clients divide by them. Calls come whole.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from crumb.pieces import Content, Piece, Reasoning
from crumb.server.protocol import Call
from crumb.server.protocols.ollama_asking import OllamaBody
from crumb.server.protocols.openai import arguments_object, note_usage, whole_calls
from crumb.server.replies import Beat, Ending, Finish, Replies, WholeReply, reading

DONE_REASONS = {
    Finish.END: "stop",
    Finish.STOP_STRING: "stop",
    Finish.TOOL_CALLS: "stop",
    Finish.MAX_TOKENS: "length",
    Finish.CONTEXT: "length",
}


class Lines:
    """Writes one answer; what differs between a chat and a text is in `content`."""

    def __init__(self, call: Call, body: OllamaBody) -> None:
        self._call, self._body = call, body

    def content(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """What the pieces are in a line."""
        raise NotImplementedError

    def whole(self, whole: WholeReply, ending: Ending) -> dict[str, Any]:
        """One object."""
        line = self._line(self.content(whole.pieces), done=True)
        return line | self._logprobs(whole.logprobs) | self._last(ending)

    async def stream(self, replies: Replies) -> AsyncGenerator[bytes]:
        """One object a line. Calls come whole, once all of their arguments are there."""
        calls: list[Piece] = []
        async with reading(replies) as beats:
            async for beat in beats:
                for line in self._beat(beat, calls):
                    yield msgspec.json.encode(line) + b"\n"

    def _beat(self, beat: Beat, calls: list[Piece]) -> list[dict[str, Any]]:
        texts = [each for each in beat.pieces if isinstance(each, Content | Reasoning)]
        calls += [each for each in beat.pieces if not isinstance(each, Content | Reasoning)]
        lines = []
        if texts or beat.logprobs:
            content = self.content(texts) | self._logprobs(beat.logprobs)
            lines.append(self._line(content, done=False))
        if beat.ending is not None:
            if calls:
                lines.append(self._line(self.content(calls), done=False))
            lines.append(self._line(self.content(()), done=True) | self._last(beat.ending))
        return lines

    def _line(self, content: Mapping[str, Any], done: bool) -> dict[str, Any]:
        return {"model": self._body.model, "created_at": stamp(), **content, "done": done}

    def _logprobs(self, tokens: Sequence[Any]) -> dict[str, Any]:
        if not self._body.logprobs:
            return {}
        return {"logprobs": [_logprob(each) for each in tokens]}

    def _last(self, ending: Ending) -> dict[str, Any]:
        """Why it ended, counts, and nanoseconds that are never 0."""
        note_usage(self._call, [ending])
        generation, times = ending.generation, ending.generation.timings
        total = time.perf_counter() - self._call.started
        return {
            "done_reason": DONE_REASONS[ending.finish],
            "total_duration": nanoseconds(total),
            "load_duration": nanoseconds(times.queue_seconds),
            "prompt_eval_count": generation.prompt_tokens,
            "prompt_eval_duration": nanoseconds(times.prompt_seconds),
            "eval_count": generation.completion_tokens,
            "eval_duration": nanoseconds(times.decode_seconds),
        }


class ChatLines(Lines):
    """Lines of a chat."""

    def content(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """A message."""
        message: dict[str, Any] = {"role": "assistant", "content": _content(pieces)}
        if thought := _thinking(pieces):
            message["thinking"] = thought
        calls = whole_calls(pieces)
        if calls:
            message["tool_calls"] = [
                {
                    "id": each["id"],
                    "function": {
                        "index": index,
                        "name": each["function"]["name"],
                        "arguments": arguments_object(each["function"]["arguments"]),
                    },
                }
                for index, each in enumerate(calls)
            ]
        return {"message": message}


class GenerateLines(Lines):
    """Lines of a text."""

    def content(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """A response."""
        thought = _thinking(pieces)
        return {"response": _content(pieces)} | ({"thinking": thought} if thought else {})


def _content(pieces: Sequence[Piece]) -> str:
    return "".join(each.text for each in pieces if isinstance(each, Content))


def _thinking(pieces: Sequence[Piece]) -> str:
    return "".join(each.text for each in pieces if isinstance(each, Reasoning))


def _logprob(each: Any) -> dict[str, Any]:
    def entry(token: Any) -> dict[str, Any]:
        return {
            "token": token.text,
            "logprob": token.logprob,
            "bytes": list(token.text.encode()),
        }

    return entry(each) | {"top_logprobs": [entry(top) for top in each.top]}


def nanoseconds(seconds: float) -> int:
    """Nanoseconds, at least one: clients divide by them."""
    return max(1, round(seconds * 1e9))


def stamp(seconds: float | None = None) -> str:
    """A time as RFC 3339 has it; now, where none is named."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
