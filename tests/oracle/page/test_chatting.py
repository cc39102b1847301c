"""What people do on the chat page, in a real browser: send, stop, again, edit, go on, reload."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_server import until
from page_application import Script

pytestmark = pytest.mark.oracle

PARAGRAPHS = "\n\n".join(f"Paragraph {n} has some words that are not short." for n in range(12))


def texts(page: Any, selector: str) -> list[str]:
    """The texts of elements."""
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


def test_a_message_is_answered_in_rendered_markdown(opened: Any, script: Script) -> None:
    script.answer = "The **sea** is `salty`."
    opened.ask("Why?")
    assert opened.answer.locator(".prose strong").first.inner_text() == "sea"
    assert texts(opened.page, "#messages .user .text") == ["Why?"]
    assert script.asked[0]["messages"] == [{"role": "user", "content": "Why?"}]
    assert script.asked[0]["model"] == "small"
    facts = opened.answer.locator(".facts").inner_text()
    assert facts.startswith("small · ")
    assert facts.endswith(" tokens/s · 4 tokens")
    assert opened.page.locator("#context-text").inner_text() == "44 of 2,048 tokens"


def test_only_the_last_block_is_rendered_again_while_an_answer_grows(
    opened: Any, script: Script
) -> None:
    script.answer, script.pause_seconds = PARAGRAPHS, 0.01
    rendered: list[dict[str, Any]] = []
    opened.page.on(
        "request",
        lambda request: (
            rendered.append(json.loads(request.post_data))
            if "/page/render" in request.url
            else None
        ),
    )
    opened.ask("Write")
    growing = [request["texts"][0] for request in rendered if request["growing"]]
    assert len(growing) >= 5
    assert all(len(text) < len(PARAGRAPHS) / 2 for text in growing[3:])
    assert not growing[-1].startswith("Paragraph 0")
    finished = [request for request in rendered if not request["growing"]]
    assert [request["texts"] for request in finished] == [[PARAGRAPHS]]
    assert opened.answer.locator(".prose p").count() == 12


def test_stop_ends_the_work_of_the_server_and_keeps_the_text(opened: Any, script: Script) -> None:
    script.answer, script.pause_seconds = PARAGRAPHS, 0.05
    opened.send("Write")
    opened.page.wait_for_selector("#messages .assistant .prose p")
    opened.page.click("#stop")
    opened.wait_until_answered()
    until(lambda: script.left == 1)
    sent = script.words_sent
    assert 0 < sent < 60
    assert "Paragraph 0" in opened.answer.inner_text()
    assert "stopped" in opened.answer.locator(".facts").inner_text()


def test_continue_goes_on_where_the_answer_was_cut(opened: Any, script: Script) -> None:
    script.answer, script.ending = "One two", "length"
    opened.ask("Count")
    script.answer, script.ending = " three.", "stop"
    opened.act("continue")
    opened.wait_until_answered()
    assert texts(opened.page, "#messages .assistant > .prose") == ["One two three."]
    asked = script.asked[1]
    assert asked["messages"][-1] == {"role": "assistant", "content": "One two"}
    assert asked["continue_final_message"] is True
    assert asked["add_generation_prompt"] is False
    assert opened.page.locator("#messages .message").count() == 2


def test_another_answer_is_another_version_and_the_first_is_not_lost(
    opened: Any, script: Script
) -> None:
    script.answer = "First."
    opened.ask("Say")
    script.answer = "Second."
    opened.act("again")
    opened.wait_until_answered()
    assert texts(opened.page, "#messages .assistant > .prose") == ["Second."]
    assert script.asked[1]["messages"] == [{"role": "user", "content": "Say"}]
    assert texts(opened.page, ".versions span") == ["2 / 2"]
    opened.page.click('.versions [data-act="left"]')
    assert texts(opened.page, "#messages .assistant > .prose") == ["First."]
    assert texts(opened.page, ".versions span") == ["1 / 2"]


def test_an_edited_message_is_asked_again_and_the_old_one_stays(
    opened: Any, script: Script
) -> None:
    opened.ask("Why is the sea salty?")
    opened.ask("And lakes?")
    script.answer = "Blue."
    opened.act("edit", ".user:first-child")
    opened.page.fill(".edit textarea", "Why is the sky blue?")
    opened.page.click('.edit button[type="submit"]')
    opened.wait_until_answered()
    assert texts(opened.page, "#messages .user .text") == ["Why is the sky blue?"]
    assert texts(opened.page, "#messages .assistant > .prose") == ["Blue."]
    assert script.asked[-1]["messages"] == [{"role": "user", "content": "Why is the sky blue?"}]
    opened.page.hover("#messages .user")
    opened.page.click('.user [data-act="left"]')
    assert texts(opened.page, "#messages .user .text") == ["Why is the sea salty?", "And lakes?"]


def test_a_reload_brings_the_conversation_back(opened: Any, script: Script) -> None:
    script.answer = "The **sea**."
    opened.ask("Why?")
    opened.page.reload()
    opened.page.wait_for_selector("#messages .assistant strong")
    assert texts(opened.page, "#messages .user .text") == ["Why?"]
    opened.ask("And then?")
    assert [message["content"] for message in script.asked[-1]["messages"]] == [
        *("Why?", "The **sea**.", "And then?"),
    ]
    assert texts(opened.page, "#conversations .name") == ["Why?"]


def test_a_reload_in_the_middle_of_an_answer_keeps_what_had_come(
    opened: Any, script: Script
) -> None:
    script.answer, script.pause_seconds = PARAGRAPHS, 0.05
    opened.send("Write")
    opened.page.wait_for_timeout(1800)
    opened.page.reload()
    opened.page.wait_for_selector("#messages .assistant .prose p")
    assert "Paragraph 0" in opened.answer.inner_text()
    until(lambda: script.left == 1)


def test_settings_go_into_the_request_and_those_not_set_do_not(opened: Any, script: Script) -> None:
    opened.page.click("#open-settings")
    opened.page.fill("#system", "Answer in one word.")
    opened.page.fill("#set-temperature", "0.7")
    opened.page.fill("#set-max_tokens", "32")
    opened.page.select_option("#set-thinking", "false")
    opened.page.check("#as-default")
    opened.page.keyboard.press("Escape")
    opened.ask("Why?")
    asked = script.asked[0]
    assert asked["messages"][0] == {"role": "system", "content": "Answer in one word."}
    assert (asked["temperature"], asked["max_tokens"]) == (0.7, 32)
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    assert not {"top_p", "top_k", "min_p", "seed", "tools"} & asked.keys()
    opened.page.click("#open-settings")
    opened.page.click('button[aria-label="Temperature: server default"]')
    opened.page.keyboard.press("Escape")
    opened.ask("And?")
    assert "temperature" not in script.asked[1]
    opened.page.click("#new-conversation")
    opened.ask("A new one begins like the first")
    assert script.asked[2]["temperature"] == 0.7


def test_thinking_is_folded_away_and_opens(opened: Any, script: Script) -> None:
    script.thinking, script.pause_seconds = "Rivers carry *salt*.", 0.1
    opened.ask("Why?")
    summary = opened.answer.locator(".thinking summary")
    assert summary.inner_text().startswith("Thought for")
    assert not opened.answer.locator(".thinking em").is_visible()
    summary.click()
    assert opened.answer.locator(".thinking em").inner_text() == "salt"
    assert "salt" not in opened.answer.locator("> .prose").inner_text().lower().split()


def test_a_tool_call_is_shown_and_its_result_goes_back(opened: Any, script: Script) -> None:
    opened.page.click("#open-settings")
    opened.page.click("#settings details summary")
    opened.page.fill("#tools", "[{")
    assert "Not JSON" in opened.page.locator("#tools-error").inner_text()
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    opened.page.fill("#tools", json.dumps([tool]))
    assert opened.page.locator("#tools-error").inner_text() == ""
    opened.page.keyboard.press("Escape")
    script.answer = ""
    script.calls = [{"name": "weather", "arguments": '{"city": "Oslo"}'}]
    opened.ask("Rain?")
    assert script.asked[0]["tools"] == [tool]
    assert opened.answer.locator(".call p").inner_text() == "calls weather"
    assert '"city": "Oslo"' in opened.answer.locator(".call pre").inner_text()
    script.answer, script.calls = "It rains.", []
    opened.answer.locator(".call textarea").fill("wet")
    opened.answer.locator('.calls button[type="submit"]').click()
    opened.page.locator("#messages .assistant.last > .prose", has_text="It rains.").wait_for()
    opened.wait_until_answered()
    call, result = script.asked[1]["messages"][-2:]
    assert call["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": '{"city": "Oslo"}',
    }
    assert result == {"role": "tool", "content": "wet", "tool_call_id": "call_0"}
    assert texts(opened.page, "#messages .assistant.last > .prose")[-1] == "It rains."


def test_another_model_is_chosen_loaded_and_let_go(opened: Any, script: Script) -> None:
    page = opened.page
    page.click("#open-models")
    page.click('#model-list button[aria-label="Load large"]')
    page.wait_for_selector('#model-list button[aria-label="Unload large"]')
    page.check('input[name="model"][value="large"]')
    page.keyboard.press("Escape")
    assert page.locator("#model-name").inner_text() == "large"
    opened.ask("Why?")
    assert script.asked[0]["model"] == "large"
    page.click("#open-models")
    page.click('#model-list button[aria-label="Unload large"]')
    page.wait_for_selector('#model-list button[aria-label="Load large"]')
    assert script.states == {"small": "loaded", "large": "unloaded"}


def test_the_card_shows_bits_of_each_layer_and_the_measured_divergence(opened: Any) -> None:
    opened.page.click("#open-models")
    opened.page.wait_for_selector("#card .strip")
    card = opened.page.locator("#card").inner_text()
    assert "0.06340 ± 0.00070 nats, on wikitext2-test" in card
    assert "91.9 MB, 4.50 bits per weight" in card
    assert " now, " in card
    assert opened.page.locator("#card .strip rect").count() == 31
    opened.page.check('input[name="model"][value="large"]')
    opened.page.wait_for_selector("#card h3:has-text('large')")
    assert "not measured for this file" in opened.page.locator("#card").inner_text()


def test_the_page_works_while_the_model_loads(
    open_page: Callable[..., Any], script: Script
) -> None:
    script.states = {"small": "loading"}
    opened = open_page()
    opened.page.wait_for_selector("#model-note:has-text('loading')")
    opened.send("Why?")
    opened.page.wait_for_selector("#messages .waiting span:has-text('loading')")
    opened.page.click("#open-settings")
    opened.page.keyboard.press("Escape")
    script.states["small"] = "loaded"
    opened.wait_until_answered()
    assert texts(opened.page, "#messages .assistant > .prose") == ["The sea is salty."]
    assert len(script.asked) >= 2


def test_the_prompt_says_how_far_it_is_read(opened: Any, script: Script) -> None:
    script.prompt_pieces, script.pause_seconds = 20, 0.1
    opened.send("Why?")
    opened.page.wait_for_selector("#messages .waiting span:has-text('of 2,000 tokens')")
    bar = opened.page.locator("#messages .waiting progress")
    until(lambda: bar.evaluate("(bar) => bar.value") >= 0.2)
    words = opened.page.locator("#messages .waiting").inner_text()
    assert words.strip().startswith("Reading ")
    opened.wait_until_answered()
    assert not opened.page.locator("#messages .waiting").is_visible()


def test_a_failure_is_told_and_the_question_can_be_asked_again(opened: Any) -> None:
    opened.page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            status=400, json={"error": {"message": "the prompt is too long: 9 tokens > 8 maximum"}}
        ),
    )
    opened.ask("Why?")
    wrong = opened.answer.locator(".wrong")
    assert wrong.inner_text() == "the prompt is too long: 9 tokens > 8 maximum"
    opened.page.unroute("**/v1/chat/completions")
    opened.act("again")
    opened.wait_until_answered()
    assert "salty" in opened.answer.inner_text()


def test_a_stream_that_breaks_off_is_no_complete_answer(opened: Any) -> None:
    piece = {"choices": [{"index": 0, "delta": {"content": "Half"}, "finish_reason": None}]}
    opened.page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            body=f"data: {json.dumps(piece)}\n\n", content_type="text/event-stream"
        ),
    )
    opened.ask("Why?")
    assert "broke off" in opened.answer.locator(".wrong").inner_text()
    assert "Half" in opened.answer.inner_text()


def test_answers_go_on_in_a_conversation_that_is_not_shown(opened: Any, script: Script) -> None:
    script.answer, script.pause_seconds = "A slow answer of six words.", 0.2
    opened.send("Slow")
    opened.page.wait_for_selector("#messages .assistant .prose p")
    opened.page.click("#new-conversation")
    assert opened.page.locator("#welcome").is_visible()
    script.pause_seconds = 0
    opened.ask("Quick")
    opened.page.wait_for_selector("#conversations .pulse", state="detached")
    opened.page.click("#conversations a:has-text('Slow')")
    opened.page.wait_for_selector("#messages .assistant > .prose p")
    assert texts(opened.page, "#messages .assistant > .prose") == ["A slow answer of six words."]


def test_conversations_are_found_by_their_words_renamed_and_deleted_with_undo(
    opened: Any,
) -> None:
    page = opened.page
    opened.ask("Why is the sea salty?")
    page.click("#new-conversation")
    opened.ask("Tell of trains")
    page.fill("#search", "SALTY?")
    assert texts(page, "#conversations .name") == ["Why is the sea salty?"]
    page.fill("#search", "nowhere")
    assert page.locator("#conversations a").count() == 0
    page.fill("#search", "")
    assert page.locator("#conversations a").count() == 2
    page.hover("#conversations li.open")
    page.click("#conversations li.open button[aria-label^=Rename]")
    page.fill("#question-input", "Trains")
    page.keyboard.press("Enter")
    page.wait_for_selector("#conversations .name:text-is('Trains')")
    page.hover("#conversations li.open")
    page.click("#conversations li.open button[aria-label^=Delete]")
    assert page.locator("#conversations a").count() == 1
    page.click("#notice button")
    assert sorted(texts(page, "#conversations .name")) == ["Trains", "Why is the sea salty?"]
    assert page.locator("#messages .message").count() == 2


def test_all_conversations_leave_as_a_file_and_come_back(
    opened: Any, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    opened.ask("Why is the sea salty?")
    opened.act("again")
    opened.wait_until_answered()
    opened.page.click("#open-settings")
    with opened.page.expect_download() as download:
        opened.page.click("#export")
    file = tmp_path / "conversations.json"
    download.value.save_as(file)
    saved = json.loads(file.read_text())
    assert (saved["format"], saved["version"]) == ("crumb-conversations", 1)
    other = open_page()
    other.page.click("#open-settings")
    other.page.set_input_files("#import-file", file)
    other.page.wait_for_selector("#notice:has-text('1 of 1 conversations came in')")
    other.page.keyboard.press("Escape")
    other.page.click("#conversations a")
    assert texts(other.page, "#messages .user .text") == ["Why is the sea salty?"]
    assert texts(other.page, ".versions span") == ["2 / 2"]
    other.page.reload()
    other.page.wait_for_selector("#messages .assistant .prose p")


def test_two_tabs_of_a_browser_have_the_same_conversations(opened: Any) -> None:
    other = opened.page.context.new_page()
    other.goto(opened.url)
    other.wait_for_selector("body[data-ready]")
    opened.ask("Why is the sea salty?")
    other.click("#conversations a")
    other.wait_for_selector("#messages .assistant > .prose p")
    opened.ask("And lakes?")
    other.wait_for_selector("#messages .message >> nth=3")
    assert texts(other, "#messages .user .text") == ["Why is the sea salty?", "And lakes?"]
    opened.page.hover("#conversations li")
    opened.page.click("#conversations li button[aria-label^=Delete]")
    other.wait_for_selector("#conversations a", state="detached")


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_deleted(
    opened: Any, script: Script
) -> None:
    script.answer, script.pause_seconds = PARAGRAPHS, 0.05
    opened.send("Write")
    opened.page.wait_for_selector("#messages .assistant .prose p")
    opened.page.hover("#conversations li")
    opened.page.click("#conversations li button[aria-label^=Delete]")
    until(lambda: script.left == 1)
    opened.page.wait_for_timeout(300)
    assert opened.page.locator("#conversations a").count() == 0
    opened.page.reload()
    opened.page.wait_for_selector("body[data-ready]")
    assert opened.page.locator("#conversations a").count() == 0


MANY = """async (count) => {
    const { session } = await import('/page/session.js');
    const { newConversation, add } = await import('/page/conversation.js');
    const all = [];
    for (let index = 0; index < count; index += 1) {
        const conversation = newConversation('small');
        let parent = null;
        for (let turn = 0; turn < (index ? 20 : 200); turn += 1) {
            const role = turn % 2 ? 'assistant' : 'user';
            const content = `Turn ${turn} of ${index}. `.repeat(20);
            parent = add(conversation, parent, { role, content });
        }
        all.push(conversation);
    }
    session.takeIn(all);
    session.open(all[0]);
}"""


def test_a_long_history_does_not_slow_an_answer_down(opened: Any, script: Script) -> None:
    """300 conversations, 200 messages in the open one: the page has time left at 500 words/s."""
    opened.page.evaluate(MANY, 300)
    opened.page.wait_for_selector("#messages .message >> nth=199")
    until(lambda: opened.page.locator("#messages .block").count() >= 100)
    script.answer, script.pause_seconds = "word " * 500, 0.002
    opened.page.evaluate(
        """() => {
            window.late = [];
            let last = performance.now();
            window.beat = setInterval(() => {
                window.late.push(performance.now() - last - 20);
                last = performance.now();
            }, 20);
        }"""
    )
    opened.ask("Go on")
    late = sorted(opened.page.evaluate("window.late"))
    assert len(late) > 20
    assert late[len(late) // 2] < 60
    assert opened.page.locator("#messages .message").count() == 202


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format": "crumb-conversations", "version": 2, "conversations": []}',
        '{"format": "crumb-conversations", "version": 1, "conversations":'
        ' [{"messages": [{"id": "a", "parent": "b", "role": "user", "content": "x"}]}]}',
        '{"format": "crumb-conversations", "version": 1, "conversations": [{"messages":'
        ' [{"id": "a", "role": "user"}, {"id": "a", "role": "user"}]}]}',
    ],
)
def test_a_file_that_is_not_ours_changes_nothing(opened: Any, tmp_path: Path, content: str) -> None:
    (tmp_path / "other.json").write_text(content)
    opened.page.click("#open-settings")
    opened.page.set_input_files("#import-file", tmp_path / "other.json")
    opened.page.wait_for_selector("#notice:has-text('The file ')")
    assert opened.page.locator("#conversations a").count() == 0
