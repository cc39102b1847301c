"""Writes a response of /v1/responses: whole, or as events.

In: beats of one reply. Out: items of output (reasoning, message, calls), each with its events in
the order that clients need: added, part added, deltas, done. Whole and streamed are one code.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from crumb.pieces import Content, Piece, Reasoning, ToolCallStart
from crumb.run.generation import TokenLogprob
from crumb.server.protocol import Call
from crumb.server.protocols.openai import PING, chat_logprobs, note_usage, now
from crumb.server.replies import Ending, Finish, Replies, WholeReply, reading

INCOMPLETE = (Finish.MAX_TOKENS, Finish.CONTEXT)


class ResponseWriter:
    """One response on its way."""

    def __init__(self, call: Call, model: str, echo: Mapping[str, Any]) -> None:
        self._call = call
        self._head = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": now(),
            "model": model,
        }
        self._echo = echo
        self._items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the item that is being written
        self._sequence = 0

    def whole(self, whole: WholeReply, ending: Ending) -> dict[str, Any]:
        """A response."""
        for piece in whole.pieces:
            self._piece(piece)
        self._add_logprobs(whole.logprobs)
        self._close(self._status(ending))
        return self._ended(ending)

    async def events(
        self, replies: Replies, remember: Callable[[Mapping[str, Any]], None]
    ) -> AsyncGenerator[bytes]:
        """A response's events."""
        begun = self._response("in_progress")
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        async with reading(replies) as beats:
            async for beat in beats:
                if beat.is_silence:
                    yield PING
                    continue
                events = [event for piece in beat.pieces for event in self._piece(piece)]
                self._add_logprobs(beat.logprobs)
                if beat.ending is not None:
                    events += self._close(self._status(beat.ending))
                    response = self._ended(beat.ending)
                    remember(response)
                    events.append(self._event(f"response.{response['status']}", response=response))
                if events:
                    yield b"".join(events)

    def _status(self, ending: Ending) -> str:
        return "incomplete" if ending.finish in INCOMPLETE else "completed"

    def _ended(self, ending: Ending) -> dict[str, Any]:
        note_usage(self._call, [ending])
        generation = ending.generation
        status = self._status(ending)
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        total = generation.prompt_tokens + generation.completion_tokens
        return self._response(status) | {
            "incomplete_details": reason,
            "completed_at": now(),
            "usage": {
                "input_tokens": generation.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": generation.cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": generation.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": ending.reasoning_tokens},
                "total_tokens": total,
            },
        }

    def _response(self, status: str) -> dict[str, Any]:
        return {
            **self._head,
            "status": status,
            "output": [dict(item) for item in self._items],
            "error": None,
            "incomplete_details": None,
            "usage": None,
            **self._echo,
        }

    def _piece(self, piece: Piece) -> list[bytes]:
        """The events of a piece; another kind of item ends the one before."""
        if isinstance(piece, Content):
            events = self._begin_message() if self._kind != "message" else []
            part = self._items[-1]["content"][0]
            part["text"] += piece.text
            delta = {"content_index": 0, "delta": piece.text, "logprobs": []}
            return [*events, self._item_event("response.output_text.delta", **delta)]
        if isinstance(piece, Reasoning):
            events = self._begin_reasoning() if self._kind != "reasoning" else []
            self._items[-1]["content"][0]["text"] += piece.text
            delta = {"content_index": 0, "delta": piece.text}
            return [*events, self._item_event("response.reasoning_text.delta", **delta)]
        if isinstance(piece, ToolCallStart):
            item = {
                "id": f"fc_{secrets.token_hex(12)}",
                "type": "function_call",
                "call_id": piece.id,
                "name": piece.name,
                "arguments": "",
                "status": "in_progress",
            }
            return self._begin(item)
        self._items[-1]["arguments"] += piece.text
        return [self._item_event("response.function_call_arguments.delta", delta=piece.text)]

    @property
    def _kind(self) -> str | None:
        return None if self._open is None else self._open["type"]

    def _begin(self, item: dict[str, Any]) -> list[bytes]:
        events = self._close("completed")
        self._items.append(item)
        self._open = item
        return [*events, self._added(item)]

    def _added(self, item: Mapping[str, Any]) -> bytes:
        """The item as it begins: without content."""
        bare = {**item, "content": []} if "content" in item else dict(item)
        index = len(self._items) - 1
        return self._event("response.output_item.added", output_index=index, item=bare)

    def _begin_message(self) -> list[bytes]:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [part],
        }
        events = self._begin(item)
        added = {"content_index": 0, "part": dict(part)}
        return [*events, self._item_event("response.content_part.added", **added)]

    def _begin_reasoning(self) -> list[bytes]:
        item = {
            "id": f"rs_{secrets.token_hex(12)}",
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": ""}],
            "status": "in_progress",
        }
        return self._begin(item)

    def _close(self, status: str) -> list[bytes]:
        """The events that end the open item."""
        item, self._open = self._open, None
        if item is None:
            return []
        item["status"] = status
        events = []
        if item["type"] == "message":
            part = dict(item["content"][0])
            text = {"content_index": 0, "text": part["text"], "logprobs": part["logprobs"]}
            events.append(self._item_event("response.output_text.done", **text))
            done = {"content_index": 0, "part": part}
            events.append(self._item_event("response.content_part.done", **done))
        elif item["type"] == "reasoning":
            text = {"content_index": 0, "text": item["content"][0]["text"]}
            events.append(self._item_event("response.reasoning_text.done", **text))
        else:
            done = {"arguments": item["arguments"], "name": item["name"]}
            events.append(self._item_event("response.function_call_arguments.done", **done))
        index = len(self._items) - 1
        events.append(self._event("response.output_item.done", output_index=index, item=dict(item)))
        return events

    def _add_logprobs(self, tokens: Sequence[TokenLogprob]) -> None:
        if tokens and self._items and self._items[-1]["type"] == "message":
            self._items[-1]["content"][0]["logprobs"] += chat_logprobs(tokens)

    def _item_event(self, kind: str, **content: Any) -> bytes:
        index = len(self._items) - 1
        return self._event(kind, output_index=index, item_id=self._items[-1]["id"], **content)

    def _event(self, kind: str, **content: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._sequence, **content}
        self._sequence += 1
        return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
