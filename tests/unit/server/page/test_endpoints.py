"""The page's routes: every answer has the headers that keep strangers out, every body a limit."""

from __future__ import annotations

import re

import pytest
from page_application import Script, application
from starlette.testclient import TestClient

from crumb.server.page.endpoints import MOST_BYTES, SECURITY_HEADERS, is_file, static_files


@pytest.fixture
def client() -> TestClient:
    return TestClient(application(Script()))


PATHS = ["/", "/page/main.js", "/page/layout.css", "/page/icon.svg", "/page/none", "/page/card"]


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_has_the_headers_that_keep_strangers_out(
    client: TestClient, path: str
) -> None:
    answer = client.get(path)
    assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS


def test_the_policy_lets_nothing_in_but_our_own_files(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:|\*|data:|blob:", policy)


def test_the_page_has_no_inline_script_or_style_and_names_no_other_host(client: TestClient) -> None:
    html = client.get("/").text
    assert "<style" not in html
    assert not re.search(r"\s(style|on\w+)=", html)
    assert re.findall("<script([^>]*)>", html) == [' type="module" src="page/main.js"']
    for name, file in static_files().items():
        addresses = set(re.findall(r"https?://[^\s'\"]+", file.content.decode()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name


def test_every_file_that_the_page_and_its_modules_name_is_there(client: TestClient) -> None:
    html = client.get("/").text
    names = set(re.findall(r'(?:href|src)="page/([^"]+)"', html))
    for name, file in static_files().items():
        if name.endswith(".js"):
            names |= set(re.findall(r"from '\./([^']+)'", file.content.decode()))
    assert names == set(static_files()) - {"index.html"}
    assert {client.get(f"/page/{name}").status_code for name in names} == {200}


def test_every_module_opens_with_what_it_does_and_stays_short() -> None:
    for name, file in static_files().items():
        lines = file.content.decode().splitlines()
        assert len(lines) <= 200, name
        if name.endswith(".js"):
            assert lines[0].startswith("// "), name
        if name.endswith(".css"):
            assert lines[0].startswith("/* "), name


def test_html_enters_the_page_in_one_place_alone() -> None:
    for name, file in static_files().items():
        source = file.content.decode()
        sinks = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", source)
        assert sinks == (["innerHTML"] if name == "rendered_text.js" else []), name


def test_a_file_the_browser_has_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/page/main.js")
    again = client.get("/page/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")


@pytest.mark.parametrize("name", ["../endpoints.py", "..%2fendpoints.py", "endpoints.py"])
def test_no_file_beside_the_page_is_sent(client: TestClient, name: str) -> None:
    assert client.get(f"/page/{name}").status_code == 404


def test_files_are_for_everybody_and_the_rest_is_not() -> None:
    assert is_file("GET", "/")
    assert is_file("HEAD", "/page/main.js")
    assert not is_file("POST", "/page/render")
    assert not is_file("GET", "/page/card")
    assert not is_file("GET", "/v1/models")


def test_texts_are_rendered_together(client: TestClient) -> None:
    answer = client.post("/page/render", json={"texts": ["*a*", "b\n\nc"]})
    assert answer.json()["texts"] == [
        [{"line": 0, "html": "<p><em>a</em></p>\n"}],
        [{"line": 0, "html": "<p>b</p>\n"}, {"line": 2, "html": "<p>c</p>\n"}],
    ]


def test_only_the_last_text_grows(client: TestClient) -> None:
    texts = ["a\n--", "a\n--"]
    answer = client.post("/page/render", json={"texts": texts, "growing": True}).json()["texts"]
    assert [block["html"][:3] for text in answer for block in text] == ["<h4", "<p>"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"texts": "a"}', 400),
        (b'{"texts": [1]}', 400),
        (b'{"texts": [], "other": 1}', 400),
        (b'{"texts": ["\xff"]}', 400),
        (b'{"texts": ["\\ud800"]}', 400),
        (b'{"texts": ["' + b"a" * MOST_BYTES + b'"]}', 413),
    ],
)
def test_a_body_that_is_not_a_request_to_render_is_refused(
    client: TestClient, body: bytes, status: int
) -> None:
    answer = client.post("/page/render", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_a_form_of_another_page_cannot_ask_for_html(client: TestClient) -> None:
    """A content type that a form can send needs no preflight; only JSON is read."""
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = client.post(
            "/page/render", content=b'{"texts": []}', headers={"Content-Type": media_type}
        )
        assert answer.status_code == 415


def test_the_card_of_a_model_comes_with_the_memory_of_now(client: TestClient) -> None:
    answer = client.get("/page/card", params={"model": "small"}).json()
    assert answer["card"]["measured"]["kl_standard_error"] == 0.0007
    assert len(answer["card"]["stages"]) == 31
    assert 0 < answer["memory"]["now_bytes"] <= answer["memory"]["peak_bytes"]


def test_the_card_of_a_model_that_is_not_there_is_refused(client: TestClient) -> None:
    answer = client.get("/page/card", params={"model": "none"})
    assert answer.status_code == 404
    assert "none" in answer.json()["error"]["message"]
