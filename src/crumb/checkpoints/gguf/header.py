"""The bytes of a GGUF header: numbers, strings and key-values, each read checked; and written.

In: an open file, or Python values. Out: Python values, or bytes. A numeric array is a numpy array
of its own type, an array of strings a list.
Refuses what reaches past the end of the file, nested arrays, other types, bad UTF-8 and booleans
that are neither 0 nor 1; nothing is allocated on a claimed size.
Source: the GGUF format description.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from crumb.errors import CheckpointError

Value = bool | int | float | str | list[str] | NDArray[Any]
"""What a key of the metadata may hold."""

LARGEST_HEADER_BYTES = 1 << 27
"""Four times the largest vocabulary there is, with its merges."""

LARGEST_STRING_COUNT = 1 << 22
"""Strings of one array: a short one takes several times its bytes in memory."""

FIRST_READ_BYTES = 1 << 16

AGAIN = "The file is truncated or damaged: copy or download it again"

TYPES: dict[int, tuple[str, np.dtype[Any]]] = {
    0: ("u8", np.dtype("u1")),
    1: ("i8", np.dtype("i1")),
    2: ("u16", np.dtype("<u2")),
    3: ("i16", np.dtype("<i2")),
    4: ("u32", np.dtype("<u4")),
    5: ("i32", np.dtype("<i4")),
    6: ("f32", np.dtype("<f4")),
    7: ("bool", np.dtype("?")),
    10: ("u64", np.dtype("<u8")),
    11: ("i64", np.dtype("<i8")),
    12: ("f64", np.dtype("<f8")),
}
"""Type of a value -> its name and how numpy calls it."""

STRING, ARRAY = 8, 9
TYPE_OF_DTYPE = {dtype: number for number, (_, dtype) in TYPES.items()}
U32, F32 = 4, 6
WHOLE = (4, 5, 10, 11)
"""u32, i32, u64, i64."""

_U64 = struct.Struct("<Q")


@dataclass
class HeaderBytes:
    """A cursor over the beginning of a file; more is read when it is needed."""

    path: Path
    file: BinaryIO
    file_bytes: int
    at: int = 0
    raw: bytes = field(default=b"", repr=False)

    def left(self) -> int:
        """Bytes between the cursor and the end of the file."""
        return self.file_bytes - self.at

    def refuse(
        self, what: str, name: str, expected: object, found: object, do: str | None = None
    ) -> CheckpointError:
        """The error for one field at the cursor."""
        shown = found if isinstance(found, int) else str(found)[:80]
        where = f"{self.path} at byte {self.at}: {name}"
        return CheckpointError(what, where=where, expected=expected, found=shown, do=do)

    def need(self, count: int, name: str) -> int:
        """Have so many bytes behind the cursor in memory; where they end. Raises: CheckpointError.

        Bytes are read only once the file is known to be long enough.
        """
        end = self.at + count
        if end <= len(self.raw):
            return end
        if count > self.left():
            raise self.refuse(
                "a field reaches past the end of the file",
                name,
                f"at most {self.left()} bytes",
                count,
                AGAIN,
            )
        if end > LARGEST_HEADER_BYTES:
            raise self.refuse(
                "the header is too large", name, f"at most {LARGEST_HEADER_BYTES} bytes", end
            )
        end_of_read = max(end, 2 * len(self.raw), FIRST_READ_BYTES)
        self.raw += self.file.read(end_of_read - len(self.raw))
        if len(self.raw) < end:
            raise self.refuse("the file became shorter", name, f"{end} bytes", len(self.raw))
        return end

    def number(self, dtype: np.dtype[Any], name: str) -> bool | int | float:
        """One number of this type. Raises: CheckpointError."""
        end = self.need(dtype.itemsize, name)
        number = np.frombuffer(self.raw, dtype, 1, self.at)
        self._check_flags(number, name)
        self.at = end
        value: bool | int | float = number[0].item()
        return value

    def count(self, name: str, least_bytes: int, highest: int) -> int:
        """A u64 count of things that take at least so many bytes each. Raises: CheckpointError."""
        count = int(self.number(TYPES[10][1], name))
        room = min(self.left() // least_bytes, highest)
        if count > room:
            self.at -= 8
            expected = f"at most {room} in {self.left() - 8} bytes"
            raise self.refuse("a count that cannot be", name, expected, count, AGAIN)
        return count

    def string(self, name: str) -> str:
        """A length and so many bytes of UTF-8. Raises: CheckpointError."""
        return self.strings(1, name)[0]

    def strings(self, count: int, name: str) -> list[str]:
        """So many strings, one behind the other. Raises: CheckpointError."""
        texts: list[str] = []
        unpack = _U64.unpack_from
        for _ in range(count):
            begin = self.at + 8
            if begin > len(self.raw):
                self.need(8, name)
            (length,) = unpack(self.raw, self.at)
            end = begin + length
            if end > len(self.raw):
                self.need(8 + length, name)
            try:
                texts.append(self.raw[begin:end].decode())
            except UnicodeDecodeError as error:
                raise self.refuse(
                    "a string is not UTF-8", name, "UTF-8", error.object[:40]
                ) from error
            self.at = end
        return texts

    def value(self, name: str) -> tuple[Value, str]:
        """The value of a key, and the name of its type. Raises: CheckpointError."""
        kind = int(self.number(TYPES[U32][1], name))
        if kind == STRING:
            return self.string(name), "string"
        if kind == ARRAY:
            return self._array(name), "array"
        if kind not in TYPES:
            raise self._unknown(kind, name)
        return self.number(TYPES[kind][1], name), TYPES[kind][0]

    def _array(self, name: str) -> list[str] | NDArray[Any]:
        kind = int(self.number(TYPES[U32][1], name))
        if kind == ARRAY:
            self.at -= 4
            raise self.refuse("an array of arrays", name, "an array of numbers or strings", kind)
        if kind == STRING:
            return self.strings(self.count(name, 8, LARGEST_STRING_COUNT), name)
        if kind not in TYPES:
            raise self._unknown(kind, name)
        dtype = TYPES[kind][1]
        count = self.count(name, dtype.itemsize, LARGEST_HEADER_BYTES)
        end = self.need(count * dtype.itemsize, name)
        array = np.frombuffer(self.raw, dtype, count, self.at).copy()
        self._check_flags(array, name)
        self.at = end
        return array

    def _check_flags(self, array: NDArray[Any], name: str) -> None:
        """Refuse a boolean that is neither 0 nor 1. Raises: CheckpointError."""
        if array.dtype == np.bool_ and array.view(np.uint8).max(initial=0) > 1:
            raise self.refuse("not a boolean", name, "0 or 1", array.view(np.uint8).max().item())

    def _unknown(self, kind: int, name: str) -> CheckpointError:
        self.at -= 4
        return self.refuse(
            "a value of an unknown type", name, f"a type from 0 to {max(TYPES)}", kind
        )


def encode_string(text: str) -> bytes:
    """A string as the header holds it."""
    raw = text.encode()
    return _U64.pack(len(raw)) + raw


def encode_value(value: Value) -> bytes:
    """A value with its type: the first of WHOLE that holds a whole number, f32 for others.

    An array takes the type of its elements, a list is one of strings.
    """
    if isinstance(value, str):
        return _number(STRING, U32) + encode_string(value)
    if isinstance(value, list):
        head = _number(ARRAY, U32) + _number(STRING, U32) + _U64.pack(len(value))
        return head + b"".join(map(encode_string, value))
    if isinstance(value, np.ndarray):
        kind = TYPE_OF_DTYPE[value.dtype]
        head = _number(ARRAY, U32) + _number(kind, U32) + _U64.pack(len(value))
        return head + value.tobytes()
    kind = F32
    if isinstance(value, bool):
        kind = TYPE_OF_DTYPE[np.dtype("?")]
    elif isinstance(value, int):
        kind = next(kind for kind in WHOLE if _holds(kind, value))
    return _number(kind, U32) + _number(value, kind)


def _holds(kind: int, value: int) -> bool:
    limits = np.iinfo(TYPES[kind][1])
    return bool(limits.min <= value <= limits.max)


def _number(value: float, kind: int) -> bytes:
    return np.array(value, TYPES[kind][1]).tobytes()
