"""Markdown of an answer: safe whatever the model writes, and the same block by block as at once."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumb.server.page.markdown import MOST_HIGHLIGHTED, RenderedBlock, render_blocks

ANSWER = """# Salt

Rivers carry **ions**, see [this](https://example.org/a?b=1&c=2).

1. rain
   - is acidic

2. rivers

```python
def f(x: int) -> str:
    return "<b>"
```

| a | b |
|:--|--:|
| 1 | 2 |

> quoted
> twice

    indented

---
The end
***
"""

PIECES = (
    *("a", "b\n", "2", ".", ")", " ", "  ", "    ", "\t", "\n", "\n\n"),
    *("- ", "* ", "1. ", "> ", "# ", "---", "===", "**", "~~", "`", "```\n", "|a|b|\n", "|-|-|\n"),
)

TAGS = {
    *("p", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "hr", "br", "em", "strong", "s"),
    *("a", "code", "pre", "figure", "figcaption", "span", "button", "div"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"href", "target", "rel", "class", "tabindex", "role", "aria-label", "type", "start"}


class Checker(HTMLParser):
    """Collects the tags and attributes of a piece of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One more."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Text between tags."""
        self.text += data


def html_of(text: str) -> str:
    return "".join(block.html for block in render_blocks(text))


def check_safe(text: str) -> Checker:
    """Only our own tags and attributes come out, and links that may be followed."""
    checker = Checker()
    checker.feed(html_of(text))
    for tag, attributes in checker.tags:
        assert tag in TAGS, (text, tag)
        assert attributes.keys() <= ATTRIBUTES, (text, tag, attributes)
        if tag == "a":
            assert re.match("(https?://|mailto:)", attributes["href"] or "", re.IGNORECASE)
            assert "noopener" in (attributes["rel"] or "")
    return checker


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "a <img src=x onerror=alert(1)> b",
        "<div>\n\nx\n\n</div>",
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert(1))",
        "[x](data:text/html;base64,PHNjcmlwdD4=)",
        "[x](vbscript:x) <javascript:alert(1)> [y](//example.org) [z](/page/main.js)",
        "[x]: javascript:alert(1)\n\n[x]",
        "![x](https://example.org/spy.png)",
        "![x](data:image/svg+xml,<svg/>)",
        '[x](https://example.org "a\\" onclick=alert(1)")',
        '```"><script>\nx\n```',
        "```html\n<script>alert(1)</script>\n```",
        '```python\n"</code></pre><script>alert(1)</script>"\n```',
        "| a |\n|--|\n| <b onclick=x> |",
        "# <svg onload=alert(1)>",
        "&lt;script&gt; &#60;script&#62;",
    ],
)
def test_what_a_model_writes_runs_nothing(text: str) -> None:
    check_safe(text)


@given(st.text(alphabet="<>[]()`*_~#|-:!&\"'\\ \nabhrefjvscipt1.x/", max_size=120))
@settings(max_examples=200, deadline=None)
def test_no_text_makes_a_tag_or_attribute_that_is_not_ours(text: str) -> None:
    check_safe(text)


def test_raw_html_is_shown_as_it_was_written() -> None:
    assert check_safe("a <b>c</b>").text.strip() == "a <b>c</b>"


def test_a_link_opens_elsewhere_and_tells_nothing() -> None:
    html = html_of("[a](https://example.org)")
    assert 'target="_blank" rel="noopener noreferrer nofollow"' in html


def test_an_image_is_a_link_and_never_loaded() -> None:
    html = html_of("![a **b**](https://example.org/i.png)")
    assert "<img" not in html
    assert html.startswith('<p><a href="https://example.org/i.png"')
    assert ">a b</a>" in html


def test_code_is_coloured_in_a_language_that_is_known_and_plain_in_another() -> None:
    assert '<span class="c-k">def</span>' in html_of("```python\ndef f(): pass\n```")
    assert "<span class" not in html_of("```nosuchlanguage\ndef f(): pass\n```")
    assert "def f(): pass" in html_of("    def f(): pass")


def test_code_that_is_very_long_is_shown_plain() -> None:
    code = "x = 1\n" * (MOST_HIGHLIGHTED // 6 + 1)
    assert "c-n" not in html_of(f"```python\n{code}```")
    assert "c-n" in html_of("```python\nx = 1\n```")


def test_headings_of_an_answer_are_below_those_of_the_page() -> None:
    assert re.findall("<(h.)>", html_of("# a\n## b\n##### c")) == ["h3", "h4", "h6"]


def test_a_cell_is_aligned_by_a_class_for_no_style_is_allowed() -> None:
    html = html_of("| a | b |\n|:-:|--:|\n| 1 | 2 |")
    assert "style" not in html
    assert '<th class="center">' in html
    assert '<td class="right">2</td>' in html


def test_every_block_says_the_line_it_begins_at() -> None:
    lines = ANSWER.split("\n")
    starts = [lines[block.line] for block in render_blocks(ANSWER)]
    assert starts == [
        *("# Salt", lines[2], "1. rain", "```python", "| a | b |", "> quoted", "    indented"),
        *("---", "The end", "***"),
    ]


def grown(pieces: list[str]) -> list[RenderedBlock]:
    """The blocks of a text as the page has them: only the last one is asked for again."""
    blocks: list[RenderedBlock] = []
    text = ""
    for piece in pieces:
        text += piece
        begin = blocks[-1].line if blocks else 0
        rest = "\n".join(text.split("\n")[begin:])
        fresh = render_blocks(rest, growing=True)
        blocks = [each for each in blocks if each.line < begin]
        blocks += [RenderedBlock(begin + block.line, block.html) for block in fresh]
    return blocks


@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_a_text_that_grows_has_the_blocks_of_the_whole(size: int) -> None:
    pieces = [ANSWER[begin : begin + size] for begin in range(0, len(ANSWER), size)]
    whole = render_blocks(ANSWER, growing=True)
    assert grown(pieces) == whole


@given(st.lists(st.sampled_from(PIECES), max_size=25))
@settings(max_examples=200, deadline=None)
def test_pieces_of_any_kind_grow_to_the_blocks_of_the_whole(pieces: list[str]) -> None:
    assert grown(pieces) == render_blocks("".join(pieces), growing=True)


def test_a_last_line_of_marks_waits_while_the_text_grows() -> None:
    assert "<h" not in "".join(block.html for block in render_blocks("A line\n--", growing=True))
    assert "<h4>" in html_of("A line\n--")


@pytest.mark.parametrize(
    "text",
    ["[" * 20_000, "*a_" * 10_000, "`" * 9_999 + " " + "`" * 9_998, "> " * 10_000, "- " * 10_000],
)
def test_a_hostile_text_takes_seconds_at_most(text: str) -> None:
    begin = time.perf_counter()
    render_blocks(text)
    assert time.perf_counter() - begin < 10
