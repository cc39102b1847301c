"""The chat page for everybody: axe-core, the keyboard alone, screen readers, phones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from page_application import Script

pytestmark = pytest.mark.oracle

ANSWER = """# Salt

A [link](https://example.org), `code`, and a list:

1. one
2. two

| a | b |
|---|---|
| 1 | 2 |

```python
def f(x):  # a comment
    return "text" + str(1.5)
```

> quoted
"""

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": PHONE,
}
SERIOUS = ("serious", "critical")


def serious_findings(page: Any) -> list[str]:
    """What axe-core finds that keeps people out: rule, and the elements it is about."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    violations = axe.run(page).response["violations"]
    return [
        f"{each['id']}: {node['target']} {node.get('failureSummary', '')[:200]}"
        for each in violations
        if each["impact"] in SERIOUS
        for node in each["nodes"]
    ]


def in_conversation(opened: Any) -> None:
    opened.script.answer, opened.script.thinking = ANSWER, "Hm, *salt*."
    opened.ask("Why?")
    opened.act("again")
    opened.wait_until_answered()
    opened.page.locator(".last .thinking summary").click()
    opened.page.locator(".last .thinking em").wait_for()


def in_edit(opened: Any) -> None:
    opened.ask("Why?")
    opened.act("edit", ".user")


def under_way(opened: Any) -> None:
    opened.script.answer, opened.script.pause_seconds = "word " * 200, 0.1
    opened.send("Why?")
    opened.page.wait_for_selector("#messages .assistant .prose p")


def failed(opened: Any) -> None:
    opened.page.route("**/v1/chat/completions", lambda route: route.abort())
    opened.ask("Why?")


def in_a_tool_call(opened: Any) -> None:
    opened.script.answer, opened.script.calls = "", [{"name": "weather", "arguments": "{}"}]
    opened.ask("Rain?")
    opened.page.wait_for_selector(".call")


def in_models(opened: Any) -> None:
    opened.page.click("#open-models")
    opened.page.wait_for_selector("#card .strip")


def in_settings(opened: Any) -> None:
    opened.page.click("#open-settings")
    opened.page.click("#settings details summary")
    opened.page.fill("#set-temperature", "1")


def in_the_list(opened: Any) -> None:
    opened.ask("Why?")
    if opened.page.locator("#open-sidebar").is_visible():
        opened.page.click("#open-sidebar")
    opened.page.fill("#search", "salty")


def at_a_question(opened: Any) -> None:
    opened.page.click("#open-settings")
    opened.page.click("#delete-all")


def at_the_beginning(opened: Any) -> None:
    opened.page.wait_for_selector("#starters button")


STATES = (
    *(at_the_beginning, in_conversation, in_edit, under_way, failed, in_a_tool_call),
    *(in_models, in_settings, in_the_list, at_a_question),
)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_axe_finds_nothing_serious(
    open_page: Callable[..., Any], look: str, state: Callable[[Any], None]
) -> None:
    opened = open_page(**LOOKS[look])
    state(opened)
    opened.page.wait_for_timeout(200)  # colours that fade in are judged at their end
    assert serious_findings(opened.page) == []


def test_axe_would_find_a_field_without_a_label(opened: Any) -> None:
    opened.page.evaluate("document.querySelector('#composer label').remove()")
    opened.page.evaluate("document.querySelector('#prompt').removeAttribute('placeholder')")
    assert any(finding.startswith("label") for finding in serious_findings(opened.page))


def test_the_transcript_is_quiet_and_one_status_tells_the_beginning_and_the_end(
    opened: Any, script: Script
) -> None:
    script.answer, script.pause_seconds = "word " * 30, 0.01
    page = opened.page
    log = page.locator("#messages")
    assert (log.get_attribute("role"), log.get_attribute("aria-live")) == ("log", "off")
    page.evaluate(
        """() => {
            window.heard = [];
            const region = document.querySelector('#status');
            const listen = () => window.heard.push(region.textContent);
            new MutationObserver(listen).observe(region, { childList: true, subtree: true });
        }"""
    )
    opened.ask("Why?")
    assert page.evaluate("window.heard") == ["Generating", "Complete, 31 tokens"]
    live = page.locator("[aria-live]:not([aria-live=off]), [role=alert]:visible, [role=status]")
    assert live.count() == 2  # the status, and the count of a search


def focused(page: Any) -> str:
    """What has the focus: its id, action or name."""
    return str(
        page.evaluate(
            """() => {
                const it = document.activeElement;
                if (it === document.body) return 'nothing';
                return it.id || it.dataset.act || it.ariaLabel || it.textContent.trim();
            }"""
        )
    )


def tab_to(page: Any, name: str, key: str = "Tab") -> None:
    """Press Tab until something has the focus."""
    for _ in range(60):
        if focused(page) == name:
            return
        page.keyboard.press(key)
    raise AssertionError(f"{name} is not reached by {key}")


def test_everything_is_done_by_the_keyboard(opened: Any, script: Script) -> None:
    page = opened.page
    keys = page.keyboard
    assert focused(page) == "prompt"
    keys.type("Why")
    keys.press("Shift+Enter")
    keys.type("is it?")
    keys.press("Enter")
    opened.wait_until_answered()
    assert script.asked[0]["messages"][0]["content"] == "Why\nis it?"
    assert focused(page) == "prompt"
    tab_to(page, "again", "Shift+Tab")
    keys.press("Enter")
    page.wait_for_selector(".versions")
    opened.wait_until_answered()
    tab_to(page, "left", "Shift+Tab") if focused(page) == "prompt" else tab_to(page, "left")
    keys.press("Enter")
    page.wait_for_selector(".versions span:text-is('1 / 2')")
    assert focused(page) == "right"  # the button pressed is shut now, its neighbour is not
    tab_to(page, "edit", "Shift+Tab")
    keys.press("Enter")
    assert page.locator(".edit textarea").is_visible()
    keys.press("Escape")
    assert focused(page) == "edit"
    tab_to(page, "open-models", "Shift+Tab")
    keys.press("Enter")
    page.wait_for_selector("#models[open]")
    keys.press("Escape")
    assert focused(page) == "open-models"
    keys.press("Control+k")
    assert focused(page) == "search"
    tab_to(page, "Why")
    keys.press("Enter")
    assert page.locator("#messages .message").count() == 2


def test_escape_stops_an_answer(opened: Any, script: Script) -> None:
    script.answer, script.pause_seconds = "word " * 100, 0.05
    opened.send("Why?")
    opened.page.wait_for_selector("#messages .assistant .prose p")
    opened.page.keyboard.press("Escape")
    opened.wait_until_answered()
    assert "stopped" in opened.answer.locator(".facts").inner_text()
    assert opened.page.locator("#status").inner_text().startswith("Stopped")


SKIP = "Skip to the message field"


def test_the_first_stop_of_the_tab_key_leads_to_the_message_field(opened: Any) -> None:
    page = opened.page
    tab_to(page, SKIP, "Shift+Tab")
    box = page.locator(".skip").bounding_box()
    assert box["y"] >= 0
    page.keyboard.press("Enter")
    assert focused(page) == "prompt"


def test_focus_can_be_seen_on_every_control(opened: Any) -> None:
    """Each control that Tab reaches has an outline, or its box a border that changes."""
    page = opened.page
    tab_to(page, SKIP, "Shift+Tab")
    seen = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        name = focused(page)
        width = page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert name in ("prompt", "nothing") or (width >= 2 and style != "none"), name
        seen.add(name)
    assert {"new-conversation", "search", "open-models", "open-settings"} <= seen


def test_nothing_moves_for_those_who_do_not_want_it(
    open_page: Callable[..., Any], script: Script
) -> None:
    script.states = {"small": "loading"}
    opened = open_page(reduced_motion="reduce")
    opened.send("Why?")
    opened.page.wait_for_selector("#messages .waiting")
    assert opened.page.evaluate("document.getAnimations().length") == 0


def test_no_text_is_wider_than_a_phone(open_page: Callable[..., Any], script: Script) -> None:
    script.answer = f"{ANSWER}\n\n```\n{'x' * 300}\n```\n\n{'long' * 100}\n\n" + "|a" * 40 + "|\n"
    opened = open_page(**PHONE)
    opened.page.fill("#prompt", "Why " + "w" * 200)
    opened.page.click("#send")
    opened.wait_until_answered()
    in_models(opened)
    widths = "[document.documentElement.scrollWidth, innerWidth]"
    wide, screen = opened.page.evaluate(widths)
    assert wide <= screen
    transcript = "[document.querySelector('#transcript')].map((t) => t.scrollWidth - t.clientWidth)"
    assert opened.page.evaluate(transcript) == [0]


def test_on_a_phone_the_list_covers_the_page_and_goes_away(open_page: Callable[..., Any]) -> None:
    opened = open_page(**PHONE)
    page = opened.page
    assert not page.locator("#sidebar").is_visible()
    page.click("#open-sidebar")
    assert focused(page) == "close-sidebar"
    page.keyboard.press("Escape")
    assert not page.locator("#sidebar").is_visible()
    assert focused(page) == "open-sidebar"


def test_enter_is_a_new_line_on_a_phone_and_buttons_are_large_enough(
    open_page: Callable[..., Any],
) -> None:
    opened = open_page(**PHONE)
    opened.page.fill("#prompt", "a")
    opened.page.press("#prompt", "Enter")
    assert opened.page.input_value("#prompt") == "a\n"
    opened.page.click("#send")
    opened.wait_until_answered()
    for each in opened.page.locator("button:visible").all():
        box = each.bounding_box()
        assert min(box["width"], box["height"]) >= 24, each.get_attribute("aria-label")
