"""Rows of the tensors of a GGUF file, as the rest of Crumb reads them.

In: where a tensor lies, the order of its rows, how its numbers are written. Out: an entry of a
TensorMap; one for a matrix whose rows lie in several tensors.
Refuses scales and weights that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.gguf.architecture import Order
from crumb.checkpoints.gguf.container import StoredTensor
from crumb.checkpoints.gguf.number_forms import NumberForm
from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import Entry, Matrix, StoredCodes, StoredFloats
from crumb.errors import CheckpointError
from crumb.formats.grid import GroupParameters
from crumb.formats.layouts.gguf_blocks import decode_blocks, decode_floats, fits

GAP_ROWS = 64
"""Rows that are read and dropped rather than read in two pieces."""

Bytes = NDArray[np.uint8]
Result = TypeVar("Result")


@dataclass(frozen=True)
class TensorRows:
    """A tensor whose rows may lie in another order."""

    tensor: StoredTensor
    places: NDArray[np.intp] | None  # where each of our rows lies; None as ours do
    form: NumberForm | None = None  # how the file has its numbers; None as ours

    def entry(self) -> Entry:
        """Where it lies, as the rest of Crumb reads it. Raises: CheckpointError."""
        tensor = self.tensor
        type, shape, raw = tensor.type, tensor.shape, tensor.raw
        if type.float_dtype is not None:
            if self.places is None and self.form is None:
                return StoredArray(
                    raw.path, type.float_dtype, shape, raw.offset_bytes, raw.size_bytes
                )
            dtype = type.float_dtype if self.form is None else np.dtype(np.float32)
            return StoredFloats(dtype, shape, raw.size_bytes, type.name, self.floats)
        if len(shape) == 2 and type.format is not None and self.has_codes():
            matrix = shape[0], shape[1]
            return StoredCodes(type.format, matrix, raw.size_bytes, type.name, self.codes)
        return StoredFloats(np.dtype(np.float32), shape, raw.size_bytes, type.name, self.decoded)

    def has_codes(self) -> bool:
        """Whether codes can be read: powers of two beyond fp16 need floats."""
        if self.tensor.type.name != "MXFP4":
            return True
        rows, step = self.tensor.raw.shape[0], max((1 << 22) // self.tensor.raw.shape[1], 1)
        pieces = (slice(begin, begin + step) for begin in range(0, rows, step))
        return all(fits(self.tensor.type.name, self.tensor.raw.read(piece)) for piece in pieces)

    def codes(self, rows: slice) -> Matrix:
        """Some rows. Raises: CheckpointError."""
        raw = self._raw(rows)
        codes, parameters = decode_blocks(self.tensor.type.name, raw, self.tensor.in_features)
        for halves in (parameters.scale, parameters.minimum):
            if halves is not None and not np.isfinite(halves).all():
                raise self._not_finite(halves)
        return codes, parameters

    def decoded(self, rows: slice) -> NDArray[np.float32]:
        """Some rows of a quantized tensor, as f32. Raises: CheckpointError."""
        shape = self.tensor.shape
        with np.errstate(invalid="ignore", over="ignore"):
            if len(shape) == 1:
                whole = decode_floats(self.tensor.type.name, self.tensor.raw.read(), shape[0])
                decoded = self._ordered(whole[0], rows)
            else:
                lines = self._raw(rows)
                decoded = decode_floats(self.tensor.type.name, lines, shape[-1])
        if not np.isfinite(decoded).all():
            raise self._not_finite(decoded)
        return decoded

    def floats(self, rows: slice) -> NDArray[Any]:
        """Some rows of a float tensor. Raises: CheckpointError."""
        dtype, shape = self.tensor.type.float_dtype, self.tensor.shape
        assert dtype is not None
        if len(shape) == 1:
            weights = self._ordered(self.tensor.raw.read().view(dtype)[0], rows)
        else:
            weights = self._raw(rows).view(dtype)
        if self.form is None:
            return weights
        ours = self.form.read(weights.astype(np.float32))
        if not np.isfinite(ours).all():
            raise self._not_finite(ours)
        return ours

    def _not_finite(self, numbers: NDArray[Any]) -> CheckpointError:
        return CheckpointError(
            "a scale or a weight is not finite",
            where=f"{self.tensor.raw.path}: {self.tensor.name}",
            expected="finite numbers",
            found=str(numbers[~np.isfinite(numbers)][0]),
            do="The file is damaged: copy or download it again",
        )

    def _ordered(self, vector: NDArray[Any], rows: slice) -> NDArray[Any]:
        """Some numbers of a vector, in our order."""
        return vector[rows] if self.places is None else vector[self.places[rows]]

    def _raw(self, rows: slice) -> Bytes:
        """Some of our rows as bytes; only what lies around them is read."""
        raw = self.tensor.raw
        if self.places is None:
            return raw.read(rows)
        rows_of_file, back = np.unique(self.places[rows], return_inverse=True)
        if not len(rows_of_file):
            return raw.read(slice(0, 0))
        runs = np.split(rows_of_file, np.nonzero(np.diff(rows_of_file) > GAP_ROWS)[0] + 1)
        pieces = [raw.read(slice(int(run[0]), int(run[-1]) + 1))[run - run[0]] for run in runs]
        lines: Bytes = np.concatenate(pieces)[back]
        return lines


@dataclass(frozen=True)
class TensorPiece:
    """A tensor that has some rows of one of ours."""

    order: Order  # our row at each of its own
    rows: TensorRows
    expected: tuple[int, ...]  # its shape

    def check(self) -> None:
        """Raises: CheckpointError for another shape."""
        tensor = self.rows.tensor
        if tensor.shape != self.expected:
            raise CheckpointError(
                "a tensor does not have the shape its configuration implies",
                where=f"{tensor.raw.path}: {tensor.name}",
                expected=list(self.expected),
                found=list(tensor.shape),
            )


def joined(pieces: Sequence[TensorPiece]) -> Entry:
    """The matrix that its pieces make up. Raises: CheckpointError."""
    for piece in pieces:
        piece.check()
    return _Joined(tuple(pieces)).entry()


@dataclass(frozen=True)
class _Joined:
    """A matrix whose rows lie in several tensors."""

    pieces: tuple[TensorPiece, ...]

    def entry(self) -> Entry:
        """Codes where all pieces have those of one type, else floats."""
        tensors = [piece.rows.tensor for piece in self.pieces]
        rows = sum(tensor.shape[0] for tensor in tensors)
        size = sum(tensor.size_bytes for tensor in tensors)
        shape = rows, tensors[0].shape[1]
        names = sorted({tensor.type.name for tensor in tensors})
        format = tensors[0].type.format
        has_codes = all(each.rows.has_codes() for each in self.pieces)
        if len(names) == 1 and format is not None and has_codes:
            return StoredCodes(format, shape, size, names[0], self._codes)
        return StoredFloats(np.dtype(np.float32), shape, size, "+".join(names), self._floats)

    def _of(
        self, rows: slice, read: Callable[[TensorRows], Result]
    ) -> Iterator[tuple[Order, Result]]:
        """Places among some of our rows, and what a piece has for them."""
        begin, end = self._span(rows)
        for piece in self.pieces:
            inside = np.flatnonzero((piece.order >= begin) & (piece.order < end))
            if len(inside):
                yield piece.order[inside] - begin, read(replace(piece.rows, places=inside))

    def _span(self, rows: slice) -> tuple[int, int]:
        begin, end, _ = rows.indices(sum(len(piece.order) for piece in self.pieces))
        return begin, max(begin, end)

    def _codes(self, rows: slice) -> Matrix:
        """Some rows. Raises: CheckpointError."""
        parts = list(self._of(rows, lambda each: each.codes(slice(None))))
        back = np.argsort(np.concatenate([places for places, _ in parts]))
        codes = np.concatenate([codes for _, (codes, _) in parts])[back]
        every = [vars(parameters) for _, (_, parameters) in parts]
        names = [name for name, array in every[0].items() if array is not None]
        arrays = {name: np.concatenate([each[name] for each in every])[back] for name in names}
        return codes, GroupParameters(**arrays)

    def _floats(self, rows: slice) -> NDArray[np.float32]:
        """Some rows, decoded. Raises: CheckpointError."""
        begin, end = self._span(rows)
        weights = np.empty((end - begin, self.pieces[0].expected[1]), np.float32)
        for places, part in self._of(rows, _decoded):
            weights[places] = part
        return weights


def _decoded(rows: TensorRows) -> NDArray[np.float32]:
    is_float = rows.tensor.type.float_dtype is not None
    weights = (rows.floats if is_float else rows.decoded)(slice(None))
    return weights.astype(np.float32)
