# Types of the native module; native/bindings.cpp is its source, tests/native pins the names.
import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Bytes = NDArray[np.uint8]

def supported_sets() -> list[str]: ...
def pack(codes: _Bytes, packed: _Bytes, bits: int) -> None: ...
def unpack(packed: _Bytes, codes: _Bytes, bits: int) -> None: ...
def decode(
    packed: _Bytes,
    scale: _Floats,
    offset: _Floats,
    weights: _Floats,
    group_width: int,
    bits: int,
    zero: int,
) -> None: ...
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
) -> None: ...
