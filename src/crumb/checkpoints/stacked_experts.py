"""Tensors that hold all experts of a block, taken apart into one tensor for each.

In: a family, a Plan, entries by name. Out: entries with the names the Plan has; what lies as rows
stays where it is in the file, what is transposed or interleaved is rearranged when it is read.
Or arrays to be written, stacked again as the family's files have them.
Refuses a tensor whose shape does not follow from the Plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.family import Family, Stacked
from crumb.architectures.plan import Plan, Stage
from crumb.checkpoints.safetensors import ArrayToWrite, StoredArray, common_dtype
from crumb.checkpoints.tensor_map import Entry, StoredCodes, StoredFloats
from crumb.errors import CheckpointError
from crumb.formats.grid import take_rows
from crumb.operations.operation import TensorSpec


@dataclass(frozen=True)
class ExpertPart:
    """One expert's share of a stacked tensor."""

    stacked: Stacked
    expert: int
    part: int
    shape: tuple[int, ...]  # (out_features, in_features) or (out_features,)
    where: str

    @property
    def parts(self) -> int:
        return len(self.stacked.roles)

    def rows(self, rows: slice) -> slice:
        """Where some rows of the part lie among the rows of all experts."""
        begin, end, _ = rows.indices(self.shape[0])
        first = self.expert * self.parts * self.shape[0]
        if self.stacked.interleaved:
            return slice(
                first + self.parts * begin + self.part, first + self.parts * end, self.parts
            )
        first += self.part * self.shape[0]
        return slice(first + begin, first + end)


def apart(family: Family, plan: Plan, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """All entries, experts each for itself. Raises: CheckpointError."""
    separate = dict(entries)
    for block, stage in enumerate(plan.stages[1:-1] if family.stacked else ()):
        separate |= dict(_of_block(family, block, stage, separate))
    return separate


def _of_block(
    family: Family, block: int, stage: Stage, entries: dict[str, Entry]
) -> Iterator[tuple[str, Entry]]:
    specs = {spec.name: spec for spec in stage.tensors()}
    for stacked in family.stacked:
        name = stacked.name.format(block=block)
        if name not in entries:
            continue
        entry = entries.pop(name)
        for part, names in enumerate(_names(family, stacked, block, specs)):
            for expert, own in enumerate(names):
                place = ExpertPart(stacked, expert, part, specs[own].shape, name)
                _check(entry, place, len(names))
                yield own, _taken(entry, place)


def _check(entry: Entry, part: ExpertPart, experts: int) -> None:
    rows, *columns = part.shape
    whole = (
        (*columns, part.parts * rows) if part.stacked.transposed else (part.parts * rows, *columns)
    )
    expected = (experts, *whole)
    if isinstance(entry, StoredCodes):  # rows of matrices behind each other, never transposed
        expected = (experts * part.parts * rows, *columns)
    if tuple(entry.shape) != expected:
        raise CheckpointError(
            "a tensor does not have the shape its configuration implies",
            where=part.where,
            expected=list(expected),
            found=list(entry.shape),
        )


def _taken(entry: Entry, part: ExpertPart) -> Entry:
    if isinstance(entry, StoredCodes):
        return _codes(entry, part)
    if isinstance(entry, StoredArray) and not (part.stacked.transposed or part.stacked.interleaved):
        place = part.rows(slice(None))
        row_bytes = entry.dtype.itemsize * (part.shape[1] if len(part.shape) > 1 else 1)
        begin = entry.offset_bytes + place.start * row_bytes
        size = row_bytes * part.shape[0]
        return replace(entry, shape=part.shape, offset_bytes=begin, size_bytes=size)
    return _floats(entry, part)


def _codes(entry: StoredCodes, part: ExpertPart) -> StoredCodes:
    def read(rows: slice) -> Any:
        place = part.rows(rows)
        codes, parameters = entry.read_codes(slice(place.start, place.stop))
        return codes[:: place.step], take_rows(parameters, slice(None, None, place.step))

    rows, columns = part.shape
    size = entry.size_bytes * rows // entry.shape[0]
    return replace(entry, shape=(rows, columns), size_bytes=size, read_codes=read)


def _floats(entry: Entry, part: ExpertPart) -> StoredFloats:
    stacked = part.stacked
    if not isinstance(entry, StoredArray | StoredFloats):
        raise CheckpointError(
            "experts in a packing that is not taken apart", where=part.where, found=entry.source
        )

    def read(rows: slice) -> NDArray[Any]:
        whole = entry.read(slice(part.expert, part.expert + 1))[0]
        outputs = whole.T if stacked.transposed else whole
        step = part.parts if stacked.interleaved else 1
        first = part.part if stacked.interleaved else part.part * part.shape[0]
        taken = outputs[first::step][: part.shape[0]][rows]
        return np.ascontiguousarray(taken)

    size = entry.dtype.itemsize * int(np.prod(part.shape))
    return StoredFloats(entry.dtype, part.shape, size, entry.source, read)


def stacked_again(
    family: Family, plan: Plan, arrays: Mapping[str, ArrayToWrite]
) -> dict[str, ArrayToWrite]:
    """All arrays, those of experts in one tensor where the family's files stack them."""
    together = dict(arrays)
    for block, stage in enumerate(plan.stages[1:-1] if family.stacked else ()):
        specs = {spec.name: spec for spec in stage.tensors()}
        for stacked in family.stacked:
            names = _names(family, stacked, block, specs)
            if names[0] and all(name in together for role in names for name in role):
                roles = [[together.pop(name) for name in role] for role in names]
                together[stacked.name.format(block=block)] = _stack(stacked, roles)
    return together


def _names(
    family: Family, stacked: Stacked, block: int, specs: Mapping[str, TensorSpec]
) -> list[list[str]]:
    """Of each role the tensors of all experts of a block."""
    roles = []
    for role in stacked.roles:
        pattern = f"{family.tensors[role].format(block=block)}.{stacked.kind}"
        roles.append(list(takewhile(specs.__contains__, map(partial(_of, pattern), count()))))
    return roles


def _of(pattern: str, expert: int) -> str:
    return pattern.format(expert=expert)


def _stack(stacked: Stacked, roles: list[list[ArrayToWrite]]) -> ArrayToWrite:
    """One tensor of all experts, each with the parts of its roles."""
    dtype = common_dtype([each for role in roles for each in role])
    rows, *columns = roles[0][0].shape
    inside = (len(roles) * rows, *columns)
    shape = (len(roles[0]), *(inside[::-1] if stacked.transposed else inside))

    def read() -> NDArray[Any]:
        whole = np.empty(shape, dtype)
        for expert, parts in enumerate(zip(*roles, strict=True)):
            outputs = whole[expert].T if stacked.transposed else whole[expert]
            for place, part in enumerate(parts):
                own = slice(place, None, len(roles))
                if not stacked.interleaved:
                    own = slice(place * rows, (place + 1) * rows)
                outputs[own] = part.read()
        return whole

    return ArrayToWrite(dtype, shape, read)
