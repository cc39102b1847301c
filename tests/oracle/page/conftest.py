"""The chat page in the Chromium of the system, before an application by script or a real server.

In: nothing. Out: a browser, and pages that fail their test where a script fails or a policy is
broken. Skipped where playwright or Chromium is missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from page_application import Script, application, served

NAMES = ("chromium", "chromium-browser", "google-chrome")

PLAYWRIGHTS_OWN_STYLE = "XzJlZKVo"
"""Of the style by which playwright hides the caret while it takes a picture."""


@dataclass
class Opened:
    """A page of the browser, and what it showed on its console."""

    page: Any
    script: Script
    url: str

    def send(self, text: str) -> None:
        """Type a message and send it."""
        self.page.fill("#prompt", text)
        self.page.click("#send")

    def ask(self, text: str) -> None:
        """Send a message and wait until it is answered."""
        self.send(text)
        self.wait_until_answered()

    def wait_until_answered(self) -> None:
        """Until nothing is under way."""
        self.page.wait_for_selector("#messages .assistant.last[aria-busy=false]")
        self.page.wait_for_selector("#send:not([hidden])")

    @property
    def answer(self) -> Any:
        """The last answer."""
        return self.page.locator("#messages .assistant.last")

    def act(self, name: str, message: str = ".assistant.last") -> None:
        """Press a button of a message."""
        self.page.locator(f"#messages {message}").hover()
        self.page.click(f'#messages {message} [data-act="{name}"]')


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser on PATH: {', '.join(NAMES)}")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=path, args=options)
        yield opened
        opened.close()


@pytest.fixture
def script() -> Script:
    """What the model of the application says; a test may change it."""
    return Script()


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    """The address of the application by script."""
    with served(application(script)) as address:
        yield address


@pytest.fixture
def open_page(browser: Any, script: Script, url: str) -> Iterator[Callable[..., Opened]]:
    """open_page(**context): a page of a browser that has seen nothing yet."""
    failures: list[str] = []
    contexts = []

    def watch(page: Any) -> None:
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("console", lambda line: note(line.type, line.text))

    def note(kind: str, text: str) -> None:
        expected = PLAYWRIGHTS_OWN_STYLE in text or "Failed to load resource" in text
        if kind in ("error", "warning") and not expected:
            failures.append(text)

    def opening(address: str = url, **options: Any) -> Opened:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        context.set_default_timeout(60_000)  # compilers may run beside
        contexts.append(context)
        page = context.new_page()
        watch(page)
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        return Opened(page, script, address)

    yield opening
    for context in contexts:
        context.close()
    assert failures == []


@pytest.fixture
def opened(open_page: Callable[..., Opened]) -> Opened:
    """The page in a fresh browser."""
    return open_page()
