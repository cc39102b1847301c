"""The table of operations: one row per kind, found in the files of this folder.

In: an operation. Out: its row. Whoever must know about kinds asks here: buffers, memory, cost, both
executors, the backward pass. Refuses an operation whose kind has no file.
"""

from __future__ import annotations

import importlib
import pkgutil

import crumb.operations
from crumb.errors import UsageError
from crumb.operations.operation import Operation, Row, Widths


def _rows() -> dict[type[Operation], Row]:
    rows: dict[type[Operation], Row] = {}
    for module in pkgutil.iter_modules(crumb.operations.__path__):
        if module.name == "table":
            continue
        row = getattr(importlib.import_module(f"crumb.operations.{module.name}"), "ROW", None)
        if isinstance(row, Row):
            rows[row.record] = row
    return rows


OPERATIONS: dict[type[Operation], Row] = _rows()
"""Record -> row."""


def row_of(operation: Operation) -> Row:
    """The row of an operation's kind. Raises: UsageError."""
    row = OPERATIONS.get(type(operation))
    if row is None:
        raise UsageError(
            "no such kind of operation",
            expected=f"one of {', '.join(sorted(kind.__name__.lower() for kind in OPERATIONS))}",
            found=operation.word,
            do="Write its file in crumb/operations (docs/adding.md)",
        )
    return row


def output_widths(operation: Operation, widths: Widths) -> dict[str, int]:
    """Features of each buffer that an operation writes. Raises: UsageError."""
    features = row_of(operation).widths(operation, widths)
    return dict(zip(operation.writes, features, strict=True))
