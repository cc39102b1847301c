"""Routes of the chat page: the page, its files, markdown as HTML, the card of a model.

In: requests of the page's own scripts. Out: starlette routes; every answer carries the headers of
`SECURITY_HEADERS`, so that nothing from elsewhere runs in the page and nobody frames it.
The application that mounts them has `state.model_card`: a model's name -> its ModelCard.
Refuses bodies over MOST_BYTES, and bodies that are not what `RenderRequest` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import Any, cast

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from crumb.errors import CrumbError
from crumb.server.page.card import ModelCard, ProcessMemory, process_memory
from crumb.server.page.markdown import RenderedBlock, render_blocks

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types crumb-rendered",
    )
)

SECURITY_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

MOST_BYTES = 1 << 20
"""Of a body that asks for HTML."""


class RenderRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Texts to render."""

    texts: list[str]
    growing: bool = False  # the last of them goes on


class RenderAnswer(msgspec.Struct, frozen=True):
    """Blocks of each text."""

    texts: list[list[RenderedBlock]]


class CardAnswer(msgspec.Struct, frozen=True):
    """A model's card, and what the process takes while it is asked."""

    card: ModelCard
    memory: ProcessMemory


@dataclass(frozen=True)
class StaticFile:
    """A file of the page as it is sent."""

    content: bytes
    media_type: str
    tag: str  # changes when the content does


@cache
def static_files() -> Mapping[str, StaticFile]:
    """Every file of the page by its name."""
    files = {}
    for entry in resources.files(__package__).joinpath("static").iterdir():
        media_type = MEDIA_TYPES.get(PurePath(entry.name).suffix)
        if media_type:
            content = entry.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            files[entry.name] = StaticFile(content, media_type, tag)
    return files


def routes() -> list[BaseRoute]:
    """What the application mounts at its root."""
    return [
        Route("/", page),
        Route("/page/render", render, methods=["POST"]),
        Route("/page/card", card),
        Route("/page/{name}", static),
    ]


def is_file(method: str, path: str) -> bool:
    """Whether a request is for the page or one of its files: they are the same for everybody."""
    name = path.removeprefix("/page/")
    return method in ("GET", "HEAD") and (path == "/" or name in static_files())


def page(request: Request) -> Response:
    """The page itself; programs that ask for no HTML may be answered by others there."""
    answer = sent(static_files()["index.html"], request)
    answer.headers["Vary"] = "Accept"
    return answer


def static(request: Request) -> Response:
    """One file of the page."""
    file = static_files().get(request.path_params["name"])
    if file is None:
        return refusal(404, "the page has no such file")
    return sent(file, request)


def sent(file: StaticFile, request: Request) -> Response:
    """A file, or word that the browser has it already: it asks each time, so it is never old."""
    headers = {**SECURITY_HEADERS, "Cache-Control": "no-cache", "ETag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "Content-Type": file.media_type})


async def render(request: Request) -> Response:
    """Markdown as HTML, in a thread of its own: long code takes a while."""
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        return refusal(415, "a body of type application/json is needed")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            return refusal(413, f"the texts have more than {MOST_BYTES} bytes")
    try:
        asked = msgspec.json.decode(body, type=RenderRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return refusal(400, f"not a request to render: {error}")
    return answered(await run_in_threadpool(rendered, asked))


def rendered(asked: RenderRequest) -> RenderAnswer:
    """The blocks of all texts."""
    last = len(asked.texts) - 1
    return RenderAnswer(
        [
            render_blocks(text, growing=asked.growing and index == last)
            for index, text in enumerate(asked.texts)
        ]
    )


async def card(request: Request) -> Response:
    """The card of the model whose name is asked for."""
    card_of = cast(Callable[[str], ModelCard], request.app.state.model_card)
    try:
        model = await run_in_threadpool(card_of, request.query_params.get("model", ""))
    except CrumbError as error:
        return refusal(error.http_status, str(error))
    return answered(CardAnswer(model, process_memory()))


def answered(value: Any, status: int = 200) -> Response:
    """A value as JSON that no cache keeps."""
    headers = {**SECURITY_HEADERS, "Cache-Control": "no-store"}
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def refusal(status: int, message: str) -> Response:
    """An error in the shape that the page's scripts read everywhere."""
    return answered({"error": {"message": message, "type": "page_error", "code": None}}, status)
