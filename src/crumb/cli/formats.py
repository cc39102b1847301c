"""`crumb formats`: the catalog as a table.

In: nothing. Out: every format with its formula, its bit diagram and exact bits per weight.
"""

from __future__ import annotations

from typing import Annotated, Any

from crumb.cli.option_groups import ONE_WAY
from crumb.cli.output import print_json, print_table
from crumb.formats.catalog import CATALOG, ROW, CodeRow, Format, ScaleKind, group_name
from crumb.formats.layouts.tile import diagram

EXAMPLE_WIDTH = 4096
"""in_features for which bits per weight are shown; only `row` depends on it."""

GROUPS_NOTE = f"""\
Under g16 to row: bits per weight in groups of so many inputs, for rows of {EXAMPLE_WIDTH} inputs;
`row` is one group per row. sub_scale and sub_minimum are whole numbers of each group, their scale
and minimum belong to a super-block of 256 inputs. What codes of a table stand for:"""

LAYOUT_NOTE = """\
Files hold tiles of 16 rows; the rows of a matrix are padded to 16 and each group's inputs to 32.
A chunk is 32 inputs: 8 slices of 4, in one vector of 64 bytes per bit; byte 4 * row + input of
each vector belongs to that row and input. Which slice each bit of such a byte belongs to, vector by
vector, most significant bit first; a slice in several vectors has its low bits in the first:"""


def formats(*, json: Annotated[bool, ONE_WAY] = False) -> None:
    """Show what a quantized number can be: formula, bits, bytes.

    Args:
        json: print the table as JSON.
    """
    rows = catalog_rows()
    if json:
        print_json(rows)
        return
    print_table(
        ["<format", "<zero", "<weight", *group_columns()],
        [
            [
                row["name"],
                row["zero"],
                row["formula"],
                *[bits_of(row["bits_per_weight"], size) for size in group_columns()],
            ]
            for row in rows
        ],
    )
    print(GROUPS_NOTE)
    for code_row in CATALOG.values():
        if code_row.table is not None:
            print(f"  {code_row.name}  {' '.join(map(str, code_row.table))}{_table_note(code_row)}")
    print(LAYOUT_NOTE)
    for bits, names in rows_by_width().items():
        print(f"  {bits} bits  {diagram(bits)}  {', '.join(names)}")


def _table_note(row: CodeRow) -> str:
    """What its numbers do not say."""
    if row.learned:
        return "  at first: each matrix learns its own"
    return "  and scales that are powers of two" if row.scale is ScaleKind.POWER else ""


def group_columns() -> list[str]:
    """The group sizes of all rows, the smallest first and whole rows last."""
    sizes = {size for row in CATALOG.values() for size in row.group_sizes}
    return [group_name(size) for size in sorted(sizes, key=lambda size: (size == ROW, size))]


def bits_of(bits_per_weight: dict[str, float], group: str) -> str:
    """A cell: blank where the row has no such groups."""
    return f"{bits_per_weight[group]:.4g}" if group in bits_per_weight else ""


def rows_by_width() -> dict[int, list[str]]:
    """Code width -> names of the catalog's rows of this width."""
    widths = sorted({row.bits for row in CATALOG.values()})
    return {bits: [row.name for row in CATALOG.values() if row.bits == bits] for bits in widths}


def catalog_rows() -> list[dict[str, Any]]:
    """One record per code width and zero kind."""
    return [
        {
            "name": row.name,
            "bits": row.bits,
            "zero": zero.value,
            "formula": row.formula(zero),
            "diagram": diagram(row.bits),
            "bits_per_weight": {
                group_name(size): Format(row, size, zero).bits_per_weight(EXAMPLE_WIDTH)
                for size in row.group_sizes
            },
        }
        for row in CATALOG.values()
        for zero in row.zeros
    ]
