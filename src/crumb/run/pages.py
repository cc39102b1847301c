"""Pages of the cache: who holds which, and which begin like a new prompt.

In: tokens of sequences. Out: page numbers. A full page is known by its tokens and the page before
it, so a prompt that begins like an earlier one takes its pages instead of computing them.
Pages nobody holds stay known until they are needed, the longest unused going first.
Refuses, with DoesNotFit, when all pages are held.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from crumb.errors import DoesNotFit
from crumb.kernels.engine import PAGE_TOKENS

Key = tuple[int, tuple[int, ...]]  # name of the page before (0: none), tokens of the page


@dataclass
class _Known:
    """A full page's content."""

    key: Key
    name: int  # never used again, as page numbers are


class PagePool:
    """All pages of one engine."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._holders = [0] * count
        self._known: list[_Known | None] = [None] * count
        self._by_key: dict[Key, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # known pages that nobody holds
        self._names = 0

    @property
    def available(self) -> int:
        """Pages that can be taken."""
        return len(self._free) + len(self._unused)

    def check_available(self, count: int) -> None:
        """Raises: DoesNotFit where so many pages cannot be taken."""
        if count > self.available:
            raise DoesNotFit(
                "the cache is full",
                expected="a free page",
                found=f"{self.count} pages of {PAGE_TOKENS} tokens, all held",
                do="Finish or drop a sequence, or load the model with a larger context",
            )

    def take(self) -> int:
        """A page whose content is nobody's. Raises: DoesNotFit."""
        self.check_available(1)
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._unused.popitem(last=False)
            self._forget(page)
        self._holders[page] = 1
        return page

    def match(self, tokens: Sequence[int]) -> list[int]:
        """Pages that hold the longest known beginning of these tokens; they are held from now.

        The last token is never among them: its logits are still wanted.
        """
        pages: list[int] = []
        name = 0
        for begin in range(0, (len(tokens) - 1) // PAGE_TOKENS * PAGE_TOKENS, PAGE_TOKENS):
            page = self._by_key.get((name, tuple(tokens[begin : begin + PAGE_TOKENS])))
            if page is None:
                break
            self._holders[page] += 1
            self._unused.pop(page, None)
            pages.append(page)
            content = self._known[page]
            assert content is not None, "found by its key"
            name = content.name
        return pages

    def count_known(self, tokens: Sequence[int]) -> int:
        """How many pages `match` would give now; from any thread, changes nothing."""
        name = count = 0
        for begin in range(0, (len(tokens) - 1) // PAGE_TOKENS * PAGE_TOKENS, PAGE_TOKENS):
            page = self._by_key.get((name, tuple(tokens[begin : begin + PAGE_TOKENS])))
            content = None if page is None else self._known[page]
            if content is None:
                break
            name, count = content.name, count + 1
        return count

    def learn(self, pages: Sequence[int], index: int, tokens: Sequence[int]) -> None:
        """Page `index` of a sequence is full and holds these tokens."""
        before = self._known[pages[index - 1]] if index else None
        if index and before is None:
            return  # the page before is a second copy of known content
        key = (before.name if before else 0, tuple(tokens))
        if key in self._by_key:
            return
        self._names += 1
        self._by_key[key] = pages[index]
        self._known[pages[index]] = _Known(key, self._names)

    def forget(self, pages: Sequence[int]) -> None:
        """Of pages of one holder: what they were known to hold, they do not hold."""
        for page in pages:
            if self._known[page] is not None:
                assert self._holders[page] == 1, "others have read it"
                self._forget(page)

    def release(self, pages: Sequence[int]) -> None:
        """A holder lets go. Later pages become free before earlier ones."""
        for page in reversed(pages):
            self._holders[page] -= 1
            assert self._holders[page] >= 0, "released more often than held"
            if self._holders[page]:
                continue
            if self._known[page] is None:
                self._free.append(page)
            else:
                self._unused[page] = None

    def _forget(self, page: int) -> None:
        content = self._known[page]
        assert content is not None, "unused pages are known"
        del self._by_key[content.key]
        self._known[page] = None
