"""Guides one answer: first its thoughts, which may be ended, then the form it is held to.

In: ThinkingRules, a ReplyFormat, then each token as it is chosen. Out: which tokens may come next.
The form begins where the thoughts end; that of calls which may be made, where a call opens. While
it thinks a model may not end its answer, where there is a form, and once it has thought as long as
it may, the closing mark is written for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from enum import Enum

import numpy as np

from crumb.errors import UsageError
from crumb.requests.reply_format import ReplyFormat, ThinkingRules
from crumb.structure.call_watch import CallWatch
from crumb.structure.matcher import Allowed, GrammarMatcher, GrammarVocabulary
from crumb.tokenizer.tokenizer import Tokenizer

TAIL_CHARACTERS = 64
"""Of the text so far that a mark is looked for in, beside the mark's own."""


class Passage(Enum):
    """Where an answer is."""

    OPENING = "opening"  # nothing but, perhaps, a part of the opening mark was written
    THOUGHTS = "thoughts"
    CONTENT = "content"


class Guide:
    """One answer's."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary_size: int,
        thinking: ThinkingRules | None,
        matcher: GrammarMatcher | None,
        end_tokens: Collection[int] = (),
        calls: CallWatch | None = None,
    ) -> None:
        """`calls`: in place of a matcher, where calls alone are held to a form."""
        self._tokenizer, self._size = tokenizer, vocabulary_size
        self._thinking, self._matcher = thinking, matcher
        self._ends, self._calls = sorted(end_tokens), calls
        self._tail = ""
        self._thought_tokens = 0
        self._forced: deque[int] = deque()
        self._is_matching = matcher is not None  # what was written fits the form
        self._opening: deque[int] = deque()  # the rest of the opening mark
        self.place = Passage.CONTENT
        if thinking is not None:
            self._opening.extend(tokenizer.encode(thinking.open, special=False))
            self.place = Passage.OPENING
            if thinking.begins_open:
                self._begin_thoughts(thinking)

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next belongs to the thoughts."""
        return self.place is Passage.THOUGHTS

    @property
    def is_done(self) -> bool:
        """Whether the form is whole and nothing may follow."""
        is_content = self.place is Passage.CONTENT
        return self._matcher is not None and is_content and self._matcher.is_done

    def allowed(self) -> Allowed | None:
        """Which tokens may come next; None: all. Shapes: -> (vocabulary,)."""
        if self._forced:
            return self._only(self._forced[0])
        if self._matcher is None:
            return None if self._calls is None else self._calls.allowed()
        if self.place is Passage.THOUGHTS:
            allowed = np.ones(self._size, np.bool_)
            allowed[self._ends] = False
            return allowed
        if not self._is_matching:
            return self._only(self._opening[0])
        allowed = self._matcher.allowed()
        if self.place is Passage.OPENING and self._opening:
            allowed[self._opening[0]] = True
        return allowed

    def accept(self, token: int) -> None:
        """A token was chosen."""
        if self._calls is not None and self.place is not Passage.THOUGHTS:
            self._calls.accept(token)
        if self.place is Passage.CONTENT:
            if self._matcher is not None:
                self._matcher.accept(token)
            return
        assert self._thinking is not None, "it has thoughts"
        self._tail = (self._tail + self._tokenizer.token_text(token))[-TAIL_CHARACTERS:]
        if self.place is Passage.OPENING:
            self._open(token, self._thinking)
        else:
            self._think(token, self._thinking)

    def _open(self, token: int, thinking: ThinkingRules) -> None:
        written = self._tail.lstrip()
        if written.startswith(thinking.open):
            self._begin_thoughts(thinking)
            return
        if self._matcher is None:
            if not thinking.open.startswith(written):
                self.place = Passage.CONTENT
            return
        self._is_matching = self._is_matching and self._matcher.try_accept(token)
        if self._opening and token == self._opening[0]:
            self._opening.popleft()
        else:
            self.place = Passage.CONTENT

    def _begin_thoughts(self, thinking: ThinkingRules) -> None:
        self.place, self._tail = Passage.THOUGHTS, ""
        if self._calls is not None:
            self._calls.release()
        if thinking.most_tokens == 0:
            self._end_thoughts(thinking)

    def _think(self, token: int, thinking: ThinkingRules) -> None:
        self._thought_tokens += 1
        if self._forced:
            assert token == self._forced[0], "nothing else was allowed"
            self._forced.popleft()
            if not self._forced:
                self._begin_content()
        elif thinking.close in self._tail:
            self._begin_content()
        elif self._thought_tokens == thinking.most_tokens:
            self._end_thoughts(thinking)

    def _end_thoughts(self, thinking: ThinkingRules) -> None:
        """Write the closing mark in the model's place."""
        follows = thinking.follows if self._matcher is None else ""
        text = f"{thinking.farewell}{thinking.close}{follows}"
        self._forced.extend(self._tokenizer.encode(text, special=False))

    def _begin_content(self) -> None:
        self.place = Passage.CONTENT
        if self._matcher is not None:
            self._matcher.restart()
            self._is_matching = True

    def _only(self, token: int) -> Allowed:
        allowed = np.zeros(self._size, np.bool_)
        allowed[token] = True
        return allowed


def _watch(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary, form: ReplyFormat
) -> CallWatch | None:
    """What holds calls to their schemas; None where these cannot be held to."""
    try:
        return CallWatch(tokenizer, GrammarMatcher(vocabulary, form), form.opens)
    except UsageError:
        return None


def make_guide(
    tokenizer: Tokenizer,
    vocabulary: GrammarVocabulary | None,
    size: int,
    form: ReplyFormat | None,
    thinking: ThinkingRules | None,
) -> Guide | None:
    """The guide of a request; None where it needs none. Raises: UsageError."""
    if form is None and thinking is None:
        return None
    matcher = None
    if form is not None and form.opens:
        assert vocabulary is not None, "a form needs it"
        calls = _watch(tokenizer, vocabulary, form)
        if calls is None and thinking is None:
            return None
        return Guide(tokenizer, size, thinking, None, calls=calls)
    if form is not None:
        assert vocabulary is not None, "a form needs it"
        matcher = GrammarMatcher(vocabulary, form, after_thoughts=thinking is not None)
    return Guide(tokenizer, size, thinking, matcher, tokenizer.end_tokens)
