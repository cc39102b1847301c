"""PagePool against a plain model of it, in random orders of everything that can be done.

In: sequences that begin, grow and end. Out: pages; none is ever handed out twice at once, a match
gives only pages whose content is the prompt's, and in the end none is lost.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from crumb._native import PAGE_TOKENS
from crumb.errors import DoesNotFit
from crumb.run.pages import PagePool

PAGES = 6


class Pool(RuleBasedStateMachine):
    """Sequences of few different tokens, so that beginnings are often equal."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES)
        self.sequences: list[tuple[list[int], list[int]]] = []  # tokens, pages
        self.content: dict[int, tuple[int, ...]] = {}  # page -> all tokens up to its end

    def held(self) -> set[int]:
        return {page for _, pages in self.sequences for page in pages}

    @rule(kinds=st.lists(st.integers(0, 1), min_size=0, max_size=4), more=st.integers(0, 2))
    def begin(self, kinds: list[int], more: int) -> None:
        prompt = [kind for kind in kinds for _ in range(PAGE_TOKENS)] + [7] * more
        pages = self.pool.match(prompt)
        assert len(pages) * PAGE_TOKENS <= max(len(prompt) - 1, 0)
        for index, page in enumerate(pages):
            assert self.content[page] == tuple(prompt[: (index + 1) * PAGE_TOKENS])
        self.sequences.append((prompt[: len(pages) * PAGE_TOKENS], pages))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), kind=st.integers(0, 1))
    def grow(self, data: st.DataObject, kind: int) -> None:
        """A full page of one token."""
        tokens, pages = data.draw(st.sampled_from(self.sequences))
        held = self.held()
        if len(held) == PAGES:
            with pytest.raises(DoesNotFit, match="the cache is full"):
                self.pool.take()
            return
        page = self.pool.take()
        assert page not in held
        assert 0 <= page < PAGES
        pages.append(page)
        tokens.extend([kind] * PAGE_TOKENS)
        self.content[page] = tuple(tokens)
        self.pool.learn(pages, len(pages) - 1, [kind] * PAGE_TOKENS)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.sequences) - 1))
        _, pages = self.sequences.pop(index)
        self.pool.release(pages)

    @invariant()
    def every_page_is_held_or_available(self) -> None:
        assert self.pool.available == PAGES - len(self.held())


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestPool = Pool.TestCase


def fill(pool: PagePool, *contents: int) -> list[int]:
    """A sequence of full pages, each of one token."""
    pages: list[int] = []
    for index, token in enumerate(contents):
        pages.append(pool.take())
        pool.learn(pages, index, [token] * PAGE_TOKENS)
    return pages


def prompt(*contents: int) -> list[int]:
    """Full pages, and one token whose logits are wanted."""
    return [token for token in contents for _ in range(PAGE_TOKENS)] + [0]


def test_a_prompt_takes_the_longest_known_beginning() -> None:
    pool = PagePool(4)
    pages = fill(pool, 1, 2, 3)
    assert pool.match(prompt(1, 2, 4)) == pages[:2]
    assert pool.match(prompt(2, 1)) == []
    assert pool.match(prompt(1)[:-1]) == []  # the last token's logits are still wanted


def test_the_same_page_after_another_beginning_is_another_page() -> None:
    pool = PagePool(8)
    first, second = fill(pool, 1, 3), fill(pool, 2, 3)
    assert pool.match(prompt(1, 3)) == first
    assert pool.match(prompt(2, 3)) == second


def test_pages_nobody_holds_go_longest_unused_first_and_ends_before_beginnings() -> None:
    pool = PagePool(4)
    old, new = fill(pool, 1, 2), fill(pool, 3, 4)
    pool.release(old)
    pool.release(new)
    assert pool.available == 4
    assert [pool.take() for _ in range(4)] == [old[1], old[0], new[1], new[0]]
    with pytest.raises(DoesNotFit, match="4 pages of 16 tokens, all held"):
        pool.take()


def test_a_page_that_was_taken_again_is_no_longer_known() -> None:
    pool = PagePool(2)
    pages = fill(pool, 1, 2)
    pool.release(pages)
    assert pool.take() == pages[1]
    held = pool.match(prompt(1, 2))
    assert held == pages[:1]
    with pytest.raises(DoesNotFit):
        pool.take()


def test_what_two_sequences_compute_at_once_is_known_once() -> None:
    pool = PagePool(6)
    one, other = fill(pool, 1, 2), fill(pool, 1, 2)
    assert set(one).isdisjoint(other)
    assert pool.match(prompt(1, 2)) == one
    for pages in (one, one, other):
        pool.release(pages)
    assert pool.available == 6
