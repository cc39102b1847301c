"""NativeEngine refuses every wrong call with a Python error; nothing it is given can crash it.

In: arrays of the wrong shape, dtype, order or size, and numbers out of range. Out: ValueError or
TypeError. Each case changes one thing of a call that works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crumb._native import (
    NativeEngine,
    attention_scratch_floats,
    cache_head_bytes,
    matmul_scratch_bytes,
)

ROWS, KEPT, WIDTH, VOCABULARY, POSITIONS, PAGES = 6, 2, 32, 48, 40, 4
F32, F16, BF16, INT8 = range(4)
FIXED, VARIABLE, MINIMUM = range(3)
MULTIPLY = 16


def aligned(rows: int, row_bytes: int) -> np.ndarray[Any, Any]:
    raw = np.zeros(rows * row_bytes + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + rows * row_bytes].reshape(rows, row_bytes)


SCRATCH_BYTES = -(-max(matmul_scratch_bytes(64), 4 * attention_scratch_floats(64, 16)) // 64) * 64


class Built:
    """An engine with one of everything, ready for any operation."""

    def __init__(self) -> None:
        self.engine = NativeEngine("baseline", 1, aligned(1, SCRATCH_BYTES))
        add = self.engine.add_buffer
        self.hidden, self.other, self.third = (
            add(np.zeros((ROWS, WIDTH), np.float32), WIDTH) for _ in range(3)
        )
        self.half = add(np.zeros((ROWS, 16), np.float32), 16)
        self.odd = add(np.zeros((ROWS, 48), np.float32), 40)
        self.kept = add(np.zeros((KEPT, WIDTH), np.float32), WIDTH)
        self.logits = add(np.zeros((KEPT, VOCABULARY), np.float32), VOCABULARY)
        self.floats = self.engine.add_floats(
            np.zeros((VOCABULARY, 4 * WIDTH), np.uint8), WIDTH, F32
        )
        self.places = self.engine.add_floats(np.zeros((POSITIONS, 2 * WIDTH), np.uint8), WIDTH, F16)
        self.tiles = self.engine.add_tiles(tiles(), WIDTH, WIDTH, 32, 4, FIXED, 0, None)
        self.activations = self.engine.add_activations(*activations(), WIDTH, 32)
        self.few = self.engine.add_activations(*activations(rows=3), WIDTH, 32)

    def call(self, name: str, **arguments: Any) -> Any:
        """A method with the arguments of the call that works, but for these."""
        usual = CALLS[name](self) | arguments
        return getattr(self.engine, name)(**usual)


def tiles(rows: int = WIDTH, extra: int = 0) -> np.ndarray[Any, Any]:
    """4 bits, fixed zero, one group of 32: 32 bytes of scales, 256 of codes."""
    return np.zeros((-(-rows // 16), 32 + 256 + extra), np.uint8)


def activations(rows: int = ROWS) -> tuple[Any, Any, Any]:
    return (
        np.zeros((-(-rows // 32) * 32, WIDTH + 64), np.int8),
        np.zeros((rows, 1), np.float32),
        np.zeros((rows, 1), np.int32),
    )


def pages(kind: int = F32, count: int = PAGES) -> np.ndarray[Any, Any]:
    return aligned(count, 2 * cache_head_bytes(16, kind))


def vector(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int32)


CALLS: dict[str, Callable[[Built], dict[str, Any]]] = {
    "add_buffer": lambda built: {"data": np.zeros((ROWS, WIDTH), np.float32), "width": WIDTH},
    "add_activations": lambda built: (
        dict(zip(("codes", "scale", "sum"), activations(), strict=True))
        | {"columns": WIDTH, "block_inputs": 32}
    ),
    "add_tiles": lambda built: {
        "tiles": tiles(),
        "rows": WIDTH,
        "columns": WIDTH,
        "group_width": 32,
        "bits": 4,
        "zero": FIXED,
        "sub": 0,
        "table": None,
    },
    "add_floats": lambda built: {
        "weights": np.zeros((8, 4 * WIDTH), np.uint8),
        "columns": WIDTH,
        "kind": F32,
    },
    "embed": lambda built: {"of_positions": False, "out": built.hidden, "matrix": built.floats},
    "norm": lambda built: {
        "input": built.hidden,
        "out": built.other,
        "weight": np.ones(WIDTH, np.float32),
        "bias": np.ones(WIDTH, np.float32),
        "epsilon": 1e-5,
        "centered": True,
    },
    "quantize": lambda built: {"input": built.hidden, "activations": built.activations},
    "linear": lambda built: {
        "input": built.hidden,
        "activations": built.activations,
        "out": built.other,
        "matrix": built.tiles,
        "bias": np.ones(WIDTH, np.float32),
        "joined": False,
    },
    "split": lambda built: {
        "input": built.hidden,
        "outs": [built.half, built.half],
        "outer": 2,
        "inner": 8,
    },
    "rotary": lambda built: {
        "input": built.hidden,
        "out": built.other,
        "heads": 2,
        "dimensions": 8,
        "interleaved": False,
        "turns": np.ones((POSITIONS, 8), np.float32),
    },
    "attention": lambda built: {
        "query": built.hidden,
        "key": built.other,
        "value": built.third,
        "out": built.hidden,
        "heads": 2,
        "key_value_heads": 2,
        "scale": 0.25,
        "soft_cap": 0.0,
        "causal": True,
        "window": 0,
        "pages": pages(),
        "kind": F32,
    },
    "elementwise": lambda built: {
        "left": built.hidden,
        "right": built.other,
        "out": built.third,
        "kind": MULTIPLY,
    },
    "select": lambda built: {"input": built.hidden, "out": built.kept},
    "gather": lambda built: {
        "input": built.hidden,
        "out": built.other,
        "order": np.arange(WIDTH, dtype=np.int32)[::-1].copy(),
    },
}


@pytest.mark.parametrize("name", CALLS)
def test_the_usual_call_works(name: str) -> None:
    Built().call(name)


def wrong_dtype(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(np.float64)


LARGE, LONGEST = 1 << 62, (1 << 63) - 1

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("add_buffer", {"width": 0}, "rows of 16 floats"),
    ("add_buffer", {"width": WIDTH + 1}, "rows of 16 floats"),
    ("add_buffer", {"data": np.zeros((ROWS, 24), np.float32), "width": 24}, "rows of 16 floats"),
    ("add_activations", {"block_inputs": 0}, "block_inputs"),
    ("add_activations", {"block_inputs": 129}, "block_inputs"),
    ("add_activations", {"codes": np.zeros((31, 96), np.int8)}, "rows padded"),
    ("add_activations", {"codes": np.zeros((32, 95), np.int8)}, "too narrow"),
    *[("add_activations", {"columns": count}, "columns") for count in (LARGE, LONGEST, 0, -1)],
    ("add_activations", {"columns": WIDTH * 4}, "too narrow"),
    ("add_activations", {"scale": np.zeros((ROWS, 2), np.float32)}, "wrong shape"),
    ("add_activations", {"sum": np.zeros((ROWS, 2), np.int32)}, "wrong shape"),
    ("add_activations", {"sum": np.zeros((ROWS + 1, 1), np.int32)}, "wrong shape"),
    ("add_tiles", {"rows": 0}, "empty"),
    ("add_tiles", {"columns": -1}, "empty"),
    ("add_tiles", {"group_width": 0}, "empty"),
    ("add_tiles", {"bits": 1}, "these bits"),
    ("add_tiles", {"bits": 7}, "these bits"),
    ("add_tiles", {"zero": -1}, "zero kind"),
    ("add_tiles", {"zero": 3}, "zero kind"),
    ("add_tiles", {"group_width": 16}, "group width"),
    ("add_tiles", {"table": np.zeros(15, np.uint8)}, "bad table"),
    ("add_tiles", {"table": np.zeros(16, np.uint8), "zero": VARIABLE}, "bad table"),
    *[("add_tiles", {"sub": sub, "columns": 256}, "super-blocks") for sub in (-1, 1, 2, 3)],
    ("add_tiles", {"sub": 1, "zero": MINIMUM}, "super-blocks"),
    ("add_tiles", {"sub": 1, "zero": MINIMUM, "columns": 256}, "wrong shape"),
    ("add_tiles", {"tiles": tiles(extra=1)}, "wrong shape"),
    ("add_tiles", {"tiles": tiles(rows=16)}, "wrong shape"),
    ("add_tiles", {"zero": MINIMUM}, "wrong shape"),
    *[("add_tiles", {key: LARGE}, "too large") for key in ("rows", "columns")],
    *[("add_tiles", {key: LONGEST}, "too large") for key in ("rows", "columns")],
    ("add_tiles", {"rows": WIDTH * 2}, "wrong shape"),
    (
        "add_tiles",
        {"tiles": np.zeros((1, 32 + 256 * 128), np.uint8), "rows": 16, "columns": 4096}
        | {"group_width": 4096},
        "scratch: too small",
    ),
    ("add_floats", {"kind": INT8}, "float kind"),
    ("add_floats", {"kind": -1}, "float kind"),
    *[("add_floats", {"columns": count}, "empty") for count in (0, -1)],
    *[("add_floats", {"columns": count}, "too large") for count in (LARGE, LONGEST)],
    ("add_floats", {"weights": np.zeros((0, 4 * WIDTH), np.uint8)}, "empty"),
    ("add_floats", {"columns": WIDTH + 1}, "wrong shape"),
    ("add_floats", {"kind": F16}, "wrong shape"),
    (
        "add_floats",
        {"weights": np.zeros((1, 4 * 4096), np.uint8), "columns": 4096},
        "scratch: too small",
    ),
    ("embed", {"matrix": 3}, "no such matrix"),
    ("embed", {"matrix": -1}, "no such matrix"),
    ("embed", {"out": 99}, "no such buffer"),
    ("embed", {"out": -1}, "no such buffer"),
    ("embed", {"out": 3}, "widths differ"),
    ("embed", {"out": 5}, "too few rows"),
    ("norm", {"out": 3}, "widths differ"),
    ("norm", {"input": 5}, "too few rows"),
    ("norm", {"weight": np.ones(31, np.float32)}, "widths differ"),
    ("norm", {"bias": np.ones(33, np.float32)}, "bias"),
    ("quantize", {"activations": 2}, "no activations"),
    ("quantize", {"activations": -1}, "no activations"),
    ("quantize", {"input": 3}, "widths differ"),
    ("quantize", {"activations": 1}, "too few rows"),
    ("linear", {"out": 3}, "widths differ"),
    ("linear", {"input": 4}, "widths differ"),
    ("linear", {"bias": np.ones(31, np.float32)}, "bias"),
    ("linear", {"activations": 2}, "no activations"),
    ("linear", {"activations": 1}, "too few rows"),
    ("linear", {"matrix": 0, "out": 4}, "widths differ"),
    ("linear", {"out": 0}, "reads what it writes"),
    ("linear", {"joined": True}, "nothing to join"),
    ("split", {"outs": []}, "empty"),
    ("split", {"outer": 0}, "empty"),
    ("split", {"inner": -8}, "empty"),
    ("split", {"outs": [3]}, "widths differ"),
    ("split", {"outs": [3, 4]}, "widths differ"),
    ("split", {"outs": [3, 99]}, "no such buffer"),
    ("split", {"outer": LARGE, "inner": 1 << 10}, "widths differ"),
    ("rotary", {"heads": 0}, "widths differ"),
    ("rotary", {"heads": 3}, "widths differ"),
    ("rotary", {"out": 3}, "widths differ"),
    ("rotary", {"dimensions": 7}, "dimensions"),
    ("rotary", {"dimensions": 0}, "dimensions"),
    ("rotary", {"dimensions": 18}, "dimensions"),
    ("rotary", {"turns": np.ones((POSITIONS, 6), np.float32)}, "dimensions"),
    ("attention", {"heads": 3}, "heads do not divide"),
    ("attention", {"heads": 0}, "heads do not divide"),
    ("attention", {"key_value_heads": 0}, "heads do not divide"),
    ("attention", {"key_value_heads": 1}, "widths differ"),
    ("attention", {"value": 3}, "widths differ"),
    ("attention", {"out": 4}, "widths differ"),
    ("attention", {"kind": BF16}, "cache kind"),
    ("attention", {"kind": 4}, "cache kind"),
    ("attention", {"kind": F16}, "wrong size"),
    ("attention", {"pages": pages()[:, :-64].copy()}, "wrong size"),
    ("attention", {"window": -1}, "negative window"),
    ("elementwise", {"kind": 4}, "unknown function"),
    ("elementwise", {"kind": 18}, "unknown function"),
    ("elementwise", {"right": -1}, "unknown function"),
    ("elementwise", {"right": -1, "kind": 4}, "unknown function"),
    ("elementwise", {"out": 3}, "widths"),
    ("elementwise", {"right": 4}, "widths"),
    ("elementwise", {"right": 5}, "too few rows"),
    ("select", {"out": 3}, "widths differ"),
    ("select", {"input": 5}, "too few rows"),
    ("select", {"out": 77}, "no such buffer"),
    ("gather", {"out": 0}, "widths differ"),
    ("gather", {"out": 3}, "widths differ"),
    ("gather", {"out": 5}, "too few rows"),
    ("gather", {"order": np.zeros(31, np.int32)}, "widths differ"),
    ("gather", {"order": np.full(32, 32, np.int32)}, "column out of range"),
    ("gather", {"order": np.full(32, -1, np.int32)}, "column out of range"),
]


@pytest.mark.parametrize(("name", "changed", "what"), WRONG)
def test_a_call_with_one_wrong_thing_is_refused(
    name: str, changed: dict[str, Any], what: str
) -> None:
    built = Built()
    before = built.engine.operation_count()
    with pytest.raises(ValueError, match=what):
        built.call(name, **changed)
    assert built.engine.operation_count() == before


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("embed", "quantize")])
def test_arrays_of_another_dtype_order_or_rank_are_refused(name: str) -> None:
    built = Built()
    given = CALLS[name](built)
    for key, value in given.items():
        if not isinstance(value, np.ndarray):
            continue
        wrong = [value.astype(np.float64), value[..., None]]
        if value.ndim == 2 and min(value.shape) > 1:
            wrong.append(np.asfortranarray(value))
        if value.shape[-1] > 1:
            wrong.append(value[..., ::2])
        for array in wrong:
            with pytest.raises(TypeError):
                built.call(name, **{key: array})


def test_arrays_that_a_step_writes_must_be_writable() -> None:
    built = Built()
    for name, key in (("add_buffer", "data"), ("attention", "pages"), ("add_activations", "scale")):
        array = CALLS[name](built)[key]
        array.flags.writeable = False
        with pytest.raises(TypeError):
            built.call(name, **{key: array})


@pytest.mark.parametrize(
    ("isa", "threads", "scratch", "what"),
    [
        ("sse9", 1, aligned(1, 64), "instruction set"),
        ("baseline", 0, aligned(1, 64), "threads"),
        ("baseline", -1, aligned(1, 64), "threads"),
        ("baseline", (1 << 31) - 1, aligned(1, 64), "threads"),
        ("baseline", 2, aligned(1, 64), "a row for each thread"),
        ("baseline", 1, aligned(1, 64 + 32), "aligned"),
        ("baseline", 1, aligned(1, 192).reshape(-1)[32:160].reshape(1, 128), "aligned"),
    ],
)
def test_scratch_that_threads_cannot_use_is_refused(
    isa: str, threads: int, scratch: Any, what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        NativeEngine(isa, threads, scratch)


def test_int8_activations_are_for_tiles_of_their_own_block_alone() -> None:
    built = Built()
    engine = built.engine
    square = engine.add_floats(np.zeros((WIDTH, 4 * WIDTH), np.uint8), WIDTH, F32)
    with pytest.raises(ValueError, match="no activations"):
        built.call("linear", matrix=square)
    built.call("linear", matrix=square, activations=-1)
    arrays = (np.zeros((32, 96), np.int8), np.zeros((6, 1), np.float32), np.zeros((6, 2), np.int32))
    other = engine.add_activations(*arrays, WIDTH, 16)
    with pytest.raises(ValueError, match="activations of another width"):
        built.call("linear", activations=other)


@pytest.mark.parametrize(
    ("source", "out"), [("other", "third"), ("hidden", "other"), ("third", "hidden")]
)
def test_layers_that_run_together_do_not_touch_what_another_writes(source: str, out: str) -> None:
    """Of the first, hidden -> other, one reads the result, one writes it, one writes the input."""
    built = Built()
    built.call("linear")
    places = {"input": getattr(built, source), "out": getattr(built, out)}
    with pytest.raises(ValueError, match="joined"):
        built.call("linear", **places, joined=True)
    built.call("linear", out=built.third, joined=True)
    assert built.engine.operation_count() == 1


def test_buffers_that_share_memory_are_not_read_and_written_together() -> None:
    built = Built()
    memory = np.zeros((2 * ROWS, WIDTH), np.float32)
    source, out, behind = (
        built.engine.add_buffer(part, WIDTH) for part in (memory[:ROWS], memory[1:], memory[ROWS:])
    )
    with pytest.raises(ValueError, match="reads what it writes"):
        built.call("linear", input=source, out=out)
    built.call("linear", input=source, out=behind)


def test_behind_select_there_are_fewer_rows_and_no_attention() -> None:
    built = Built()
    built.call("select")
    with pytest.raises(ValueError, match="a second one"):
        built.call("select", input=built.kept)
    with pytest.raises(ValueError, match="behind select"):
        built.call("attention")
    built.call("norm", input=built.kept, out=built.kept)
    built.call(
        "linear", input=built.kept, activations=-1, out=built.logits, matrix=built.floats, bias=None
    )


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
    engine.embed(False, places[0], engine.add_floats(table.view(np.uint8), WIDTH, F32))
    engine.select(*places)
    engine.step([([7, 8, 9], 0, [0], 2), ([4, 5], 3, [1], 0), ([6], 0, [2], 1)], 2)
    assert hidden[:, 0].tolist() == [7, 8, 9, 4, 5, 6]
    assert kept[:, 0].tolist() == [8, 9, 6, 0]


def test_an_engine_without_anything_takes_no_step() -> None:
    engine = NativeEngine("baseline", 1, aligned(1, 64))
    with pytest.raises(ValueError, match="step: rows"):
        engine.step([FIRST], 0)
