"""Which GGUF type each tensor of a model is written in, its bytes, and what that changes.

In: an entry of a checkpoint and what the user wants. Out: a type's name, then bytes of some rows
and how far the weights moved. Codes are kept wherever the type can hold them.
Refuses types that do not exist and, on request, every change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.export_report import TensorReport
from crumb.checkpoints.float_parts import source_name
from crumb.checkpoints.tensor_map import Entry, Quantized
from crumb.errors import UsageError
from crumb.formats.grid import decode_reference
from crumb.formats.layouts.gguf_blocks import encode_blocks, encode_floats
from crumb.formats.layouts.gguf_conversion import (
    convert,
    exact_type,
    rounded_type,
    wider_exact_type,
)
from crumb.formats.layouts.gguf_rounding import quantize_floats
from crumb.formats.layouts.gguf_types import GGUF_TYPES

FLOAT_TYPES = {"float64": "F32", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""dtype of a float matrix -> the type that holds it; f64 is rounded."""

NEAREST = {2: "Q2_K", 3: "Q3_K", 4: "Q4_K", 5: "Q5_K", 6: "Q6_K", 8: "Q8_0"}
"""Bits of codes that no type can keep -> the type that their weights are rounded to."""

NARROW = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
NARROW |= {"IQ4_XS": "IQ4_NL", "Q2_0": "Q4_0"}
"""A type -> the one in its place where a row is no multiple of its block, as llama.cpp has it."""

PLAIN = "F16"
"""Where a row is no multiple of 32 either."""


def choose_type(entry: Entry, wanted: str | None = None, strict: bool = False) -> str:
    """The type of one matrix: the one wanted, else the nearest to its format.

    strict prefers a larger type to one that changes weights. Raises: UsageError.
    """
    if wanted is not None and wanted not in GGUF_TYPES:
        known = ", ".join(name.lower() for name in GGUF_TYPES)
        raise UsageError("no such GGUF type", expected=f"one of {known}", found=wanted.lower()[:40])
    return that_fits(wanted or _nearest(entry, strict), entry.shape[-1])


def _nearest(entry: Entry, strict: bool) -> str:
    """What a matrix becomes when nobody says: the same weights, or the same codes, or rounded."""
    if not isinstance(entry, Quantized):
        return FLOAT_TYPES[entry.dtype.name]
    format, in_features = entry.format, entry.shape[1]
    found = exact_type(format, in_features)
    if found is None and strict:
        found = wider_exact_type(format, in_features)
    return found or rounded_type(format, in_features) or NEAREST[format.bits]


def that_fits(type_name: str, in_features: int) -> str:
    """A type, or the one in its place for rows that are no multiple of its block."""
    while in_features % GGUF_TYPES[type_name].block_weights:
        type_name = NARROW.get(type_name, PLAIN)
    return type_name


@dataclass
class Change:
    """How far the weights of one tensor have moved, strip by strip."""

    moved: float = 0.0  # sum of squares
    size: float = 0.0
    why: str = ""

    def add(self, before: NDArray[np.float32], after: NDArray[np.float32], why: str) -> None:
        moved = float(np.sum(np.square(after - before, dtype=np.float64)))
        self.moved += moved
        self.size += float(np.sum(np.square(before, dtype=np.float64)))
        self.why = self.why or (why if moved else "")

    def report(self, name: str, entry: Entry, type_name: str) -> TensorReport:
        """What to tell of the tensor."""
        size = max(self.size, float(np.finfo(np.float64).tiny))
        change = float(np.sqrt(self.moved / size))
        return TensorReport(name, source_name(entry), type_name, not self.moved, change, self.why)


def encode_rows(entry: Entry, type_name: str, rows: slice, change: Change) -> NDArray[np.uint8]:
    """Bytes of some rows of a matrix, (rows, row_bytes).

    Raises: CheckpointError, SolveError, UsageError.
    """
    if not isinstance(entry, Quantized):
        weights = entry.read(rows).astype(np.float32)
        return _rounded(weights, type_name, change, "floats rounded")
    if entry.order is not None:
        weights = entry.read_float(rows, source_name(entry))
        return _rounded(weights, type_name, change, "columns in another order: rounded anew")
    codes, parameters = entry.read_codes(rows)
    if GGUF_TYPES[type_name].format is not None:
        try:
            found, stored, _ = convert(codes, parameters, entry.format, type_name)
        except UsageError:
            pass  # this type cannot keep the codes
        else:
            target = GGUF_TYPES[type_name].format
            assert target is not None, "a type with codes"
            before = decode_reference(codes, parameters, entry.format)
            change.add(
                before, decode_reference(found, stored, target), "codes kept, scales rounded"
            )
            return encode_blocks(type_name, found, stored)
    weights = decode_reference(codes, parameters, entry.format)
    return _rounded(weights, type_name, change, "rounded anew")


def _rounded(
    weights: NDArray[np.float32], type_name: str, change: Change, why: str
) -> NDArray[np.uint8]:
    """Weights rounded to nearest in a type."""
    row = GGUF_TYPES[type_name]
    if row.float_dtype is not None:
        raw = encode_floats(type_name, weights)
        after = raw.view(row.float_dtype).astype(np.float32)
        change.add(weights, after, why)
        return raw
    assert row.format is not None, "a type has floats or codes"
    codes, parameters = quantize_floats(weights, type_name)
    change.add(weights, decode_reference(codes, parameters, row.format), why)
    return encode_blocks(type_name, codes, parameters)
