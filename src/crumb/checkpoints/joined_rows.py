"""Tensors of which older files of a family have one for several roles, a row for each, taken apart.

In: a family, a Plan, entries by name. Out: entries with the names the Plan has, each where its row
lies in the file. Refuses a tensor whose shape does not follow from the Plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod

from crumb.architectures.family import Family
from crumb.architectures.plan import Plan
from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import Entry
from crumb.errors import CheckpointError


def rows_apart(family: Family, plan: Plan, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """All entries, rows each for itself. Raises: CheckpointError."""
    separate = dict(entries)
    shapes = {spec.name: spec.shape for spec in plan.tensors()} if family.joined else {}
    for whole, roles in family.joined.items():
        for block in range(len(plan.stages) - 2):
            name = whole.format(block=block)
            names = [family.tensors[role].format(block=block) for role in roles]
            if name in separate and all(each in shapes for each in names):
                entry = separate.pop(name)
                separate |= _rows(name, entry, {each: shapes[each] for each in names})
    return separate


def _rows(
    where: str, entry: Entry, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Entry]]:
    width = prod(next(iter(shapes.values())))
    sizes = [size for size in entry.shape if size != 1]
    if not isinstance(entry, StoredArray) or sizes != [len(shapes), width]:
        raise CheckpointError(
            "a tensor does not have the shape its configuration implies",
            where=where,
            expected=[len(shapes), width],
            found=list(entry.shape),
        )
    size = entry.size_bytes // len(shapes)
    for place, (name, shape) in enumerate(shapes.items()):
        begin = entry.offset_bytes + place * size
        yield name, replace(entry, shape=shape, offset_bytes=begin, size_bytes=size)
