"""A chat with a server: any that answers OpenAI's clients.

In: its address, a key, a model's name, messages. Out: answers as they come, with the server's own
counts. Python's own HTTP client, so nothing more is installed for it.
Refuses an address where nobody answers, and tells what the server said where it refuses.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from crumb.cli.conversation import Answer, PieceListener, Turns
from crumb.cli.generation_options import TextOptions, parse_bias
from crumb.errors import CrumbError, UsageError
from crumb.run.generation import FinishReason, Generation, TextPiece, Timings

ANSWER_SECONDS = 600.0
"""How long a server may be silent."""

OTHER_NAMES = {"ignore_end": "ignore_eos"}
"""Our settings that servers know by another name."""

OWN_ENGINE = {"speculate"}
"""Settings of an engine that runs here: no request carries them."""


class RemoteConversation(Turns):
    """A chat with a server."""

    def __init__(
        self,
        url: str,
        key: str | None,
        model: str | None,
        text: TextOptions,
        system: str | None = None,
    ) -> None:
        """Raises: UsageError for an address that is none, CrumbError where nobody answers."""
        super().__init__(text, system)
        if urlsplit(url).scheme not in ("http", "https"):
            raise UsageError("no address of a server", where="--url", found=url[:100])
        address = url.rstrip("/")
        self._address = address if address.endswith("/v1") else f"{address}/v1"
        self._key = key
        self.model_name = model or self._first_model()

    def about(self) -> str:
        """Who answers."""
        return f"{self.model_name} at {self._address}"

    def reply(self, text: TextOptions, piece: PieceListener, cancelled: threading.Event) -> Answer:
        """What the server answers, until it ends or is cancelled."""
        body = {
            "model": self.model_name,
            "messages": [{"role": m.role, "content": m.content} for m in self.messages()],
            "stream": True,
            "stream_options": {"include_usage": True},
            **settings_of(text),
        }
        begin, first = time.perf_counter(), 0.0
        reason = FinishReason.CANCELLED
        usage: dict[str, Any] = {}
        texts: list[str] = []
        with self._opened("/chat/completions", body) as answer:
            for event in events_of(answer):
                if cancelled.is_set():
                    break
                if "error" in event:
                    raise CrumbError(f"the server ended the answer: {message_of(event)}")
                usage = event.get("usage") or usage
                for choice in event.get("choices", ()):
                    words = (choice.get("delta") or {}).get("content") or ""
                    first = first or (time.perf_counter() if words else 0.0)
                    texts.append(words)
                    piece(0, TextPiece(words, ()))
                    if choice.get("finish_reason"):
                        is_cut = choice["finish_reason"] == "length"
                        reason = FinishReason.LENGTH if is_cut else FinishReason.STOP
        end = time.perf_counter()
        return Answer(generation("".join(texts), reason, usage, begin, first or end, end))

    def _first_model(self) -> str:
        with self._opened("/models", None) as answer:
            listed = json.loads(answer.read())
        try:
            return str(listed["data"][0]["id"])
        except (LookupError, TypeError) as error:
            raise CrumbError("the server lists no models", where=self._address) from error

    @contextmanager
    def _opened(self, path: str, body: Any) -> Iterator[HTTPResponse]:
        """An answer of the server. Raises: CrumbError."""
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = Request(self._address + path, data, headers)
            with urlopen(request, timeout=ANSWER_SECONDS) as answer:
                yield answer
        except HTTPError as error:
            said = message_of(_json(error.read()))
            raise CrumbError(f"the server refuses ({error.code}): {said}") from error
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise CrumbError(
                f"the server does not answer: {reason}", where=self._address
            ) from error


def settings_of(text: TextOptions) -> dict[str, Any]:
    """The settings that were given, as a server knows them."""
    settings: dict[str, Any] = {}
    for each in fields(TextOptions):
        value = None if each.name in OWN_ENGINE else getattr(text, each.name)
        if value is not None and value is not False and value != ():
            settings[OTHER_NAMES.get(each.name, each.name)] = value
    if "logit_bias" in settings:
        settings["logit_bias"] = dict(map(parse_bias, text.logit_bias))
    return settings


def events_of(answer: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a stream, until [DONE]."""
    for line in answer:
        text = line.decode(errors="replace").strip()
        if text == "data: [DONE]":
            return
        if text.startswith("data:"):
            event = _json(text.removeprefix("data:").encode())
            if isinstance(event, dict):
                yield event


def generation(
    text: str, reason: FinishReason, usage: Any, begin: float, first: float, end: float
) -> Generation:
    """What is known of an answer from outside: its counts, and times as they arrived."""
    prompt, completion = (int(usage.get(f"{n}_tokens") or 0) for n in ("prompt", "completion"))
    cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    reading, writing = first - begin, end - first
    timings = Timings(
        0.0,
        reading,
        writing,
        (prompt - cached) / reading if reading > 0 else 0.0,
        max(completion - 1, 0) / writing if writing > 0 else 0.0,
    )
    return Generation(
        text=text,
        tokens=(),
        finish_reason=reason,
        stop_string=None,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        logprobs=None,
        prompt_logprobs=None,
        timings=timings,
        peak_memory_bytes=0,
    )


def message_of(content: Any) -> str:
    """What a server says of an error, in whatever shape."""
    error = content.get("error", content) if isinstance(content, dict) else content
    said = error.get("message", error) if isinstance(error, dict) else error
    return str(said)[:500]


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")[:500]
