"""Tensors whose numbers or shapes are others in a GGUF file: what is added, the sign, the ones.

In: a tensor's role, its shape. Out: how its numbers are written and read back, its shape there.
A rate lies there as what it decays by, -e^rate. Refuses nothing: numbers that cannot be read back
are not finite then. Facts: the converters of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.family import Family
from crumb.architectures.reader import Reader

HEAD_NORMS = ("query_norm", "key_norm")

PLAIN_NORMS = ("delta_norm", "scan_norm")
"""Inside a mixer: nothing is added to their weights, whatever the family adds to others."""

Floats = NDArray[np.float32]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class NumberForm:
    """How a file holds the numbers of a tensor."""

    write: Callable[[Floats], Floats]
    read: Callable[[Floats], Floats]


def _decay(rate: Floats) -> Floats:
    return (-np.exp(rate.astype(np.float64))).astype(np.float32)


def _rate(decay: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(-decay.astype(np.float64)).astype(np.float32)


FORMS: Mapping[str, NumberForm] = {
    "scan_rate": NumberForm(_decay, _rate),
    "delta_rate": NumberForm(_decay, _rate),
}
"""By role."""


def _offset(family: Family, role: str, kind: str) -> float:
    """Norms of weights around 0 become others: what is added."""
    if kind != "weight" or not role.endswith("_norm") or role in PLAIN_NORMS:
        return 0.0
    form = family.head_norm if role in HEAD_NORMS else family.norm
    return form.offset


def number_form(family: Family, role: str, kind: str) -> NumberForm | None:
    """That of a tensor, or of its bias; None where its numbers are ours."""
    offset = np.float32(_offset(family, role, kind))
    if offset:
        return NumberForm(lambda ours: ours + offset, lambda theirs: theirs - offset)
    return FORMS.get(role)


def _of_taps(shape: Shape, _: Reader) -> Shape:
    return shape[0], shape[-1]


def _in_rows(shape: Shape, _: Reader) -> Shape:
    return (*shape, 1)


def _by_group(shape: Shape, reader: Reader) -> Shape:
    groups = reader.size("scan_groups")
    return groups, shape[0] // groups


SHAPES: Mapping[str, Callable[[Shape, Reader], Shape]] = {
    "scan_taps": _of_taps,
    "delta_taps": _of_taps,
    "convolution": _of_taps,
    "scan_rate": _in_rows,
    "scan_skip": _in_rows,
    "scan_norm": _by_group,
}
"""Role -> the shape of its weights there."""


def their_shape(role: str, kind: str, shape: Shape, reader: Reader) -> Shape:
    """The shape of a tensor in a file; `kind` is what its name ends in."""
    return SHAPES[role](shape, reader) if kind != "bias" and role in SHAPES else shape


def holds_alike(theirs: Shape, expected: Shape) -> bool:
    """Whether shapes differ in sizes of 1 alone, which one program writes and another does not."""
    return [size for size in theirs if size != 1] == [size for size in expected if size != 1]


def reshaped_bytes(raw: Any, shape: Shape) -> Shape:
    """Rows and bytes of a row of a float tensor's bytes, for another shape of as many numbers."""
    rows = 1 if len(shape) == 1 else shape[0]
    return rows, raw.size_bytes // rows
