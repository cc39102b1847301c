"""Texts that are only read: their vectors or scores, some at a time.

In: a leased model and requests. Out: their results, in order. Whoever stops waiting cancels them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crumb.requests.reading_request import EmbedRequest, ScoreRequest
from crumb.run.handle import Handle
from crumb.server.arrivals import Inbox
from crumb.server.protocol import Call
from crumb.server.served_model import ServedModel
from crumb.server.waves import Wave


async def read_all(
    call: Call, served: ServedModel, requests: Sequence[EmbedRequest | ScoreRequest]
) -> list[Any]:
    """Results of all requests. Raises: the first error, QueueFull."""
    inbox = Inbox(call.service.arrivals)
    model = served.loaded

    def submit(index: int) -> Handle[Any]:
        return model.submit(requests[index], id=call.id, sink=inbox.sink(index))

    wave = Wave(len(requests), submit)
    results: list[Any] = [None] * len(requests)
    try:
        wave.submit_more()
        left = len(requests)
        while left:
            for index, piece in await inbox.next(None):
                if piece is None:
                    left -= 1
                    results[index] = wave.end(index).result(0)
        return results
    finally:
        wave.cancel()
