"""All tool formats, in the order in which a chat template is recognised.

In: a chat template's source. Out: the row of its format. A new format is a file in this folder
that defines FORMAT; generic.py is the last and takes whatever no other did.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path

from crumb.structure.tool_format import ToolFormat


@cache
def tool_formats() -> tuple[ToolFormat, ...]:
    """Every row, the most particular first."""
    names = [each.name for each in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [import_module(f"crumb.structure.tool_formats.{name}") for name in names]
    rows = [module.FORMAT for module in modules if hasattr(module, "FORMAT")]
    return tuple(sorted(rows, key=lambda row: row.order))


def recognise_format(template: str) -> ToolFormat:
    """The format that a chat template writes."""
    return next(row for row in tool_formats() if row.recognises(template))
