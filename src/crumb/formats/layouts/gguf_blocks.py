"""The bytes of GGUF's tensor types, to codes and parameters and back.

In: rows of blocks (rows, row_bytes), uint8. Out: codes and GroupParameters of the type's Format, or
f32; each direction undoes the other exactly. Where the bits lie is in gguf_types.
Refuses inputs that are no whole blocks, and on writing what a type cannot hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb.errors import CheckpointError, UsageError
from crumb.formats.bit_stream import check_codes
from crumb.formats.catalog import SuperBlock
from crumb.formats.grid import Codes, Floats, GroupParameters, decode_reference
from crumb.formats.layouts.gguf_types import (
    EXPONENT_BIAS,
    Digits,
    GgufType,
    ScaleCode,
    find_type,
)

STRIP_VALUES = 1 << 18
"""Values that are taken out of their blocks together: they stay in a processor's cache."""

Bytes = NDArray[np.uint8]


def fits(type_name: str, raw: Bytes) -> bool:
    """Whether decode_blocks can give these rows: false if a power of two is beyond fp16."""
    row = find_type(type_name)
    if row.format is None:
        return False
    if row.scale_code is not ScaleCode.EXPONENT:
        return True
    exponents = raw.reshape(-1, row.block_bytes)[:, row.scale_byte]
    return bool((_power(exponents) == _half_power(exponents)).all())


def decode_blocks(type_name: str, raw: Bytes, in_features: int) -> tuple[Codes, GroupParameters]:
    """Codes (rows, in_features) and parameters of `GgufType.format`.

    Shapes: raw (rows, row_bytes). Raises: CheckpointError where not `fits`; UsageError for a width
    in no whole blocks.
    """
    row = find_type(type_name)
    assert row.format is not None, f"{type_name} has no codes; decode_floats reads it"
    if not fits(type_name, raw):
        raise CheckpointError(
            f"a scale of {type_name} is beyond fp16",
            expected="exponents of 104 to 143",
            do="Read the tensor as floats",
        )
    rows, blocks = len(raw), _blocks(row, raw, in_features)
    codes = _codes(row, blocks).reshape(rows, in_features)
    scale = _read_scale(row, blocks).reshape(rows, -1)
    if row.minimum_byte is None:
        minimum = None
    else:
        minimum = _read_half(blocks, row.minimum_byte).reshape(rows, -1)
    sub_scale = sub_minimum = None
    if row.sub_scale:
        digits = _read_digits(blocks, row.sub_scale) - np.uint8(row.sub_scale_bias)
        sub_scale = digits.view(np.int8).reshape(rows, -1)
    if row.sub_minimum:
        sub_minimum = _read_digits(blocks, row.sub_minimum).reshape(rows, -1)
    return codes, GroupParameters(scale, None, minimum, sub_scale, sub_minimum)


def encode_blocks(type_name: str, codes: Codes, parameters: GroupParameters) -> Bytes:
    """Undo decode_blocks. Shapes: codes (rows, in_features) -> (rows, row_bytes).

    Raises: UsageError for a width in no whole blocks, and for what the type cannot hold.
    """
    row = find_type(type_name)
    assert row.format is not None, f"{type_name} has no codes; encode_floats writes it"
    rows, in_features = codes.shape
    count = row.blocks(in_features)
    check_codes(codes, row.format.bits)
    blocks = np.zeros((rows * count, row.block_bytes), np.uint8)
    _write_digits(blocks, row.codes, codes ^ np.uint8(row.code_flip))
    _write_scale(row, blocks, parameters.scale)
    if row.minimum_byte is not None:
        assert parameters.minimum is not None, f"{row.format.name} stores a minimum"
        _write_half(blocks, row.minimum_byte, parameters.minimum)
    super_block = row.format.row.super_block
    if super_block is not None:
        assert parameters.sub_scale is not None, f"{row.format.name} stores sub-scales"
        _check_sub(row, super_block, parameters)
        digits = parameters.sub_scale.view(np.uint8) + np.uint8(row.sub_scale_bias)
        _write_digits(blocks, row.sub_scale, digits)
        if parameters.sub_minimum is not None:
            _write_digits(blocks, row.sub_minimum, parameters.sub_minimum)
    return blocks.reshape(rows, -1)


def decode_floats(type_name: str, raw: Bytes, in_features: int) -> Floats:
    """Weights of any type, (rows, in_features); a power of two beyond fp16 is no obstacle."""
    row = find_type(type_name)
    if row.float_dtype is not None:
        _blocks(row, raw, in_features)
        return np.ascontiguousarray(raw).view(row.float_dtype).astype(np.float32)
    assert row.format is not None, "a type has floats or codes"
    if row.scale_code is not ScaleCode.EXPONENT:
        return decode_reference(*decode_blocks(type_name, raw, in_features), row.format)
    blocks = _blocks(row, raw, in_features)
    levels = np.array(row.format.row.table, np.float32)[_codes(row, blocks)]
    with np.errstate(over="ignore"):  # the largest exponents are infinite in f32
        weights: Floats = levels * _power(blocks[:, row.scale_byte])[:, None]
    return weights.reshape(len(raw), in_features)


def encode_floats(type_name: str, weights: Floats) -> Bytes:
    """Rows of F32, F16 or BF16, rounded to nearest. Raises: UsageError where F16 overflows."""
    dtype = find_type(type_name).float_dtype
    assert dtype is not None, f"{type_name} has codes; encode_blocks writes it"
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(weights).astype(dtype)
    if not np.array_equal(np.isfinite(floats), np.isfinite(weights)):
        raise UsageError(
            f"a weight does not fit {type_name}",
            found=float(np.abs(weights).max()),
            do="Write the tensor as F32",
        )
    return floats.view(np.uint8)


def _blocks(row: GgufType, raw: Bytes, in_features: int) -> Bytes:
    """The blocks of all rows, (blocks, block_bytes)."""
    expected = row.row_bytes(in_features)
    assert raw.shape[1] == expected, f"{row.name}: {raw.shape[1]} bytes in a row of {expected}"
    return raw.reshape(-1, row.block_bytes)


def _codes(row: GgufType, blocks: Bytes) -> Codes:
    """Our codes of each block, (blocks, block_weights)."""
    return _read_digits(blocks, row.codes) ^ np.uint8(row.code_flip)


def _read_digits(blocks: Bytes, runs: tuple[Digits, ...]) -> Bytes:
    """The values that these runs hold, (blocks, values); strip by strip, for the caches' sake."""
    values = np.zeros((len(blocks), max(run.first_value + run.count for run in runs)), np.uint8)
    step = max(STRIP_VALUES // values.shape[1], 1)
    for begin in range(0, len(blocks), step):
        strip = slice(begin, begin + step)
        _add_digits(blocks[strip], runs, values[strip])
    return values


def _add_digits(blocks: Bytes, runs: tuple[Digits, ...], values: Bytes) -> None:
    """Put what these runs hold into values that are 0 there."""
    for run in runs:
        run_bytes = blocks[:, run.first_byte : run.end_byte].reshape(len(blocks), -1, 1, run.stride)
        digits = run_bytes >> run.shifts & np.uint8((1 << run.width) - 1)
        end = run.first_value + run.count
        values[:, run.first_value : end] |= digits.reshape(len(blocks), -1) << run.low_in_value


def _write_digits(blocks: Bytes, runs: tuple[Digits, ...], values: Bytes) -> None:
    """Undo _read_digits, into bytes that hold 0 there. Shapes: values any of the same size."""
    each = values.reshape(len(blocks), -1)
    for run in runs:
        part = each[:, run.first_value : run.first_value + run.count] >> run.low_in_value
        digits = (part & np.uint8((1 << run.width) - 1)).reshape(
            len(blocks), -1, run.per_byte, run.stride
        )
        run_bytes = np.bitwise_or.reduce(digits << run.shifts, axis=2)
        blocks[:, run.first_byte : run.end_byte] |= run_bytes.reshape(len(blocks), -1)


def _read_half(blocks: Bytes, at: int) -> NDArray[np.float16]:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")[:, 0]


def _write_half(blocks: Bytes, at: int, values: NDArray[np.float16]) -> None:
    halves = np.ascontiguousarray(values.reshape(-1, 1), "<f2")
    blocks[:, at : at + 2] = halves.view(np.uint8)


def _read_scale(row: GgufType, blocks: Bytes) -> NDArray[np.float16]:
    if row.scale_code is ScaleCode.EXPONENT:
        return _half_power(blocks[:, row.scale_byte])
    half = _read_half(blocks, row.scale_byte)
    return -half if row.scale_code is ScaleCode.NEGATED else half


def _write_scale(row: GgufType, blocks: Bytes, scale: NDArray[np.float16]) -> None:
    if row.scale_code is not ScaleCode.EXPONENT:
        negated = row.scale_code is ScaleCode.NEGATED
        _write_half(blocks, row.scale_byte, -scale if negated else scale)
        return
    fraction, exponent = np.frexp(scale.astype(np.float32))
    odd = fraction != 0.5
    if odd.any():
        raise UsageError(
            f"{row.name} cannot hold a scale",
            expected="powers of two",
            found=float(scale[odd][0]),
        )
    blocks[:, row.scale_byte] = (exponent - 1 + EXPONENT_BIAS).astype(np.uint8).reshape(-1)


def _power(exponents: Bytes) -> Floats:
    """2^(e-128), exact in f32 for every byte."""
    powers: Floats = np.ldexp(np.float32(1), exponents.astype(np.int32) - EXPONENT_BIAS)
    return powers


def _half_power(exponents: Bytes) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return _power(exponents).astype(np.float16)


def _check_sub(row: GgufType, block: SuperBlock, parameters: GroupParameters) -> None:
    """Refuse sub-scales and sub-minima that the type's digits cannot hold. Raises: UsageError."""
    lowest = {"sub_scale": block.lowest, "sub_minimum": 0}
    for name, low in lowest.items():
        values = getattr(parameters, name)
        if values is not None and (values.min() < low or values.max() > block.highest):
            raise UsageError(
                f"{row.name} cannot hold a {name}",
                expected=f"{low} to {block.highest}",
                found=f"{values.min()} to {values.max()}",
            )
