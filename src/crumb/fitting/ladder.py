"""The formats that a budget chooses from.

In: the width of a matrix, the solver's settings. Out: the Formats that it can have, each the least
loss for its bytes on a real model (docs/fit.md): super-blocks of 2 to 4 bits, whole numbers above,
and one format below. Whole numbers stand for all of them where a solver fits groups one after the
other, which super-blocks do not take. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from crumb.errors import UsageError
from crumb.formats.catalog import CATALOG, Format, ZeroKind, make_format
from crumb.solve.problem import SolveSettings, check_super_blocks


def _integers(*widths: tuple[int, tuple[int, ...]]) -> tuple[Format, ...]:
    return tuple(
        make_format(bits, group_size, ZeroKind.FIXED)
        for bits, groups in widths
        for group_size in groups
    )


SUPER_BLOCKS = tuple(CATALOG[name].only_format() for name in ("super2", "super3", "super4"))
SMALLEST = _integers((2, (128,)))
NARROW = _integers((2, (128, 64, 32)), (3, (128, 64, 32)), (4, (128, 64, 32)))
WIDE = _integers((5, (128, 64)), (6, (128, 64)), (8, (128,)))


def ladder(settings: SolveSettings) -> tuple[Format, ...]:
    """What such a solver can choose codes of."""
    try:
        for format in SUPER_BLOCKS:
            check_super_blocks(settings, format, format.name)
    except UsageError:
        return (*NARROW, *WIDE)
    return (*SMALLEST, *SUPER_BLOCKS, *WIDE)


def possible(in_features: int, settings: SolveSettings) -> Iterator[Format]:
    """Those that a matrix of such a width can have."""
    for format in ladder(settings):
        try:
            format.check_width(in_features, format.name)
        except UsageError:
            continue
        yield format
