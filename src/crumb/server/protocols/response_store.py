"""Responses that are remembered, so that the next one can go on from them.

In: responses with the items they were asked with. Out: their history by id. At most so many, for
so long; the longest unused go first. Refuses unknown ids, with 404.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crumb.errors import ModelNotFound
from crumb.server.protocol import Service

MOST = 512
SECONDS = 3600.0
"""How many are remembered, and for how long after they were last used."""


@dataclass
class Remembered:
    """One response and what led to it."""

    response: Mapping[str, Any]
    own: Sequence[Mapping[str, Any]]  # items of its request
    items: Sequence[Mapping[str, Any]]  # those before it too
    used: float = field(default_factory=time.monotonic)


class ResponseStore:
    """All responses of one server."""

    def __init__(self, most: int = MOST, seconds: float = SECONDS) -> None:
        self._most, self._seconds = most, seconds
        self._responses: OrderedDict[str, Remembered] = OrderedDict()

    def __len__(self) -> int:
        return len(self._responses)

    def add(
        self,
        response: Mapping[str, Any],
        own: Sequence[Mapping[str, Any]],
        items: Sequence[Mapping[str, Any]],
    ) -> None:
        """Remember a response."""
        self._drop_old()
        self._responses[response["id"]] = Remembered(response, own, items)
        while len(self._responses) > self._most:
            self._responses.popitem(last=False)

    def get(self, id: str) -> Remembered:
        """A response. Raises: ModelNotFound."""
        self._drop_old()
        remembered = self._responses.get(id)
        if remembered is None:
            raise ModelNotFound(
                f"response {id[:100]!r} not found",
                where="previous_response_id",
                do="It was not stored, or forgotten: send the whole history",
            )
        remembered.used = time.monotonic()
        self._responses.move_to_end(id)
        return remembered

    def remove(self, id: str) -> None:
        """Forget a response. Raises: ModelNotFound."""
        self.get(id)
        del self._responses[id]

    def history(self, id: str | None) -> list[Mapping[str, Any]]:
        """Items up to and with a response. Raises: ModelNotFound."""
        if id is None:
            return []
        remembered = self.get(id)
        return [*remembered.items, *remembered.response["output"]]

    def item(self, id: str) -> Mapping[str, Any] | None:
        """An item that a response gave out."""
        for remembered in self._responses.values():
            for item in (*remembered.response["output"], *remembered.own):
                if item.get("id") == id:
                    return dict(item)
        return None

    def _drop_old(self) -> None:
        oldest = time.monotonic() - self._seconds
        while self._responses and next(iter(self._responses.values())).used < oldest:
            self._responses.popitem(last=False)


def store_of(service: Service) -> ResponseStore:
    """The store of a server."""
    store: ResponseStore = service.stores.setdefault("responses", ResponseStore())
    return store
