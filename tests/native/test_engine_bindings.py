"""NativeEngine refuses every wrong call with a Python error; nothing it is given can crash it.

In: arrays of the wrong shape, dtype, order or size, and numbers out of range. Out: ValueError or
TypeError. Each case changes one thing of a call that works.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_calls import (
    BF16,
    CALLS,
    F16,
    F32,
    INT8,
    MINIMUM,
    POSITIONS,
    ROWS,
    VARIABLE,
    VOCABULARY,
    WIDTH,
    Built,
    aligned,
    pages,
    tiles,
    vector,
)

from crumb._native import NativeEngine


@pytest.mark.parametrize("name", [name for name in CALLS if name != "nothing"])
def test_the_usual_call_works(name: str) -> None:
    Built().call(name)


def test_another_rule_takes_other_arguments() -> None:
    Built().call("recurrence", **SCAN)
    Built().call("recurrence", **SCAN | {"rule": "delta", "inputs": [3, 3, 0, 6, 6]})


def wrong_dtype(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(np.float64)


LARGE, LONGEST = 1 << 62, (1 << 63) - 1

SCAN: dict[str, Any] = {
    "rule": "scan",
    "inputs": [3, 3, 0, 6],
    "heads": 8,
    "key_heads": 4,
    "key_dim": 4,
    "weights": np.ones((3, 16), np.float32),
    "states": np.zeros((2, 512), np.float32),
}
"""Another rule's arguments that work: 8 heads of 4 values."""

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("add_buffer", {"width": 0}, "rows of 16 floats"),
    ("add_buffer", {"width": WIDTH + 1}, "rows of 16 floats"),
    ("add_buffer", {"data": np.zeros((ROWS, 24), np.float32), "width": 24}, "rows of 16 floats"),
    ("move_buffer", {"index": -1}, "no such buffer"),
    ("move_buffer", {"index": 99}, "no such buffer"),
    ("move_buffer", {"data": np.zeros((ROWS - 1, WIDTH), np.float32)}, "other rows"),
    ("move_buffer", {"data": np.zeros((ROWS, 2 * WIDTH), np.float32)}, "other rows"),
    ("add_activations", {"block_inputs": 0}, "block_inputs"),
    ("add_activations", {"block_inputs": 129}, "block_inputs"),
    ("add_activations", {"codes": np.zeros((31, 128), np.int8)}, "rows padded"),
    ("add_activations", {"codes": np.zeros((32, 127), np.int8)}, "too narrow"),
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
    ("add_columns", {"matrix": 99}, "no such matrix"),
    ("add_columns", {"matrix": 0}, "of a matrix of tiles"),
    ("add_columns", {"places": vector(3, 3, 4)}, "columns: places"),
    ("add_columns", {"places": vector(-1, 3, 4)}, "columns: places"),
    ("add_columns", {"places": vector(0, 3, WIDTH)}, "columns: places"),
    ("add_columns", {"places": vector(0, 3)}, "wrong shape"),
    ("add_columns", {"tiles": np.zeros((2, 3, 31), np.uint8)}, "wrong shape"),
    ("add_columns", {"tiles": np.zeros((1, 3, 32), np.uint8)}, "wrong shape"),
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
    ("embed", {"first_row": -1}, "no such row"),
    ("embed", {"first_row": VOCABULARY}, "no such row"),
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
    ("split", {"outs": []}, "a width for each output"),
    ("split", {"outer": 0}, "outer out of range"),
    ("split", {"outer": 1 << 40}, "outer out of range"),
    ("split", {"widths": [-8, 24]}, "widths differ"),
    ("split", {"widths": [8]}, "a width for each output"),
    ("split", {"outs": [3]}, "a width for each output"),
    ("split", {"outs": [3, 4]}, "widths differ"),
    ("split", {"outs": [3, 99]}, "no such buffer"),
    ("split", {"outer": 4}, "widths differ"),
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
    ("attention", {"cache": BF16}, "cache kind"),
    ("attention", {"cache": 4}, "cache kind"),
    ("attention", {"cache": F16}, "wrong size"),
    ("attention", {"pages": pages()[:, :-64].copy()}, "wrong size"),
    ("attention", {"window": -1}, "negative window"),
    ("attention", {"sinks": np.ones(3, np.float32)}, "a sink for each head"),
    ("attention", {"chunk": -1}, "negative window"),
    ("attention", {"slopes": np.ones(3, np.float32)}, "a slope for each head"),
    ("attention", {"span": 0.0}, "temperature"),
    ("attention", {"first": -1}, "temperature"),
    ("attention", {"value": -1}, "wrong size"),
    ("attention", {"key": -1}, "keys of a memory"),
    ("attention", {"memory": True, "causal": False}, "keys of a memory"),
    ("attention", {"memory": True, "key": -1, "value": -1}, "a memory is seen whole"),
    ("attention", {"distances": np.ones((2, 40), np.float32), "farthest": 5}, "distances"),
    ("attention", {"distances": np.ones((3, 41), np.float32), "farthest": 5}, "distances"),
    ("attention", {"distances": np.ones((2, 31), np.float32), "farthest": 0}, "distances"),
    ("remember", {"heads": 3}, "heads do not divide"),
    ("remember", {"heads": 0}, "heads do not divide"),
    ("remember", {"value": 4}, "heads do not divide|wrong size"),
    ("remember", {"cache": 4}, "cache kind"),
    ("remember", {"pages": pages()[:, :-64].copy()}, "wrong size"),
    ("activation", {"function": "sine"}, "unknown function"),
    ("activation", {"function": "scale"}, "a number too many or too few"),
    ("activation", {"number": 2.0}, "a number too many or too few"),
    ("activation", {"function": "clip", "number": 0.0}, "a bound must be above 0"),
    ("gate", {"function": "scale"}, "a function with a number"),
    ("multiply", {"out": 3}, "widths"),
    ("add", {"right": 4}, "widths"),
    ("add", {"right": 5}, "too few rows"),
    ("join", {"widths": [8]}, "a width for each"),
    ("join", {"widths": [8, 9]}, "widths differ"),
    ("join", {"widths": [8, LARGE]}, "widths differ"),
    ("join", {"widths": [16, 0]}, "widths differ"),
    ("join", {"inputs": [3, 99]}, "no such buffer"),
    ("join", {"inputs": [0], "widths": [16]}, "writes what it reads"),
    ("conv", {"out": 3}, "widths differ"),
    ("conv", {"taps": np.ones((1, WIDTH), np.float32)}, "2 to 8 taps"),
    ("conv", {"taps": np.ones((9, WIDTH), np.float32)}, "2 to 8 taps"),
    ("conv", {"taps": np.ones((4, 16), np.float32)}, "whole rows"),
    ("conv", {"bias": np.ones(31, np.float32)}, "a whole row"),
    *[("conv", {"begin": begin}, "too narrow") for begin in (-16, 8, 32, LARGE, LONGEST)],
    ("conv", {"states": np.ones((2, 3 * WIDTH + 8), np.float32)}, "too narrow"),
    ("conv", {"states": np.ones((0, 3 * WIDTH + 16), np.float32)}, "none"),
    ("conv", {"states": None}, "none"),
    ("recurrence", {"rule": "wkv5"}, "no such rule"),
    ("recurrence", {"inputs": [0]}, "a key and a value"),
    ("recurrence", {"inputs": [0, 99]}, "no such buffer"),
    ("recurrence", {"inputs": [0, 4]}, "widths differ"),
    ("recurrence", {"heads": 31}, "a feature is a head"),
    ("recurrence", {"heads": 16, "key_heads": 16}, "widths differ"),
    ("recurrence", {"rule": "delta"}, "inputs of another rule"),
    ("recurrence", SCAN | {"heads": 9}, "heads do not divide"),
    ("recurrence", SCAN | {"heads": LARGE}, "heads do not divide"),
    ("recurrence", SCAN | {"key_heads": 0}, "heads do not divide"),
    ("recurrence", SCAN | {"key_heads": 3}, "heads do not divide"),
    ("recurrence", SCAN | {"key_dim": 257}, "1 to 256 features"),
    ("recurrence", SCAN | {"key_dim": 0}, "1 to 256 features"),
    ("recurrence", SCAN | {"key_heads": 2}, "widths differ"),
    ("recurrence", SCAN | {"inputs": [3, 3, 0, 3]}, "widths differ"),
    ("recurrence", SCAN | {"inputs": [3, 3, 2, 6]}, "reads what it writes"),
    ("recurrence", SCAN | {"weights": np.ones((2, 16), np.float32)}, "a rate, a bias"),
    ("recurrence", SCAN | {"states": np.zeros((2, 496), np.float32)}, "too narrow"),
    ("recurrence", {"weights": np.ones((1, WIDTH), np.float32)}, "a decay and a bonus"),
    ("recurrence", {"weights": np.ones((2, 16), np.float32)}, "a decay and a bonus"),
    ("recurrence", {"begin": 16}, "too narrow"),
    ("router", {"scoring": "sum"}, "unknown function"),
    ("router", {"finish": "tanh"}, "unknown function"),
    ("router", {"bias": np.ones(31, np.float32)}, "bias"),
    ("router", {"shares": 3}, "widths differ"),
    ("router", {"chosen": 4}, "widths differ"),
    ("router", {"chosen": 6}, "reads what it writes"),
    ("router", {"input": 5}, "too few rows"),
    *[("router", {"groups": groups}, "groups do not divide") for groups in (0, -4, 3, LARGE)],
    *[("router", {"top_groups": count}, "groups do not divide") for count in (0, 5, LONGEST)],
    *[("router", {"group_best": count}, "groups do not divide") for count in (0, 9, LONGEST)],
    ("router", {"groups": 32, "group_best": 1}, "groups do not divide"),
    ("experts", {"gate": []}, "bias has the wrong shape"),
    ("experts", {"up": [0]}, "widths differ"),
    ("experts", {"up": [2]}, "a gate, an up and a down"),
    ("experts", {"down": [9]}, "no such matrix"),
    ("experts", {"gate": [2] * 7, "gate_bias": None, "up": [2] * 7}, "a gate, an up and a down"),
    ("experts", {"gate_bias": np.ones((8, WIDTH), np.float32)}, "bias"),
    ("experts", {"down_bias": np.ones((9, 31), np.float32)}, "bias"),
    ("experts", {"shares": 3}, "widths differ"),
    ("experts", {"rows": 0}, "too few rows"),
    ("experts", {"out": 0}, "reads what it writes"),
    ("experts", {"activations": [1]}, "too few rows"),
    ("experts", {"activations": [2]}, "no activations"),
    ("experts", {"groups": np.zeros(100, np.int32)}, "groups: too small"),
    ("experts", {"function": "sine"}, "unknown function"),
    ("norm", {"groups": 0}, "groups do not divide"),
    ("norm", {"weight": np.ones(8, np.float32)}, "widths differ"),
    ("norm", {"weight": np.ones(16, np.float32)}, "bias has the wrong width"),
    ("linear", {"joined": True}, "nothing to join"),
    ("nothing", {}, "no such kind"),
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


@pytest.mark.parametrize("name", [name for name in CALLS if name != "nothing"])
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
    for name, key in (
        ("add_buffer", "data"),
        ("move_buffer", "data"),
        ("attention", "pages"),
        ("conv", "states"),
        ("add_activations", "scale"),
    ):
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
    arrays = (
        np.zeros((32, 128), np.int8),
        np.zeros((6, 1), np.float32),
        np.zeros((6, 2), np.int32),
    )
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


@pytest.mark.parametrize("wrong", [{"more": 1}, {"groups": 1.5}, {"groups": "2"}, {"groups": True}])
def test_arguments_of_another_name_or_type_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="norm: "):
        Built().call("norm", **wrong)
    with pytest.raises(TypeError, match="norm: no input"):
        Built().engine.add("norm")


def test_behind_select_there_are_fewer_rows_and_no_attention() -> None:
    built = Built()
    built.call("select")
    with pytest.raises(ValueError, match="a second one"):
        built.call("select", input=built.kept)
    for name in ("attention", "conv"):
        with pytest.raises(ValueError, match=r"behind select|too few rows"):
            built.call(name)
    built.call("norm", input=built.kept, out=built.kept)
    built.call(
        "linear", input=built.kept, activations=-1, out=built.logits, matrix=built.floats, bias=None
    )
