"""A step of NativeEngine refuses what it cannot run, and passes on the rows that are asked for.

In: tokens, places and pages, one of them wrong. Out: ValueError or TypeError; the rows selected.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_calls import (
    F32,
    PAGES,
    POSITIONS,
    ROWS,
    SCRATCH_BYTES,
    VOCABULARY,
    WIDTH,
    Built,
    aligned,
    pages,
)

from crumb._native import NativeEngine, attention_scratch_floats

LARGE, LONGEST = 1 << 62, (1 << 63) - 1


def ready() -> Built:
    """Embeds tokens and positions, attends, selects: everything that a step's numbers reach."""
    built = Built()
    built.call("embed")
    built.call("embed", of_positions=True, out=built.other, matrix=built.places)
    built.call("rotary")
    built.call("attention")
    built.call("select")
    return built


FIRST, SECOND = ([1, 2], 0, [0], 1), ([3], 16, [3, 1], 1)
"""Tokens, how many came before them, their pages, and how many of the last are kept."""


def first(**changed: Any) -> list[Any]:
    """Parts of a step that works, but for what is changed in the first."""
    usual = dict(zip(("tokens", "past", "pages", "kept"), FIRST, strict=True))
    return [tuple((usual | changed).values()), SECOND]


WRONG_STEPS: list[tuple[list[Any], int, str]] = [
    ([], 5, "step: rows"),
    (first(tokens=[]), 5, "step: rows"),
    (first(tokens=[1] * 6), 5, "step: rows"),
    (first(tokens=[1] * 7), 5, "step: rows"),
    ([FIRST, SECOND], -1, "operations"),
    ([FIRST, SECOND], 6, "operations"),
    (first(tokens=[1, VOCABULARY]), 5, "token out of range"),
    (first(tokens=[-1, 2]), 5, "token out of range"),
    (first(past=-1), 5, "position"),
    (first(past=POSITIONS - 1, pages=[0, 1, 2]), 5, "position"),
    (first(past=LARGE, pages=[0, 1, 2]), 5, "position"),
    (first(past=(1 << 63) - 1), 5, "position"),
    (first(kept=2), 5, "rows selected"),
    (first(kept=3), 5, "rows selected"),
    (first(kept=-1), 5, "rows selected"),
    (first(kept=(1 << 63) - 1), 5, "rows selected"),
    (first(pages=[]), 5, "pages missing"),
    (first(past=15), 5, "pages missing"),
    (first(pages=[PAGES]), 5, "page out of range"),
    (first(pages=[-1]), 5, "page out of range"),
]


@pytest.fixture
def reads_and_writes() -> NativeEngine:
    """A section that fills a memory, and one whose attention sees it."""
    built, memory = Built(), pages()
    built.call("embed")
    built.call("remember", pages=memory)
    built.engine.begin_section()
    built.call("embed")
    built.call("attention", key=-1, value=-1, memory=True, causal=False, pages=memory)
    return built.engine


SOURCE, MEMORY = ([1, 2, 3], 0, [0], 0), (3, [2])
WRONG_MEMORIES: list[tuple[Any, int, int, list[Any], str]] = [
    (SOURCE, 2, 0, [], "step: memories"),
    (SOURCE, 2, 0, [MEMORY, MEMORY], "step: memories"),
    (SOURCE, 2, 0, [(2, [2])], "step: memory"),
    (SOURCE, 2, 0, [(3, [])], "pages missing"),
    (SOURCE, 2, 0, [(3, [PAGES])], "page out of range"),
    (SOURCE, 2, 0, [(3, [-1])], "page out of range"),
    (SOURCE, 3, 0, [MEMORY], "operations"),
    ((*FIRST[:3], 0), 1, 1, [MEMORY], "operations"),
    ((*FIRST[:3], 0), 4, 2, [MEMORY], "section"),
    ((*FIRST[:3], 0), 4, -1, [MEMORY], "section"),
    ((*FIRST[:3], 0), 4, 1, [(0, [2])], "step: memory"),
    ((*FIRST[:3], 0), 4, 1, [(17, [2])], "pages missing"),
    ((*FIRST[:3], 0), 4, 1, [(LONGEST, [2])], "step: memory"),
]


@pytest.mark.parametrize(("part", "operations", "section", "memories", "what"), WRONG_MEMORIES)
def test_a_step_whose_memory_is_wrong_is_refused(
    part: Any,
    operations: int,
    section: int,
    memories: list[Any],
    what: str,
    reads_and_writes: NativeEngine,
) -> None:
    reads_and_writes.step([SOURCE], reads_and_writes.section_end(0), 0, [MEMORY])
    reads_and_writes.step([(*FIRST[:3], 0)], 4, 1, [MEMORY])
    with pytest.raises(ValueError, match=what):
        reads_and_writes.step([part], operations, section, memories)
    with pytest.raises(ValueError, match="no such section"):
        reads_and_writes.section_end(1)


@pytest.mark.parametrize(("parts", "operations", "what"), WRONG_STEPS)
def test_a_step_with_one_wrong_number_is_refused(
    parts: list[Any], operations: int, what: str
) -> None:
    engine = ready().engine
    engine.step([FIRST, SECOND], 5)
    with pytest.raises(ValueError, match=what):
        engine.step(parts, operations)


def test_a_step_beyond_the_scratch_is_refused() -> None:
    built = Built()
    built.call("attention")
    longest = next(
        length
        for length in range(64, 1 << 16)
        if 4 * attention_scratch_floats(length + 1, 16) > SCRATCH_BYTES
    )
    pages = [0] * (longest // 16 + 1)
    built.engine.step([([1], longest - 1, pages, 0)], 1)
    with pytest.raises(ValueError, match="scratch too small"):
        built.engine.step([([1], longest, pages, 0)], 1)


@pytest.mark.parametrize("key", ["tokens", "past", "pages", "kept"])
@pytest.mark.parametrize("wrong", ["5", 0.5, [0.5], [1 << 31], 1 << 63, None])
def test_a_step_of_other_types_is_refused(key: str, wrong: Any) -> None:
    with pytest.raises(TypeError):
        ready().engine.step(first(**{key: wrong}), 5)


@pytest.mark.parametrize("parts", [None, 5, [FIRST[:3]], [(*FIRST, 0)], [5]])
def test_a_step_of_parts_that_are_none_is_refused(parts: Any) -> None:
    with pytest.raises(TypeError):
        ready().engine.step(parts, 5)


def test_a_step_keeps_the_last_rows_of_each_part_in_order() -> None:
    """The logits are the hidden states here: embedded tokens of a matrix that counts them."""
    hidden, kept = np.zeros((ROWS, WIDTH), np.float32), np.zeros((4, WIDTH), np.float32)
    engine = NativeEngine("baseline", 1, aligned(1, SCRATCH_BYTES))
    places = [engine.add_buffer(array, WIDTH) for array in (hidden, kept)]
    table = np.repeat(np.arange(VOCABULARY, dtype=np.float32)[:, None], WIDTH, axis=1)
    matrix = engine.add_floats(table.view(np.uint8), WIDTH, F32)
    engine.add("embed", of_positions=False, out=places[0], matrix=matrix, first_row=0)
    engine.add("select", input=places[0], out=places[1])
    engine.step([([7, 8, 9], 0, [0], 2), ([4, 5], 3, [1], 0), ([6], 0, [2], 1)], 2)
    assert hidden[:, 0].tolist() == [7, 8, 9, 4, 5, 6]
    assert kept[:, 0].tolist() == [8, 9, 6, 0]


def test_a_buffer_that_moved_is_read_and_written_where_it_is_now() -> None:
    first, second = (np.zeros((ROWS, WIDTH), np.float32) for _ in range(2))
    engine = NativeEngine("baseline", 1, aligned(1, SCRATCH_BYTES))
    buffer = engine.add_buffer(first, WIDTH)
    table = np.repeat(np.arange(VOCABULARY, dtype=np.float32)[:, None], WIDTH, axis=1)
    matrix = engine.add_floats(table.view(np.uint8), WIDTH, F32)
    engine.add("embed", of_positions=False, first_row=0, out=buffer, matrix=matrix)
    engine.add("add", left=buffer, right=buffer, out=buffer)
    for array in (first, second, first):
        engine.move_buffer(buffer, array)
        engine.step([([3, 4], 0, [0], 0)], 2)
        assert array[:, 0].tolist() == [6, 8, 0, 0, 0, 0]
        array[:] = 0
    del second, array
    engine.step([([5], 0, [0], 0)], 2)
    assert first[0, 0] == 10


WRONG_STATES: list[tuple[list[Any], str]] = [
    ([], "step: states"),
    ([[(2, -1, 0)], [(1, -1, -1)]], "step: states"),
    ([[]], "rows of a state"),
    ([[(1, -1, 0)]], "rows of a state"),
    ([[(3, -1, 0)]], "rows of a state"),
    ([[(2, -1, 0), (1, 0, 0)]], "rows of a state"),
    ([[(0, -1, 0), (2, 0, 0)]], "rows of a state"),
    ([[(-1, -1, 0), (3, 0, 0)]], "rows of a state"),
    ([[(LONGEST, -1, 0)]], "rows of a state"),
    ([[(2, 2, 0)]], "state out of range"),
    ([[(2, -2, 0)]], "state out of range"),
    ([[(2, 0, 2)]], "state out of range"),
    ([[(2, 0, -2)]], "state out of range"),
]


@pytest.mark.parametrize(("states", "what"), WRONG_STATES)
def test_a_step_whose_states_are_wrong_is_refused(states: list[Any], what: str) -> None:
    built = Built()
    built.call("conv")
    built.engine.step([(*FIRST[:3], 0)], 1, states=[[(1, -1, 1), (1, 1, 0)]])
    with pytest.raises(ValueError, match=what):
        built.engine.step([(*FIRST[:3], 0)], 1, states=states)


def test_without_attention_a_sequence_needs_no_pages() -> None:
    built = Built()
    built.call("conv")
    built.engine.step([([1, 2], 1 << 20, [], 0)], 1, states=[[(2, -1, 0)]])


def test_an_engine_without_anything_takes_no_step() -> None:
    engine = NativeEngine("baseline", 1, aligned(1, 64))
    with pytest.raises(ValueError, match="step: rows"):
        engine.step([FIRST], 0)
