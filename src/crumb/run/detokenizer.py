"""Tokens to text, one token at a time, as the tokenizer would decode them all at once.

In: a tokenizer, the prompt's tokens, then generated tokens. Out: text that later tokens can no
longer change: what follows decode(prompt) in decode(prompt + generated). Never half a character.
Each step decodes a few last tokens: what comes before them only decides whether a text begins here
(SentencePiece drops the first space) and how a character that was cut between tokens starts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from itertools import takewhile

from crumb.run.tokenizer import Tokenizer

CONTEXT_TOKENS = 8
"""Shown tokens kept before the next: each has a byte or more, and a character at most four."""

REPLACEMENT = "\ufffd"
"""How a decoder writes bytes that are no character, or not yet."""

BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
"""A piece that is one byte. A run of them is decoded as a whole: if one byte of it is wrong,
the tokenizers library replaces them all, so no part of a run is certain before it ends."""


class Kind(Enum):
    """What a visible token is."""

    TEXT = "text"
    BYTE = "byte"


class Detokenizer:
    """One sequence's text as it grows. A token costs one decoding of at most 16 tokens."""

    def __init__(self, tokenizer: Tokenizer, prompt_tokens: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._kinds: dict[int, Kind | None] = {}  # of the tokens met so far
        self._window = self._last_visible(prompt_tokens)
        self._shown = tokenizer.decode(self._window)  # of the window; the prompt's, to begin with

    def push(self, token: int) -> str:
        """The text that is certain now and was not before; often empty."""
        kind = self._kind(token)
        if kind is None:
            return ""
        self._window.append(token)
        if kind is Kind.BYTE:
            return ""
        text = self._tokenizer.decode(self._window)
        # only the last of several replacements can still become a character
        new = self._advance(text.removesuffix(REPLACEMENT))
        if new and len(self._window) > 2 * CONTEXT_TOKENS:
            self._window = self._window[-CONTEXT_TOKENS:]
            text = self._tokenizer.decode(self._window)
            self._shown = text.removesuffix(REPLACEMENT)
        return new

    def finish(self) -> str:
        """The rest, now that no token follows."""
        return self._advance(self._tokenizer.decode(self._window))

    def _advance(self, text: str) -> str:
        """What a longer certain text adds to what was shown."""
        if self._shown.startswith(text):
            return ""
        if text.startswith(self._shown):
            new = text[len(self._shown) :]
            self._shown = text
            return new
        # the prompt may end within a character that the first tokens complete
        pairs = zip(self._shown, text, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._shown = text
        return text[common:]

    def _kind(self, token: int) -> Kind | None:
        """What a token is; None when decoding passes it over."""
        kinds = self._kinds
        if token not in kinds:
            special = token in self._tokenizer.special_tokens
            piece = None if special else self._tokenizer.piece(token)
            if piece is None:
                kinds[token] = None
            else:
                kinds[token] = Kind.BYTE if BYTE_TOKEN.fullmatch(piece) else Kind.TEXT
        return kinds[token]

    def _last_visible(self, tokens: Sequence[int]) -> list[int]:
        """The last tokens that have text, back to one before the run of bytes at the end."""
        found: list[int] = []
        is_open = True  # no token but bytes was met
        for token in reversed(tokens):
            kind = self._kind(token)
            if kind is not None:
                found.append(token)
                is_open = is_open and kind is Kind.BYTE
                if len(found) >= CONTEXT_TOKENS and not is_open:
                    break
        return found[::-1]
