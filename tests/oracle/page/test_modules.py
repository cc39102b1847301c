"""The page's modules alone: events however the bytes are cut, trees of messages, files, figures."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.oracle

CUT = """async ([text, size]) => {
    const { eventData } = await import('/page/events.js');
    const bytes = new TextEncoder().encode(text);
    const stream = new ReadableStream({
        start(controller) {
            for (let begin = 0; begin < bytes.length; begin += size)
                controller.enqueue(bytes.slice(begin, begin + size));
            controller.close();
        },
    });
    const events = [];
    for await (const data of eventData(stream)) events.push(data);
    return events;
}"""

STREAM = (
    ": ping\n\ndata: one\n\nevent: x\ndata:two\ndata: lines\n\n"
    "data: sea 🌊 é\r\n\r\ndata: cr\r\rid: 3\n\n: again\n\n"
    "data: last\n\ndata: [DONE]\n\ndata: late\n\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_events_are_the_same_however_the_bytes_are_cut(opened: Any, size: int) -> None:
    events = opened.page.evaluate(CUT, [STREAM, size])
    assert events == ["one", "two\nlines", "sea 🌊 é", "cr", "last"]


def test_an_event_that_was_not_ended_is_none(opened: Any) -> None:
    assert opened.page.evaluate(CUT, ["data: a\n\ndata: half", 4]) == ["a"]


TREE = """async () => {
    const tree = await import('/page/conversation.js');
    const talk = tree.newConversation('m', { system: ' Be brief. ' });
    const first = tree.add(talk, null, { role: 'user', content: 'one' });
    const answer = tree.add(talk, first, { role: 'assistant', content: 'a', thinking: 'hm' });
    const next = tree.add(talk, answer, { role: 'user', content: 'two' });
    const other = tree.add(talk, first, { role: 'assistant', content: 'b' });
    const contents = () => tree.path(talk).map((message) => message.content).join(' ');
    const told = [contents()];
    tree.choose(talk, answer);
    told.push(contents());
    told.push(tree.versions(talk, other).map((message) => message.content).join(' '));
    told.push(tree.modelMessages(talk, answer));
    const edited = tree.add(talk, null, { role: 'user', content: 'ONE' });
    told.push(contents());
    tree.choose(talk, first);
    told.push(contents(), talk.title, talk.messages.length);
    return told;
}"""


def test_a_conversation_is_a_tree_whose_versions_bring_their_followers_along(opened: Any) -> None:
    assert opened.page.evaluate(TREE) == [
        "one b",
        "one a two",
        "a b",
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "a", "reasoning_content": "hm"},
        ],
        "ONE",
        "one a two",
        "one",
        5,
    ]


ROUND = """async () => {
    const { exported, imported } = await import('/page/transfer.js');
    const tree = await import('/page/conversation.js');
    const talk = tree.newConversation('m', { temperature: 0.5 });
    const first = tree.add(talk, null, { role: 'user', content: 'one' });
    tree.add(talk, first, {
        role: 'assistant', content: 'a', thinking: 'hm', ending: 'stop', model: 'm',
        calls: [{ id: 'c', name: 'f', arguments: '{}' }], figures: { promptTokens: 3 },
    });
    const [back] = imported(exported([talk]));
    return [JSON.stringify(back, Object.keys(back).sort()), JSON.stringify(talk,
        Object.keys(back).sort()), JSON.stringify(back.messages), JSON.stringify(talk.messages)];
}"""


def test_what_is_exported_comes_back_as_it_was(opened: Any) -> None:
    back, talk, messages, before = opened.page.evaluate(ROUND)
    assert back == talk
    assert {frozenset(each.items()) for each in plain(messages)} == {
        frozenset(each.items()) for each in plain(before)
    }


def plain(text: str) -> list[dict[str, str]]:
    """Messages whose fields are all texts, so that their order does not matter."""
    import json

    return [
        {name: json.dumps(value, sort_keys=True) for name, value in each.items()}
        for each in json.loads(text)
    ]


FIGURES = """async () => {
    const f = await import('/page/figures.js');
    return [f.bytes(999), f.bytes(1000), f.bytes(98_362_432), f.bytes(1.6138e9), f.bytes(999_600),
        f.parameters(7_344_384), f.parameters(134_515_008), f.parameters(70e9), f.speed(9.94),
        f.speed(175.4), f.seconds(0.12), f.seconds(75), f.withError(0.0634, 0.0007),
        f.withError(1.0312, 0.21), f.withError(0.5, null)];
}"""


def test_figures_are_short_and_rounded_right(opened: Any) -> None:
    assert opened.page.evaluate(FIGURES) == [
        *("999 bytes", "1.00 kB", "98.4 MB", "1.61 GB", "1.00 MB"),
        *("7.3 M", "135 M", "70 B", "9.9 tokens/s", "175 tokens/s", "0.1 s", "1 min 15 s"),
        *("0.06340 ± 0.00070", "1.03 ± 0.21", "0.5000"),
    ]
