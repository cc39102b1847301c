"""The server as one ASGI application: every protocol's routes behind one check of who asks.

In: settings and models. Out: a starlette application. It loads the first model when it starts, and
answers everything but requests for a model meanwhile.
A path that no table has is refused in OpenAI's words, a wrong method too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Match
from starlette.routing import Route as HttpRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from crumb.errors import CrumbError, ModelNotFound, UsageError
from crumb.server import page
from crumb.server.access import Access
from crumb.server.arrivals import Arrivals
from crumb.server.metrics import Metrics
from crumb.server.model_pool import ModelPool
from crumb.server.page.card import model_card
from crumb.server.protocol import Endpoint, HttpAnswer, ProtocolTable, Service
from crumb.server.protocols import PROTOCOLS
from crumb.server.protocols.openai import problem as openai_problem
from crumb.server.served_model import ServedModel
from crumb.server.settings import ServerSettings

LOGGER = logging.getLogger("crumb.server")

PoolOf = Callable[[Callable[[str, ServedModel], None]], ModelPool]
"""Told whom to tell, makes the pool; it belongs to the loop that it is made in."""


def application(settings: ServerSettings, pool_of: PoolOf) -> ASGIApp:
    """The whole server, with the chat page."""
    holder = _Holder()
    routes: list[BaseRoute] = []
    for protocol in PROTOCOLS:
        for route in protocol.routes:
            endpoint = _Late(holder, protocol, route)
            routes.append(ROUTE_KINDS.get(route.path, HttpRoute)(route.path, endpoint))
            routes[-1].methods = {route.method}  # type: ignore[attr-defined]
    routes += page.routes()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with running(settings, pool_of) as service:
            holder.service = service
            app.state.model_card = lambda name: model_card(service.pool.find(name).checkpoint)
            yield

    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={404: _no_route, 405: _no_method},
    )
    return Access(app, settings, is_open, problem_of)


class _Holder:
    """The service, which the event loop makes after the routes are made."""

    service: Service | None = None


class _Late:
    """A route's endpoint, once there is a service."""

    def __init__(self, holder: _Holder, protocol: ProtocolTable, route: Any) -> None:
        self._holder, self._protocol, self._route = holder, protocol, route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._holder.service is not None, "the application has started"
        await Endpoint(self._holder.service, self._protocol, self._route)(scope, receive, send)


class _UnlessPage(HttpRoute):
    """A route that leaves its path to the chat page where a browser asks for one."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        accept = b",".join(v for k, v in scope.get("headers", ()) if k == b"accept")
        if scope.get("method") == "GET" and b"text/html" in accept:
            return Match.NONE, {}
        return super().matches(scope)


ROUTE_KINDS: Mapping[str, type[HttpRoute]] = {"/": _UnlessPage}


@asynccontextmanager
async def running(settings: ServerSettings, pool_of: PoolOf) -> AsyncIterator[Service]:
    """What the routes share, from start to end."""
    pool = pool_of(_tell)
    service = Service(settings, pool, Metrics(), Arrivals(), _log)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(pool.close)
        for work in (pool.watch(), _load_first(service)):
            stack.push_async_callback(_ended, asyncio.create_task(work))
        yield service
        service.is_ending = True


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


async def _load_first(service: Service) -> None:
    try:
        await service.pool.load(None)
    except CrumbError as error:
        LOGGER.error("the first model cannot be loaded: %s", error)
    else:
        service.is_ready = True


def _log(facts: Mapping[str, Any]) -> None:
    LOGGER.info("%s", facts.get("event", ""), extra={"facts": dict(facts)})


def _tell(event: str, model: ServedModel) -> None:
    error = None if model.error is None else str(model.error)
    _log({"event": f"model {event}", "model": model.name, "error": error})


def is_open(method: str, path: str) -> bool:
    """Whether a route needs no key."""
    return page.is_file(method, path) or any(
        route.open and route.path == path and method in (route.method, "HEAD")
        for protocol in PROTOCOLS
        for route in protocol.routes
    )


def problem_of(path: str, error: CrumbError) -> HttpAnswer:
    """An error in the words of the protocol that a path belongs to."""
    for protocol in PROTOCOLS:
        for route in protocol.routes:
            if path == route.path:
                return protocol.problem(error.http_status, error, "")
    return openai_problem(error.http_status, error, "")


async def _no_route(request: Any, error: Exception) -> Any:
    del error
    path = request.url.path
    return _as_response(path, ModelNotFound(f"no route {path[:200]!r} here"), 404)


async def _no_method(request: Any, error: Exception) -> Any:
    del error
    path, method = request.url.path, request.method
    return _as_response(path, UsageError(f"{path[:200]} does not take {method[:20]}"), 405)


def _as_response(path: str, error: CrumbError, status: int) -> Any:
    from starlette.responses import Response

    answer = problem_of(path, error)
    return Response(answer.body, status, dict(answer.headers), answer.media_type)
