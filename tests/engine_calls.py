"""An engine with one of everything, and for each of its calls arguments that work.

In: nothing. Out: Built, whose `call` changes some arguments of a call that works; its numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from crumb._native import (
    NativeEngine,
    activation_rows,
    activation_stride,
    attention_scratch_floats,
    cache_head_bytes,
    grouped_rows,
    grouping_integers,
    matmul_scratch_bytes,
)

ROWS, KEPT, WIDTH, VOCABULARY, POSITIONS, PAGES = 6, 2, 32, 48, 40, 4
F32, F16, BF16, INT8 = range(4)
FIXED, VARIABLE, MINIMUM = range(3)


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
        self.narrow = add(np.zeros((ROWS, 16), np.float32), 8)
        self.logits = add(np.zeros((KEPT, VOCABULARY), np.float32), VOCABULARY)
        self.chosen = add(np.zeros((ROWS, 16), np.float32), 8)
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
        if name.startswith(("add_", "move_")):
            return getattr(self.engine, name)(**usual)
        return self.engine.add(name, **usual)


def tiles(rows: int = WIDTH, extra: int = 0) -> np.ndarray[Any, Any]:
    """4 bits, fixed zero, one group of 32: 32 bytes of scales, 256 of codes."""
    return np.zeros((-(-rows // 16), 32 + 256 + extra), np.uint8)


def activations(rows: int = ROWS) -> tuple[Any, Any, Any]:
    return (
        np.zeros((activation_rows(rows), activation_stride(WIDTH)), np.int8),
        np.zeros((rows, 1), np.float32),
        np.zeros((rows, 1), np.int32),
    )


def pages(kind: int = F32, count: int = PAGES) -> np.ndarray[Any, Any]:
    return aligned(count, 2 * cache_head_bytes(16, kind))


EXPERTS = 9


def grouped(built: Built) -> list[int]:
    """Buffers with a row for each token and each of the 8 experts it uses."""
    rows = grouped_rows(8 * ROWS, EXPERTS)
    return [built.engine.add_buffer(np.zeros((rows, WIDTH), np.float32), WIDTH) for _ in range(4)]


def vector(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int32)


CALLS: dict[str, Callable[[Built], dict[str, Any]]] = {
    "add_buffer": lambda built: {"data": np.zeros((ROWS, WIDTH), np.float32), "width": WIDTH},
    "move_buffer": lambda built: {
        "index": built.hidden,
        "data": np.zeros((ROWS, WIDTH), np.float32),
    },
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
    "add_columns": lambda built: {
        "matrix": built.tiles,
        "places": vector(0, 3, WIDTH - 1),
        "tiles": np.zeros((WIDTH // 16, 3, 32), np.uint8),
    },
    "add_floats": lambda built: {
        "weights": np.zeros((8, 4 * WIDTH), np.uint8),
        "columns": WIDTH,
        "kind": F32,
    },
    "embed": lambda built: (
        {"of_positions": False, "out": built.hidden, "matrix": built.floats} | {"first_row": 0}
    ),
    "norm": lambda built: {
        "input": built.hidden,
        "out": built.other,
        "weight": np.ones(WIDTH, np.float32),
        "bias": np.ones(WIDTH, np.float32),
        "epsilon": 1e-5,
        "centered": True,
        "groups": 2,
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
        "widths": [8, 8],
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
        "sinks": None,
        "slopes": None,
        "slope_factor": 1.0,
        "rounded": False,
        "rate": 0.0,
        "span": 1.0,
        "first": 0,
        "chunk": 0,
        "distances": None,
        "farthest": 0,
        "memory": False,
        "pages": pages(),
        "cache": F32,
    },
    "remember": lambda built: {
        "key": built.hidden,
        "value": built.other,
        "heads": 2,
        "pages": pages(),
        "cache": F32,
    },
    "activation": lambda built: (
        {"input": 0, "out": built.third, "function": "silu", "number": None}
    ),
    "gate": lambda built: {"input": 0, "right": 1, "out": built.third, "function": "gelu"},
    "multiply": lambda built: {"left": built.hidden, "right": built.other, "out": built.third},
    "add": lambda built: {"left": built.hidden, "right": built.other, "out": built.third},
    "join": lambda built: (
        {"inputs": [built.half, built.narrow], "out": 0} | {"widths": [8, 8], "outer": 2}
    ),
    "router": lambda built: {
        "input": built.hidden,
        "shares": built.narrow,
        "chosen": built.chosen,
        "scoring": "sigmoid",
        "finish": "sum",
        "bias": np.ones(WIDTH, np.float32),
        "groups": 4,
        "top_groups": 2,
        "group_best": 2,
        "floor": 1e-20,
        "factor": 2.0,
    },
    "experts": lambda built: (
        dict(zip(("rows", "gates", "ups", "mixed"), grouped(built), strict=True))
        | {"input": built.hidden, "shares": built.narrow, "chosen": built.chosen}
        | {role: [built.tiles] * EXPERTS for role in ("gate", "up", "down")}
        | {f"{role}_bias": np.ones((EXPERTS, WIDTH), np.float32) for role in ("gate", "down")}
        | {"up_bias": None, "function": "silu", "slope": 1.0, "limit": 7.0, "shares_first": False}
        | {"activations": [], "out": built.third}
        | {"groups": np.zeros(grouping_integers(8 * ROWS, EXPERTS), np.int32)}
    ),
    "conv": lambda built: {
        "input": built.hidden,
        "out": built.other,
        "taps": np.ones((4, WIDTH), np.float32),
        "bias": np.ones(WIDTH, np.float32),
        "states": np.zeros((2, 3 * WIDTH + 16), np.float32),
        "begin": 16,
    },
    "recurrence": lambda built: {
        "rule": "wkv4",
        "inputs": [built.hidden, built.other],
        "out": built.third,
        "heads": WIDTH,
        "key_heads": WIDTH,
        "key_dim": 1,
        "weights": np.ones((2, WIDTH), np.float32),
        "states": np.zeros((2, 3 * WIDTH), np.float32),
        "begin": 0,
    },
    "nothing": lambda built: {},
    "select": lambda built: {"input": built.hidden, "out": built.kept},
    "gather": lambda built: {
        "input": built.hidden,
        "out": built.other,
        "order": np.arange(WIDTH, dtype=np.int32)[::-1].copy(),
    },
}
