"""Memory of operations that deal a step's rows out to groups: experts, heads with own matrices.

In: what an operation needs, tokens of a step. Out: places of the buffers it has for itself, the
rows of the int8 activations it reads, the integers of the dealing. All such operations share one
memory, as only one runs at a time. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from crumb.kernels.engine import grouped_rows, grouping_integers
from crumb.operations.operation import Grouped, Operation
from crumb.operations.table import row_of
from crumb.run.buffers import Place


def grouped_of(operations: Iterable[Operation]) -> list[Grouped]:
    """What those of some operations need that deal rows out."""
    needs = (row_of(operation).needs(operation).grouped for operation in operations)
    return [grouped for grouped in needs if grouped is not None]


def rows_of(grouped: Grouped, step_tokens: int) -> int:
    """Rows that hold a step of so many tokens, however it is dealt out."""
    return grouped_rows(step_tokens * grouped.used, grouped.groups)


def integers_of(grouped: Grouped, step_tokens: int) -> int:
    """Integers that say who got which row."""
    return grouping_integers(step_tokens * grouped.used, grouped.groups)


def places_of(grouped: Grouped, step_tokens: int, begin: int) -> dict[str, Place]:
    """Where the buffers of one operation lie, behind each other from `begin` on."""
    places: dict[str, Place] = {}
    for name, width in grouped.widths:
        places[name] = Place(begin, width, rows_of(grouped, step_tokens))
        begin = places[name].end
    return places
