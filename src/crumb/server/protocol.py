"""What a protocol is: a table of routes, and how it says that something went wrong.

In: a route's handler and the record that it takes. Out: an ASGI application for the route, which
reads the body, runs the handler, writes its answer, and ends the work when the client leaves.
An error before the first byte has its status; one after it is written into the stream.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from crumb.errors import CrumbError, QueueFull
from crumb.server.arrivals import Arrivals
from crumb.server.bodies import Fields, decode_body, read_body
from crumb.server.metrics import Metrics
from crumb.server.model_pool import ModelPool
from crumb.server.settings import ServerSettings

LEFT = 499
"""The status in the log where the client left before an answer began."""

RETRY_SECONDS = 1
"""When a client may ask again that was told that there is no room."""

INTERNAL = "the server failed; its log has the reason under this request's id"


@dataclass
class Service:
    """What all routes of a server share."""

    settings: ServerSettings
    pool: ModelPool
    metrics: Metrics
    arrivals: Arrivals
    log: Callable[[Mapping[str, Any]], None]
    stores: dict[str, Any] = field(default_factory=dict)  # what a protocol remembers, by its name
    is_ready: bool = False  # the first model has been loaded once
    is_ending: bool = False  # it was told to shut down


@dataclass(frozen=True)
class HttpAnswer:
    """A whole answer."""

    content: Any  # bytes as they are, else made JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = "application/json"

    @property
    def body(self) -> bytes:
        return (
            self.content if isinstance(self.content, bytes) else msgspec.json.encode(self.content)
        )


@dataclass(frozen=True)
class HttpStream:
    """An answer in pieces, as they come."""

    pieces: AsyncGenerator[bytes]
    media_type: str = "text/event-stream"


Problem = Callable[[int, CrumbError, str], HttpAnswer]
"""Status, error, the request's id -> what a protocol answers."""


class Call:
    """One request of a client, and what goes back to it."""

    def __init__(
        self, service: Service, protocol: ProtocolTable, request: Request, send: Send
    ) -> None:
        self.service, self.request = service, request
        self._protocol, self._send = protocol, send
        self.id = request_id(request.headers.get("x-request-id", ""))
        self.started = time.perf_counter()
        self.facts: dict[str, Any] = {}  # for the log: counts, never text
        self.status: int | None = None  # once the answer has begun
        self.is_sent = False  # all of it is on its way

    async def answer(self, answer: HttpAnswer) -> None:
        """Send one answer."""
        body = answer.body
        headers = {
            "content-type": answer.media_type,
            "content-length": str(len(body)),
            **answer.headers,
        }
        await self._start(answer.status, headers)
        await self._end(body)

    async def stream(self, stream: HttpStream) -> None:
        """Send pieces as they come. However it ends, the source of the pieces is told."""
        pieces = stream.pieces
        try:
            first = await anext(pieces, None)  # what fails before it has a status of its own
            headers = {"content-type": stream.media_type, "cache-control": "no-store"}
            await self._start(200, headers | {"x-accel-buffering": "no"})
            if first is not None:
                await self._piece(first)
                async for piece in pieces:
                    await self._piece(piece)
            await self._end()
        finally:
            await pieces.aclose()

    async def problem(self, error: CrumbError) -> None:
        """An error, in the protocol's words."""
        status = error.http_status
        self.facts["error"] = type(error).__name__
        if self.status is not None:  # the answer has begun
            await self._end(self._protocol.late_problem(status, error))
            return
        answer = self._protocol.problem(status, error, self.id)
        is_passing = isinstance(error, QueueFull)
        headers = {"x-should-retry": "true" if is_passing else "false", **answer.headers}
        if is_passing:
            headers["retry-after"] = str(RETRY_SECONDS)
        await self.answer(HttpAnswer(answer.content, answer.status, headers, answer.media_type))

    async def _piece(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def _end(self, piece: bytes = b"") -> None:
        self.is_sent = True
        await self._send({"type": "http.response.body", "body": piece, "more_body": False})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        every = {self._protocol.id_header: self.id, **headers}
        raw = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in every.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


def request_id(text: str) -> str:
    """The id that a client gave, where it is one, or a new one."""
    is_plain = 0 < len(text) <= 100 and text.isascii() and text.isprintable()
    return text if is_plain else f"req_{secrets.token_hex(12)}"


Handler = Callable[[Call, Any], Awaitable[None]]


@dataclass(frozen=True)
class Route:
    """One row of a protocol's table."""

    method: str
    path: str  # as starlette writes them: /v1/models/{id:path}
    handler: Handler
    body: type[msgspec.Struct] | None = None
    fields: Fields = field(default_factory=Fields)
    about: str = ""
    open: bool = False  # answered without a key
    in_document: bool = True


@dataclass(frozen=True)
class ProtocolTable:
    """A table of routes with one shape of errors."""

    name: str
    routes: Sequence[Route]
    problem: Problem
    late_problem: Callable[[int, CrumbError], bytes]  # once the stream has begun
    id_header: str = "x-request-id"


class Endpoint:
    """One route as an ASGI application."""

    def __init__(self, service: Service, protocol: ProtocolTable, route: Route) -> None:
        self._service, self._protocol, self._route = service, protocol, route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(self._service, self._protocol, Request(scope, receive), send)
        try:
            await self._respond(call, receive)
        except (ClientDisconnect, OSError):  # nobody reads what we have to say
            call.facts["left"] = True
        except asyncio.CancelledError:
            call.facts["left"] = True
            raise
        finally:
            self._note(call)

    def _note(self, call: Call) -> None:
        status = call.status or LEFT
        self._service.metrics.responded(self._route.path, status)
        self._service.log(
            {
                "event": "request",
                "id": call.id,
                "method": self._route.method,
                "path": self._route.path,
                "status": status,
                "seconds": round(time.perf_counter() - call.started, 4),
                **call.facts,
            }
        )

    async def _respond(self, call: Call, receive: Receive) -> None:
        """Work until the answer is sent or the client has left."""
        try:
            body = await self._body(call)
        except CrumbError as error:
            await call.problem(error)
            return
        work = asyncio.create_task(self._work(call, body))
        watch = asyncio.create_task(_until_disconnect(receive))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or call.is_sent:  # a client that has everything may leave
                await work
            else:
                call.facts["left"] = True
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _body(self, call: Call) -> Any:
        if self._route.body is None:
            return None
        settings = self._service.settings
        content = await read_body(call.request, settings.body_bytes, settings.body_seconds)
        call.facts["body_bytes"] = len(content)
        if settings.log_prompts:
            call.facts["body"] = content.decode(errors="replace")
        return decode_body(content, self._route.body, self._route.fields)

    async def _work(self, call: Call, body: Any) -> None:
        """The handler and all that it writes."""
        try:
            await self._route.handler(call, body)
        except CrumbError as error:
            await call.problem(error)
        except (OSError, ClientDisconnect):
            raise
        except Exception as error:
            call.facts["failure"] = f"{type(error).__name__}: {str(error)[:300]}"
            await call.problem(CrumbError(INTERNAL))


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
