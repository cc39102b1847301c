"""`crumb formats`: the catalog as a table.

In: nothing. Out: every format with its formula, its bit diagram and exact bits per weight.
"""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from crumb.cli.output import print_json, print_table
from crumb.formats.catalog import CATALOG, FORMULAS, Format, group_name
from crumb.formats.layouts.tile import diagram

EXAMPLE_WIDTH = 4096
"""in_features for which bits per weight are shown; only `row` depends on it."""

LAYOUT_NOTE = """\
Files hold tiles of 16 rows; the rows of a matrix are padded to 16 and each group's inputs to 32.
A chunk is 32 inputs: 8 slices of 4, in one vector of 64 bytes per bit; byte 4 * row + input of
each vector belongs to that row and input. Which slice each bit of such a byte belongs to, vector by
vector, most significant bit first; a slice in several vectors has its low bits in the first:"""


def formats(*, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Show what a quantized number can be: formula, bits, bytes.

    Args:
        json: print the table as JSON.
    """
    rows = catalog_rows()
    if json:
        print_json(rows)
        return
    sizes = list(rows[0]["bits_per_weight"])
    print_table(
        ["<format", "<zero", "<weight", *[f"bits per weight {size}" for size in sizes]],
        [
            [
                row["name"],
                row["zero"],
                row["formula"],
                *[f"{row['bits_per_weight'][size]:.4g}" for size in sizes],
            ]
            for row in rows
        ],
    )
    print(f"Bits per weight of a row of {EXAMPLE_WIDTH} inputs; `row` is one group per row.")
    print(LAYOUT_NOTE)
    for code_row in CATALOG.values():
        print(f"  {code_row.name}  {diagram(code_row.bits)}")


def catalog_rows() -> list[dict[str, Any]]:
    """One record per code width and zero kind."""
    return [
        {
            "name": row.name,
            "bits": row.bits,
            "zero": zero.value,
            "formula": FORMULAS[zero],
            "diagram": diagram(row.bits),
            "bits_per_weight": {
                group_name(size): Format(row, size, zero).bits_per_weight(EXAMPLE_WIDTH)
                for size in row.group_sizes
            },
        }
        for row in CATALOG.values()
        for zero in row.zeros
    ]
