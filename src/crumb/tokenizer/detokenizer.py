"""Tokens to text, one token at a time, as the tokenizer would decode them all at once.

In: a tokenizer, the prompt's tokens, then generated tokens. Out: text that later tokens can no
longer change: what follows decode(prompt) in decode(prompt + generated). Never half a character.
Each step decodes a few last tokens: what comes before them only decides whether a text begins here
(SentencePiece drops the first space) and how a character that was cut between tokens starts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile

from crumb.tokenizer.tokenizer import Tokenizer, TokenKind

CONTEXT_TOKENS = 4
"""Shown tokens kept before the next: each has a byte or more, and a character at most four."""

REPLACEMENT = "\ufffd"
"""How a decoder writes bytes that are no character, or not yet."""


class Detokenizer:
    """One sequence's text as it grows. A token costs one decoding of at most 9 tokens."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_tokens: Sequence[int] = (),
        shown: Collection[int] = (),
    ) -> None:
        """`shown`: special tokens that are written out."""
        self._shown_tokens = shown
        self._tokenizer, self._kinds = tokenizer, tokenizer.kinds
        self._window = self._last_visible(prompt_tokens)
        self._shown = tokenizer.decode(self._window)  # of the window; the prompt's, to begin with

    def push(self, token: int) -> str:
        """The text that is certain now and was not before; often empty."""
        kind = self._kinds[token]
        if kind is TokenKind.HIDDEN:
            if token not in self._shown_tokens:
                return ""
            return self.finish() + (self._tokenizer.piece(token) or "")
        self._window.append(token)
        if kind is TokenKind.BYTE:
            return ""
        # only the last of several replacements can still become a character
        new = self._advance(self._tokenizer.decode(self._window).removesuffix(REPLACEMENT))
        if new and len(self._window) > CONTEXT_TOKENS + 1:
            self._cut()
        return new

    def finish(self) -> str:
        """The rest, now that no token follows."""
        return self._advance(self._tokenizer.decode(self._window))

    def _advance(self, text: str) -> str:
        """What a longer certain text adds to what was shown."""
        if text.startswith(self._shown):
            new = text[len(self._shown) :]
            self._shown = text
            return new
        if self._shown.startswith(text):
            return ""
        # the prompt may end within a character that the first tokens complete
        pairs = zip(self._shown, text, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._shown = text
        return text[common:]

    def _cut(self) -> None:
        """Forget all but a few last tokens: but one, if it ends a character and shows a text."""
        for count in (1, CONTEXT_TOKENS):
            text = self._tokenizer.decode(self._window[-count:])
            if text and not text.endswith(REPLACEMENT):
                break
        self._window = self._window[-count:]
        self._shown = text.removesuffix(REPLACEMENT)

    def _last_visible(self, tokens: Sequence[int]) -> list[int]:
        """The last tokens that have text, back to one before the run of bytes at the end."""
        last: list[int] = []
        is_open = True  # no token but bytes was met
        for token in reversed(tokens):
            kind = self._kinds[token]
            if kind is not TokenKind.HIDDEN:
                last.append(token)
                is_open = is_open and kind is TokenKind.BYTE
                if len(last) >= CONTEXT_TOKENS and not is_open:
                    break
        return last[::-1]
