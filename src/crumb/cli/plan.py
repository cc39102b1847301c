"""What a plan of formats looks like in a terminal.

In: a FormatPlan and where it was written. Out: a table, one row for each kind of matrix, and the
bytes and the loss that the budget came to.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from crumb.cli.output import bytes_text, print_table
from crumb.fitting.allocation import FormatPlan, PlannedMatrix

NUMBER = re.compile(r"\.\d+(?=\.)")


def print_plan(plan: FormatPlan, path: Path) -> None:
    """One row for each kind of matrix, then the sums."""
    kinds: dict[str, list[PlannedMatrix]] = {}
    for each in plan.matrices:
        kinds.setdefault(NUMBER.sub(".*", each.tensor), []).append(each)
    rows = [_row(name, matrices) for name, matrices in kinds.items()]
    print_table(("<matrices", "bytes", "expected KL", "<formats"), rows)
    memory = "" if plan.memory_bytes is None else f"{bytes_text(plan.memory_bytes)} of memory, "
    print(
        f"{memory}{bytes_text(plan.file_bytes)} on disk, "
        f"{plan.bits_per_weight:.3f} bits per weight of the whole file, "
        f"expected KL {plan.expected_kl:.3g} nats"
    )
    print(f"written: {path}; quantize by it with --from-plan {path}")


def _row(name: str, matrices: list[PlannedMatrix]) -> list[str]:
    counts = Counter(each.format for each in matrices)
    formats = ", ".join(f"{count} x {format}" for format, count in sorted(counts.items()))
    size = sum(each.size_bytes for each in matrices)
    loss = sum(each.loss or 0.0 for each in matrices)
    return [name, bytes_text(size), f"{loss:.3g}", formats]
