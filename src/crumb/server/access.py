"""Who may ask a server: keys, the names it is asked under, and pages of others.

In: a request's headers. Out: the request passed on, or an error that says what to do. On loopback
the protection is against pages in a browser: a name that leads here without being ours, or an
Origin that is not ours, is refused. Beyond it a key is needed on every route but those that say so.
Source: the Fetch standard for Origin and preflight requests.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crumb.errors import CrumbError, KeyRefused, OriginRefused
from crumb.server.protocol import HttpAnswer
from crumb.server.settings import ServerSettings

ALLOWED_METHODS = "GET, POST, DELETE, OPTIONS"
PREFLIGHT_SECONDS = "600"

ProblemOf = Callable[[str, CrumbError], HttpAnswer]
"""Path, error -> the answer of the path's protocol."""


class Access:
    """The outermost layer: refuses, or passes on."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        is_open: Callable[[str, str], bool],
        problem_of: ProblemOf,
    ) -> None:
        """`is_open`: whether a method and path need no key."""
        self._app, self._settings = app, settings
        self._is_open, self._problem_of = is_open, problem_of
        self._hosts = {each.lower() for each in settings.hosts}
        self._origins = {each.rstrip("/").lower() for each in settings.origins}
        self._keys = [key.encode() for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        try:
            self._check_host(headers)
            origin = self._check_origin(headers)
            if origin is not None:
                send = _with_cors(send, origin)
            if scope["method"] == "OPTIONS":
                await _send(send, _preflight(headers))
                return
            if self._keys and not self._is_open(scope["method"], path):
                self._check_key(headers)
        except CrumbError as error:
            answer = self._problem_of(path, error)
            if isinstance(error, KeyRefused):
                answer = replace(answer, headers={**answer.headers, "www-authenticate": "Bearer"})
            await _send(send, answer)
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        """A name that leads here must be ours: a page elsewhere could have it point to us."""
        host = _name(headers.get("host", ""))
        if self._keys or _is_address(host) or host in ("localhost", *self._hosts):
            return
        raise OriginRefused(
            "this server is not asked under this name",
            where="Host",
            found=host[:100],
            do="Start it with --allowed-host and the name",
        )

    def _check_origin(self, headers: Headers) -> str | None:
        """The page of another origin that may read the answer; None where there is none."""
        origin = headers.get("origin")
        if origin is None:
            return None
        page = origin.rstrip("/").lower()
        if page in self._origins or "*" in self._origins:
            return origin
        if page != "null" and urlsplit(page).netloc == headers.get("host", "").lower():
            return None
        raise OriginRefused(
            "pages of this origin may not ask this server",
            where="Origin",
            found=origin[:100],
            do="Start it with --allowed-origin and the origin",
        )

    def _check_key(self, headers: Headers) -> None:
        keys = list(_keys_in(headers))
        for key in keys:
            if any(hmac.compare_digest(key, ours) for ours in self._keys):
                return
        raise KeyRefused(
            "this API key is not known here" if keys else "an API key is needed",
            do="Send it as Authorization: Bearer, or as x-api-key",
        )


def _keys_in(headers: Headers) -> Iterable[bytes]:
    """Keys as the clients send them."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield value.strip().encode()
    for name in ("x-api-key", "api-key"):
        if name in headers:
            yield headers[name].strip().encode()


def _name(host: str) -> str:
    """A Host header without its port."""
    try:
        parts = urlsplit(f"//{host}")
    except ValueError:
        return ""
    return (parts.hostname or "") if parts.netloc == host and "@" not in host else ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _preflight(headers: Headers) -> HttpAnswer:
    asked = headers.get("access-control-request-headers", "content-type, authorization")
    return HttpAnswer(
        b"",
        204,
        {
            "access-control-allow-methods": ALLOWED_METHODS,
            "access-control-allow-headers": asked[:1000],
            "access-control-max-age": PREFLIGHT_SECONDS,
        },
        "text/plain",
    )


def _with_cors(send: Send, origin: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["access-control-allow-origin"] = origin
            headers.add_vary_header("Origin")
        await send(message)

    return sending


async def _send(send: Send, answer: HttpAnswer) -> None:
    headers: Mapping[str, str] = {
        "content-type": answer.media_type,
        "content-length": str(len(answer.body)),
        **answer.headers,
    }
    raw = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})
