"""Markdown of a model's answer as HTML that is safe to show, a block at a time.

In: a text, whole or still growing. Out: its top-level blocks with the line each begins at; while a
text grows, all blocks but the last stay as they are, so only the last is rendered again.
Refuses nothing: raw HTML is text, a link that is not http, https or mailto is text, an image is a
link to it. Source: the CommonMark specification 0.31 by markdown-it-py, code colours by pygments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping, Sequence
from functools import cache, lru_cache
from typing import Any

import msgspec
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

SAFE_LINK = re.compile(r"(https?://|mailto:)", re.IGNORECASE)

LANGUAGE = re.compile(r"[\w+#.-]{1,30}")
"""The first word of a fence's line, where it can be the name of a language."""

MOST_HIGHLIGHTED = 20_000
"""Characters of a code block that get colours; a longer one is shown plain, at once."""

HEADING_SHIFT = 2
"""The page has headings of its own: a model's first level is the page's third."""

UNFINISHED = re.compile(
    r"(?:^|\n)(?:[-=*_`~#|:>+ \t]+|[ \t]*\d{1,9}[.)]?[ \t]*|[ \t]*(?:```|~~~)[^\n]*)\Z"
)
"""A last line of marks, a number alone, or a fence's: it may yet go on with the block before."""

Environment = MutableMapping[str, Any]
Tokens = Sequence[Token]


class RenderedBlock(msgspec.Struct, frozen=True):
    """One top-level block of a text."""

    line: int  # of the text, from 0, that the block begins at
    html: str


class Markdown(MarkdownIt):
    """CommonMark with tables and strike-through, and our own view of what a link may be."""

    def validateLink(self, url: str) -> bool:  # noqa: N802, the library's name
        """Whether an address may become a link."""
        return SAFE_LINK.match(url) is not None


class Renderer(RendererHTML):
    """HTML of the tokens that need more than the library writes."""

    def fence(
        self, tokens: Tokens, index: int, _options: OptionsDict, _environment: Environment
    ) -> str:
        """Code between fences, in the colours of its language."""
        words = tokens[index].info.split()
        language = words[0] if words and LANGUAGE.fullmatch(words[0]) else ""
        return code_html(tokens[index].content, language)

    def code_block(
        self, tokens: Tokens, index: int, _options: OptionsDict, _environment: Environment
    ) -> str:
        """Indented code, which names no language."""
        return code_html(tokens[index].content, "")

    def image(
        self, tokens: Tokens, index: int, options: OptionsDict, environment: Environment
    ) -> str:
        """A link to the image: the page loads nothing from another host."""
        token = tokens[index]
        words = self.renderInlineAsText(token.children, options, environment) or "image"
        return f"{link_html(str(token.attrs['src']))}{escapeHtml(words)}</a>"

    def link_open(
        self, tokens: Tokens, index: int, _options: OptionsDict, _environment: Environment
    ) -> str:
        """A link that tells its target nothing of this page."""
        return link_html(str(tokens[index].attrs["href"]))

    def heading_open(
        self, tokens: Tokens, index: int, _options: OptionsDict, _environment: Environment
    ) -> str:
        """A heading below those of the page."""
        return f"<{shifted(tokens[index].tag)}>"

    def heading_close(
        self, tokens: Tokens, index: int, _options: OptionsDict, _environment: Environment
    ) -> str:
        """The end of a heading."""
        return f"</{shifted(tokens[index].tag)}>\n"

    def table_open(
        self, _tokens: Tokens, _index: int, _options: OptionsDict, _environment: Environment
    ) -> str:
        """A table that scrolls by itself, by keyboard too."""
        return '<div class="table" tabindex="0" role="group" aria-label="Table"><table>\n'

    def table_close(
        self, _tokens: Tokens, _index: int, _options: OptionsDict, _environment: Environment
    ) -> str:
        """The end of a table."""
        return "</table></div>\n"

    def td_open(
        self, tokens: Tokens, index: int, _options: OptionsDict, _environment: Environment
    ) -> str:
        """A cell; the page's policy allows no style in it, so its alignment is a class."""
        side = str(tokens[index].attrs.get("style", "")).removeprefix("text-align:")
        return f'<{tokens[index].tag} class="{side}">' if side else f"<{tokens[index].tag}>"

    th_open = td_open


def shifted(tag: str) -> str:
    """The tag of a heading on the page."""
    return f"h{min(6, int(tag[1]) + HEADING_SHIFT)}"


def link_html(url: str) -> str:
    """The opening tag of a link."""
    return f'<a href="{escapeHtml(url)}" target="_blank" rel="noopener noreferrer nofollow">'


def code_html(code: str, language: str) -> str:
    """A figure with the code, its language's name and a button that copies it."""
    name = f"Code, {language}" if language else "Code"
    return (
        f'<figure class="code"><figcaption><span>{escapeHtml(language)}</span>'
        '<button type="button" class="copy-code">Copy</button></figcaption>'
        f'<pre tabindex="0" role="group" aria-label="{escapeHtml(name)}"><code>'
        f"{highlighted(code, language)}</code></pre></figure>\n"
    )


@lru_cache(maxsize=64)
def lexer_of(language: str) -> Lexer | None:
    """What reads a language; None for one that nobody has heard of."""
    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


def highlighted(code: str, language: str) -> str:
    """Code as HTML, in spans whose classes are pygments' short names of kinds."""
    lexer = lexer_of(language.lower()) if language and len(code) <= MOST_HIGHLIGHTED else None
    if lexer is None:
        return escapeHtml(code)
    return str(highlight(code, lexer, HtmlFormatter(nowrap=True, classprefix="c-")))


@cache
def markdown() -> MarkdownIt:
    """The one reader of markdown; a reading has no state of its own in it."""
    reader = Markdown("commonmark", {"html": False}, renderer_cls=Renderer)
    return reader.enable(["table", "strikethrough"])


def render_blocks(text: str, *, growing: bool = False) -> list[RenderedBlock]:
    """The blocks of a text. `growing`: more follows, and a last line that says nothing yet waits.

    The address of a link may stand in another block: the whole text, rendered at once, has it.
    """
    reader, environment = markdown(), dict[str, Any]()
    tokens = reader.parse(UNFINISHED.sub("", text) if growing else text, environment)
    return [
        RenderedBlock(
            (group[0].map or [0])[0], reader.renderer.render(group, reader.options, environment)
        )
        for group in top_level(tokens)
    ]


def top_level(tokens: Tokens) -> Iterator[list[Token]]:
    """Tokens of each top-level block."""
    group: list[Token] = []
    for token in tokens:
        group.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield group
            group = []
