"""Lets a model write what it likes until it opens a call, and holds the call to its tool's schema.

In: the marks that open a call, its grammar, then each token as it is chosen. Out: which tokens may
come next; all of them outside of calls. A mark that is written otherwise than the grammar has it
leaves the text free, and so does a grammar that turns out to be too much: nothing is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from crumb.errors import UsageError
from crumb.structure.matcher import Allowed, GrammarMatcher
from crumb.tokenizer.tokenizer import Tokenizer


class CallWatch:
    """One answer's."""

    def __init__(self, tokenizer: Tokenizer, matcher: GrammarMatcher, opens: Sequence[str]) -> None:
        self._tokenizer, self._matcher, self._opens = tokenizer, matcher, tuple(opens)
        self._longest = max(map(len, opens))
        self._recent: deque[tuple[int, str]] = deque()  # tokens of the text's end, and their texts
        self._holds = False

    def allowed(self) -> Allowed | None:
        """Which tokens may come next; None: all. Shapes: -> (vocabulary,)."""
        if not self._holds:
            return None
        try:
            return self._matcher.allowed()
        except UsageError:
            self.release()
            return None

    def accept(self, token: int) -> None:
        """A token was chosen."""
        if not self._holds:
            self._look_for_mark(token)
            return
        if not self._matcher.try_accept(token) or self._matcher.may_end:
            self.release()

    def release(self) -> None:
        """The text is free again, and nothing of it opens a call by itself."""
        self._holds = False
        self._recent.clear()

    def _look_for_mark(self, token: int) -> None:
        recent = self._recent
        recent.append((token, self._tokenizer.token_text(token)))
        text = "".join(each for _, each in recent)
        while len(text) - len(recent[0][1]) >= self._longest:
            text = text[len(recent.popleft()[1]) :]
        begin = min((place for mark in self._opens if (place := text.find(mark)) >= 0), default=-1)
        if begin < 0:
            return
        tokens: list[int] = []
        for number, each in reversed(recent):
            tokens.insert(0, number)
            text = text.removesuffix(each)
            if len(text) <= begin:
                break
        self.release()
        self._matcher.restart()
        fits = all(map(self._matcher.try_accept, tokens))
        self._holds = fits and not self._matcher.may_end
