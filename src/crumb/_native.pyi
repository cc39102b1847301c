# Types of the native module; native/bindings.cpp is its source, tests/native pins the names.
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Bytes = NDArray[np.uint8]
_Argument = bool | int | float | str | list[int] | NDArray[np.generic] | None

def supported_sets() -> list[str]: ...
def pack(codes: _Bytes, packed: _Bytes, bits: int) -> None: ...
def unpack(packed: _Bytes, codes: _Bytes, bits: int) -> None: ...
def pack_tiles(
    codes: _Bytes,
    headers: _Bytes,
    tiles: _Bytes,
    block_width: int,
    last_header_bytes: int,
    bits: int,
) -> None: ...
def unpack_tiles(
    tiles: _Bytes,
    codes: _Bytes,
    headers: _Bytes,
    block_width: int,
    last_header_bytes: int,
    bits: int,
) -> None: ...
def decode_tiles(
    tiles: _Bytes,
    table: NDArray[np.int8],
    weights: _Floats,
    group_width: int,
    bits: int,
    zero: int,
    sub: int,
) -> None: ...
def draw(
    isa: str,
    scores: _Floats,
    best: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float,
) -> int: ...
def sweep(
    isa: str,
    start: _Floats,
    weights: _Floats,
    factor: _Floats,
    scale: _Floats,
    offset: _Floats,
    group: NDArray[np.int32],
    codes: _Bytes,
    error: _Floats,
    largest_code: int,
    zero: int,
    rounding: bool,
    levels: _Floats,
) -> None: ...
def grid_search(
    isa: str,
    weights: _Floats,
    importance: _Floats,
    shrinks: _Floats,
    scale: _Floats,
    offset: _Floats,
    group_width: int,
    bits: int,
    zero: int,
    levels: _Floats,
) -> None: ...
def compiled_sets() -> list[tuple[str, bool, str]]: ...
def read_pass(isa: str, array: NDArray[np.uint8], threads: int) -> float: ...
def dot_peak(isa: str, threads: int, seconds: float) -> float: ...
def multiply(
    isa: str, left: _Floats, right: _Floats, out: _Floats, turned: bool, begin: int, end: int
) -> None: ...
def float_peak(isa: str, threads: int, seconds: float) -> float: ...
def matmul_scratch_bytes(columns: int) -> int: ...
def attention_scratch_floats(context_tokens: int, head_dim: int) -> int: ...
def buffer_stride(width: int) -> int: ...
def activation_stride(columns: int) -> int: ...
def activation_rows(tokens: int) -> int: ...
def cache_head_bytes(head_dim: int, kind: int, value_dim: int | None = None) -> int: ...
def grouped_rows(pairs: int, groups: int) -> int: ...
def grouping_integers(pairs: int, groups: int) -> int: ...

PAGE_TOKENS: int
BLOCK_INPUTS: int
FEW_TOKENS: dict[str, int]
ZERO_KINDS: dict[str, int]
SUB_KINDS: dict[str, int]
FLOAT_KINDS: dict[str, int]
CACHE_KINDS: dict[str, int]

class NativeEngine:
    """native/engine_bindings.cpp says what each call checks; indices are those of add_*."""

    def __init__(self, isa: str, threads: int, scratch: _Bytes) -> None: ...
    def add_buffer(self, data: _Floats, width: int) -> int: ...
    def move_buffer(self, index: int, data: _Floats) -> None: ...
    def add_activations(
        self,
        codes: NDArray[np.int8],
        scale: _Floats,
        sum: NDArray[np.int32],
        columns: int,
        block_inputs: int,
    ) -> int: ...
    def add_tiles(
        self,
        tiles: _Bytes,
        rows: int,
        columns: int,
        group_width: int,
        bits: int,
        zero: int,
        sub: int,
        table: _Bytes | None,
    ) -> int: ...
    def add_columns(self, matrix: int, places: NDArray[np.int32], tiles: _Bytes) -> None: ...
    def add_floats(self, weights: _Bytes, columns: int, kind: int) -> int: ...
    def add(self, kind: str, **arguments: _Argument) -> None: ...
    def begin_section(self) -> None: ...
    def section_end(self, section: int) -> int: ...
    def operation_count(self) -> int: ...
    def set_timed(self, timed: bool) -> None: ...
    def seconds(self) -> dict[str, float]: ...
    def step(
        self,
        parts: Sequence[tuple[Sequence[int], int, Sequence[int], int]],
        operations: int,
        section: int = 0,
        memories: Sequence[tuple[int, Sequence[int]]] = (),
        states: Sequence[Sequence[tuple[int, int, int]]] = (),
    ) -> None: ...
