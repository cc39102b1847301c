"""Which blocks of a model attend through a window or in chunks, as their configurations say.

In: a configuration's reader. Out: for each block whether it slides, or its chunk.
Refuses lists of kinds that do not fit the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from crumb.architectures.configuration import (
    Configuration,
    as_integer,
    as_number,
    check_kinds,
    read_object,
)
from crumb.architectures.reader import Reader

KINDS = ("full_attention", "sliding_attention")
CHUNKED = ("full_attention", "chunked_attention")


def sliding_blocks(reader: Reader, rule: Callable[[int], bool]) -> list[bool]:
    """What layer_types says of each block, or else the rule. Raises: CheckpointError."""
    blocks, kinds = reader.sizes.blocks, reader.configuration.get("layer_types")
    if kinds is None:
        return [rule(block) for block in range(blocks)]
    return [kind == KINDS[1] for kind in check_kinds(kinds, "layer_types", blocks, KINDS)]


def all_but_every(reader: Reader, default: int) -> list[bool]:
    """All blocks slide but those at the end of each pattern. Raises: CheckpointError."""
    key = "sliding_window_pattern"
    if reader.configuration.get("_" + key) is not None:
        key = "_" + key
    pattern = as_integer(reader.configuration.get(key, default), key)
    return sliding_blocks(reader, lambda block: (block + 1) % pattern != 0)


def chunks_of(reader: Reader, usual: list[bool]) -> list[int | None]:
    """The chunk of each block that layer_types names, or else of the usual ones if there is any.

    Raises: CheckpointError.
    """
    blocks, kinds = reader.sizes.blocks, reader.configuration.get("layer_types")
    if kinds is None:
        cuts = reader.find("chunk")[1] is not None
        chunked = [cuts and each for each in usual]
    else:
        checked = check_kinds(kinds, "layer_types", blocks, CHUNKED)
        chunked = [kind == CHUNKED[1] for kind in checked]
    chunk = reader.size("chunk") if any(chunked) else None
    return [chunk if each else None for each in chunked]


def ropes_by_kind(
    configuration: Configuration, thetas: Mapping[str, tuple[str, float]]
) -> Configuration:
    """A rotary embedding for each kind of block, as version 5 of transformers writes them.

    `thetas`: kind -> the key of its theta and what that usually is. Only full blocks are scaled.
    """
    nested = read_object(configuration, "rope_parameters")
    scaling = read_object(configuration, "rope_scaling")
    ropes = {
        kind: {"rope_theta": as_number(configuration.get(key, usual), key)}
        | (scaling if kind == KINDS[0] else {})
        | read_object(nested, kind)
        for kind, (key, usual) in thetas.items()
    }
    return {**configuration, "rope_scaling": None, "rope_parameters": ropes}


def attending_blocks(reader: Reader, other: str, usual: list[bool]) -> list[bool]:
    """Which blocks attend, where the rest are of another kind, as layer_types says or as is usual.

    Raises: CheckpointError.
    """
    blocks, kinds = reader.sizes.blocks, reader.configuration.get("layer_types")
    if kinds is None:
        return usual
    checked = check_kinds(kinds, "layer_types", blocks, (KINDS[0], other))
    return [kind != other for kind in checked]
