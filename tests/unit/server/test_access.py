"""Who may ask a server: keys, names it is asked under, and pages of others."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from crumb.errors import UsageError
from crumb.server.access import Access
from crumb.server.application import is_open, problem_of
from crumb.server.settings import ServerSettings, is_loopback


def ask(method: str = "GET", path: str = "/v1/models", **more: Any) -> Any:
    """An answer to one request; `settings` are the server's."""
    settings = ServerSettings(**more.pop("settings", {}))
    headers = {"host": "127.0.0.1:8080", **more.pop("headers", {})}

    async def answered(_: Any) -> PlainTextResponse:
        return PlainTextResponse("secret")

    inner = Starlette(routes=[Route("/{path:path}", answered, methods=["GET", "POST", "HEAD"])])
    transport = httpx2.ASGITransport(Access(inner, settings, is_open, problem_of))

    async def send() -> Any:
        async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


KEYS = {"settings": {"host": "0.0.0.0", "keys": ("sesame",)}}


def test_beyond_loopback_a_server_does_not_start_without_a_key() -> None:
    with pytest.raises(UsageError, match="--api-key"):
        ServerSettings(host="0.0.0.0")
    assert ServerSettings(host="0.0.0.0", no_auth=True)
    assert ServerSettings(host="0.0.0.0", keys=("k",))


@pytest.mark.parametrize(
    ("host", "own"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False)]
)
def test_loopback_is_this_machine_alone(host: str, own: bool) -> None:
    assert is_loopback(host) is own


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sesame"},
        {"authorization": "bearer sesame"},
        {"x-api-key": "sesame"},
        {"api-key": "sesame"},
    ],
)
def test_a_key_is_taken_in_every_way_that_clients_send_it(headers: dict[str, str]) -> None:
    assert ask(headers=headers, **KEYS).text == "secret"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer open"},
        {"authorization": "sesame"},
        {"x-api-key": ""},
        {"authorization": "Basic c2VzYW1l"},
    ],
)
def test_without_the_key_nothing_is_answered(headers: dict[str, str]) -> None:
    answer = ask(headers=headers, **KEYS)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert "www-authenticate" in answer.headers


@pytest.mark.parametrize(
    "path", ["/v1/models", "/metrics", "/api/tags", "/openapi.json", "/nowhere"]
)
def test_every_route_but_health_and_the_files_of_the_page_needs_the_key(path: str) -> None:
    assert ask(path=path, **KEYS).status_code == 401
    assert ask(path="/health", **KEYS).text == "secret"


def test_an_error_of_access_has_the_shape_of_its_protocol() -> None:
    answer = ask("POST", "/v1/messages", **KEYS)
    assert answer.json()["error"]["type"] == "authentication_error"
    assert isinstance(ask("POST", "/api/chat", **KEYS).json()["error"], str)


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "[::1]:8080", "10.1.2.3"])
def test_a_server_without_keys_is_asked_under_addresses_and_localhost(host: str) -> None:
    assert ask(headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "a@127.0.0.1", "["])
def test_a_name_that_is_led_here_is_refused(host: str) -> None:
    answer = ask(headers={"host": host})
    assert answer.status_code == 403
    assert "secret" not in answer.text


def test_a_name_can_be_allowed() -> None:
    allowed = {"settings": {"hosts": ("Chat.Example",)}}
    assert ask(headers={"host": "chat.example"}, **allowed).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9999"])
def test_a_page_of_another_origin_can_neither_read_nor_post(method: str, origin: str) -> None:
    answer = ask(method, "/v1/chat/completions", headers={"origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_our_own_page_may_ask() -> None:
    answer = ask("POST", headers={"origin": "http://127.0.0.1:8080"})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_an_allowed_origin_may_read_and_its_preflight_is_answered() -> None:
    allowed = {"settings": {"origins": ("https://chat.example",)}}
    origin = {"origin": "https://chat.example"}
    answer = ask("POST", headers=origin, **allowed)
    assert answer.headers["access-control-allow-origin"] == origin["origin"]
    preflight = ask("OPTIONS", headers=origin, **allowed)
    assert preflight.status_code == 204
    assert "POST" in preflight.headers["access-control-allow-methods"]
    other = ask("OPTIONS", headers={"origin": "https://evil.example"}, **allowed)
    assert other.status_code == 403
