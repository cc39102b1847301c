"""Strangers and the chat page: what a model writes, pages of other origins, other hosts.

The pages of other origins ask the real server; what it refuses is its own to test as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from live_server import Live, chat_model, live, served, until
from page_application import Script

pytestmark = pytest.mark.oracle

HOSTILE = """<script>window.ran = 1</script><img src=x onerror="window.ran = 2">

[a](javascript:window.ran=3) ![b](https://example.org/spy.png)

```html
<script>window.ran = 4</script>
```

| a |
|---|
| <svg onload="window.ran = 5"> |
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The real server with the embedded model twice."""
    path = chat_model(tmp_path_factory.mktemp("models") / "novella-chat")
    models = lambda: [served(name, path) for name in ("novella", "second")]  # noqa: E731
    with live(models) as running:
        until(lambda: running.http.get("/health").status_code == 200)
        yield running


def test_what_a_model_writes_runs_nothing_and_loads_nothing(opened: Any, script: Script) -> None:
    script.answer = script.thinking = HOSTILE
    hosts = set()
    opened.page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    opened.ask(HOSTILE)
    opened.answer.locator(".thinking summary").click()
    opened.answer.locator(".thinking figure").wait_for()
    opened.page.reload()
    opened.page.wait_for_selector("#messages .assistant figure")
    assert opened.page.evaluate("window.ran") is None
    assert opened.page.locator("#messages :is(script, img, svg:not([class]))").count() == 0
    assert hosts == {urlsplit(opened.url).netloc}


def test_titles_and_files_of_strangers_are_text(opened: Any) -> None:
    opened.ask("<img src=x onerror='window.ran = 1'>")
    assert opened.page.locator("#conversations .name").inner_text().startswith("<img")
    assert opened.page.evaluate("window.ran") is None


def test_the_browser_itself_refuses_inline_scripts_and_html_from_elsewhere(
    browser: Any, url: str
) -> None:
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    refused = page.evaluate(
        """() => {
            const script = document.createElement('script');
            try { script.textContent = 'window.ran = 1'; document.body.append(script); }
            catch (error) { return [error.name, window.ran]; }
            return ['none', window.ran];
        }"""
    )
    assert refused[1] is None
    html = "() => { try { document.body.innerHTML = '<b>'; } catch (e) { return e.name; } }"
    assert page.evaluate(html) == "TypeError"
    page.close()


READS = """async (address) => {
    const told = {};
    for (const [name, path, options] of [
        ['models', '/v1/models', {}],
        ['card', '/page/card?model=novella', {}],
        ['chat', '/v1/chat/completions', { method: 'POST', body: '{"messages":[]}',
                                           headers: { 'Content-Type': 'application/json' } }],
        ['plain', '/v1/chat/completions', { method: 'POST', body:
            '{"messages":[{"role":"user","content":"x"}],"max_tokens":1}' }],
        ['blind', '/v1/chat/completions', { method: 'POST', mode: 'no-cors', body:
            '{"messages":[{"role":"user","content":"x"}],"max_tokens":1}' }],
        ['render', '/page/render', { method: 'POST', body: '{"texts":["a"]}' }],
    ]) {
        try {
            const answer = await fetch(address + path, options);
            told[name] = answer.type === 'opaque' ? 'opaque' : await answer.text();
        } catch (error) {
            told[name] = 'refused';
        }
    }
    return told;
}"""


def test_a_page_of_another_origin_reads_nothing_and_starts_nothing(
    browser: Any, server: Live, url: str
) -> None:
    """`url` is the other origin: another port is another origin."""
    page = browser.new_page()
    page.goto(url)
    before = metric(server)
    told = page.evaluate(READS, server.url)
    assert told.pop("blind") in ("opaque", "refused")
    assert told == dict.fromkeys(told, "refused")
    assert metric(server) == before
    page.close()


def metric(server: Live) -> str:
    """Tokens that the server has made."""
    lines = server.http.get("/metrics").text.split("\n")
    return next(line for line in lines if line.startswith("vllm:generation_tokens_total"))


def test_no_other_page_shows_this_one_in_a_frame(browser: Any, server: Live, url: str) -> None:
    page = browser.new_page()
    page.route(
        "**/frame", lambda route: route.fulfill(content_type="text/html", body=framing(server.url))
    )
    page.goto(f"{url}/frame")
    page.wait_for_timeout(500)
    assert all("chrome-error" in frame.url for frame in page.frames[1:])
    page.close()


def framing(address: str) -> str:
    """A page with another in it."""
    return f'<iframe src="{address}/"></iframe>'


def test_the_page_talks_to_the_real_server_and_no_word_reaches_its_log(
    open_page: Callable[..., Any], server: Live, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        opened = open_page(server.url)
        page = opened.page
        page.wait_for_selector("#model-dot[data-state=loaded]")
        page.click("#open-settings")
        page.fill("#set-max_tokens", "24")
        page.fill("#set-seed", "1")
        page.keyboard.press("Escape")
        opened.ask("The lighthouse xylophone")
        facts = page.locator(".last .facts").inner_text()
        assert facts.startswith("novella · ")
        assert "24 tokens · ended at the limit" in facts
        first = page.locator(".last > .prose").inner_text()
        opened.act("continue")
        opened.wait_until_answered()
        assert page.locator(".last > .prose").inner_text().startswith(first[:20])
        page.click("#open-models")
        page.check('input[name="model"][value="second"]')
        page.click('#model-list button[aria-label="Unload novella"]')
        page.wait_for_selector('#model-list button[aria-label="Load novella"]')
        page.wait_for_selector("#card .strip")
        page.keyboard.press("Escape")
        opened.ask("Again")
        assert page.locator(".last .facts").inner_text().startswith("second · ")
    assert "xylophone" not in caplog.text
    assert "request" in caplog.text


def test_stop_frees_the_real_server(open_page: Callable[..., Any], server: Live) -> None:
    opened = open_page(server.url)
    opened.send("Once upon a time")
    opened.page.wait_for_selector("#messages .assistant .prose .block")  # of whatever kind
    opened.page.click("#stop")
    opened.wait_until_answered()
    running = "vllm:num_requests_running"
    until(
        lambda: all(
            line.endswith(" 0.0")
            for line in server.http.get("/metrics").text.split("\n")
            if line.startswith(running)
        )
    )


def test_the_page_comes_without_a_key_and_asks_for_it(
    open_page: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = chat_model(tmp_path_factory.mktemp("models") / "novella-chat")
    with live(lambda: [served("novella", path)], keys=("a-long-key",)) as locked:
        until(lambda: locked.http.get("/health").status_code == 200)
        page = open_page(locked.url).page
        page.wait_for_selector("#model-note:has-text('needs an API key')")
        page.click("#open-settings")
        page.fill("#key", "a-long-key")
        page.keyboard.press("Escape")
        page.wait_for_selector("#model-dot[data-state=loaded]")
        page.fill("#prompt", "Why?")
        page.click("#send")
        page.wait_for_selector("#messages .assistant > .prose p")
        page.click("#stop")
        assert "a-long-key" not in page.content()
