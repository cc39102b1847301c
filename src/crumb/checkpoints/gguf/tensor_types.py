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
from crumb.checkpoints.tensor_map import Entry, Quantized, StoredPacked
from crumb.errors import SolveError, UsageError
from crumb.formats.grid import decode_reference
from crumb.formats.layouts.gguf_blocks import encode_blocks, encode_floats
from crumb.formats.layouts.gguf_conversion import (
    TYPE_OF_BITS,
    convert,
    exact_type,
    rounded_type,
    that_fits,
    wider_exact_type,
)
from crumb.formats.layouts.gguf_rounding import quantize_floats
from crumb.formats.layouts.gguf_types import GGUF_TYPES

TYPE_OF_FLOATS = {"float64": "F32", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""dtype of a float matrix -> the type that holds it; f64 is rounded."""


def choose_type(entry: Entry, asked: str | None = None, strict: bool = False) -> str:
    """The type of one matrix: the one wanted, else the nearest to its format.

    strict prefers a larger type to one that changes weights. Raises: UsageError.
    """
    name = _nearest(entry, strict) if asked is None else asked.upper()
    if name not in GGUF_TYPES:
        names = ", ".join(names.lower() for names in GGUF_TYPES)
        raise UsageError("no such GGUF type", expected=f"one of {names}", found=name.lower()[:40])
    return that_fits(name, entry.shape[-1])


def _nearest(entry: Entry, strict: bool) -> str:
    """What a matrix becomes when nobody says: the same weights, or the same codes, or rounded."""
    if not isinstance(entry, Quantized):
        return TYPE_OF_FLOATS[entry.dtype.name]
    format, in_features = entry.format, entry.shape[1]
    exact = exact_type(format, in_features)
    if exact is None and strict:
        exact = wider_exact_type(format, in_features)
    return exact or rounded_type(format, in_features) or TYPE_OF_BITS[format.bits]


def start_change(type_name: str, asked: str | None) -> Change:
    """The change of a tensor that has not begun; it knows when the type asked for did not fit."""
    if asked is None or asked.upper() == type_name:
        return Change()
    return Change(why=f"{asked.lower()} needs inputs in whole blocks of its own")


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
        return TensorReport(name, entry.source, type_name, not self.moved, change, self.why)


def encode_rows(entry: Entry, type_name: str, rows: slice, change: Change) -> NDArray[np.uint8]:
    """Bytes of some rows of a matrix, (rows, row_bytes).

    Raises: CheckpointError, SolveError, UsageError.
    """
    if not isinstance(entry, Quantized):
        weights = entry.read_float(rows)
        return _rounded(weights, type_name, change, "floats rounded")
    if isinstance(entry, StoredPacked) and entry.columns is not None:
        return _rounded(entry.read_float(rows), type_name, change, "float columns: decoded")
    if entry.order is not None:
        weights = entry.read_float(rows)
        return _rounded(weights, type_name, change, "columns in another order: rounded anew")
    codes, parameters = entry.read_codes(rows)
    target = GGUF_TYPES[type_name].format
    if target is not None:
        try:
            made = convert(codes, parameters, entry.format, type_name)
        except UsageError:
            pass  # this type cannot keep the codes
        else:
            target_codes, target_parameters, changed = made
            if changed or not _holds(type_name, entry):
                # A strip that happens to be kept still counts in the size of the tensor.
                before = after = decode_reference(codes, parameters, entry.format)
                if changed:
                    after = decode_reference(target_codes, target_parameters, target)
                change.add(before, after, "codes kept, scales rounded")
            return encode_blocks(type_name, target_codes, target_parameters)
    weights = decode_reference(codes, parameters, entry.format)
    return _rounded(weights, type_name, change, "rounded anew")


def _holds(type_name: str, entry: Quantized) -> bool:
    """Whether a type holds every matrix of this format, so that no strip of rows changes."""
    of_format = entry.format, entry.shape[1]
    return type_name in (exact_type(*of_format), wider_exact_type(*of_format))


def _rounded(
    weights: NDArray[np.float32], type_name: str, change: Change, why: str
) -> NDArray[np.uint8]:
    """Weights rounded to nearest in a type. Raises: SolveError, UsageError."""
    if not np.isfinite(weights).all():
        raise SolveError(
            "a weight is not finite",
            expected="finite numbers",
            do="The checkpoint is damaged or overflowed when it was converted",
        )
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
