"""`crumb kernels`: which instruction set runs and why, and which kernel multiplies what.

In: this machine and CRUMB_ISA. Out: two tables, or JSON.
"""

from __future__ import annotations

from typing import Annotated

from crumb.cli.option_groups import ONE_WAY
from crumb.cli.output import print_json, print_table
from crumb.kernels.dispatch import selected_set
from crumb.kernels.kernel_table import instruction_sets, kernels_of
from crumb.machine.processors import processor_name


def kernels(*, json: Annotated[bool, ONE_WAY] = False) -> None:
    """Show which instruction sets are here, which one runs and why, and its kernels.

    Args:
        json: print the tables as JSON.
    """
    sets, chosen = instruction_sets(), selected_set()
    rows = kernels_of(chosen)
    if json:
        record = {"processor": processor_name(), "chosen": chosen}
        print_json(record | {"instruction_sets": sets, "kernels": rows})
        return
    print(processor_name())
    print_table(
        ["<instruction set", "<runs here", "<chosen", "<why", "<needs"],
        [
            [
                each.name,
                "yes" if each.runs else "no",
                "chosen" if each.chosen else "",
                each.why,
                each.needs,
            ]
            for each in sets
        ],
    )
    print(f"Matrices times int8 activations with {chosen}:")
    print_table(
        [
            "<weights",
            "<zero",
            "<few tokens, codes unpacked in registers",
            "<more tokens, unpacked once",
            "<f32 activations",
        ],
        [
            [
                each.format,
                ", ".join(each.zeros),
                f"to {each.few_tokens}: {each.few}" if each.few_tokens else each.few,
                each.more,
                each.exact,
            ]
            for each in rows
        ],
    )
