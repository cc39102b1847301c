"""Clients of a chat server on loopback, polite ones: what they were sent, and when.

In: a port, bodies. Out: for each request its text, tokens, the time to the first one and the times
between. Plain asyncio streams: a client costs little of the processors that the server needs.
Refuses addresses beyond this machine.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"
READ_SECONDS = 600.0


@dataclass
class Heard:
    """One request's answer."""

    status: int = 0
    text: str = ""
    tokens: int = 0
    begun: float = 0.0
    first: float | None = None
    last: float = 0.0
    gaps: list[float] = field(default_factory=list)  # seconds between pieces, for each token
    gap_ends: list[float] = field(default_factory=list)

    @property
    def first_seconds(self) -> float:
        return (self.first or self.last) - self.begun


def head_of(path: str, length: int) -> bytes:
    """The head of a POST."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


async def ask(port: int, path: str, body: dict[str, Any], heard: Heard | None = None) -> Heard:
    """One streamed request, read to its end; `heard` may be looked at meanwhile."""
    content = json.dumps(body | {"stream": True}).encode()
    heard = heard or Heard()
    heard.begun = time.perf_counter()
    reader, writer = await asyncio.open_connection(HOST, port, limit=1 << 22)
    try:
        writer.write(head_of(path, len(content)) + content)
        await writer.drain()
        status = await asyncio.wait_for(reader.readline(), READ_SECONDS)
        heard.status = int(status.split()[1])
        while line := await asyncio.wait_for(reader.readline(), READ_SECONDS):
            if line.startswith(b"data: {"):
                _take(heard, json.loads(line[6:]))
    finally:
        writer.close()
    heard.last = time.perf_counter()
    return heard


def _take(heard: Heard, event: dict[str, Any]) -> None:
    now = time.perf_counter()
    usage = event.get("usage")
    if usage:
        heard.tokens = usage["completion_tokens"]
    for choice in event.get("choices") or ():
        text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        if not text:
            continue
        heard.text += text
        if heard.first is None:
            heard.first = now
        else:
            heard.gaps.append(now - heard.last)
            heard.gap_ends.append(now)
        heard.last = now


def quantile(values: list[float], share: float) -> float:
    """The value below which this share lies; NaN of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
