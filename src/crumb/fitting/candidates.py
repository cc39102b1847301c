"""The files that a model could become: as it lies, and quantized in each of some formats.

In: an opened checkpoint, its weights perhaps holes. Out: Candidates, with the exact bytes of their
weight files and of their weights in memory. Refuses nothing: a format that a matrix cannot have
makes no candidate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.reader import METHOD, TILES, matrix_metadata
from crumb.checkpoints.directory_writer import Part, plan_shards
from crumb.checkpoints.safetensors import ArrayToWrite
from crumb.checkpoints.tensor_map import Quantized
from crumb.errors import UsageError
from crumb.fitting.expected_quality import INTEGER
from crumb.fitting.quantize_cost import packed_bytes
from crumb.formats.catalog import Format
from crumb.formats.packed_tensor import stored_shape
from crumb.requests.quantize_request import QuantizeRequest, choose
from crumb.run.stored_matrices import Orders, formats_of, orders_of, weights_bytes

OFFERED = (
    *((INTEGER, bits, 128) for bits in (8, 6, 5)),
    *((INTEGER, bits, group_size) for bits in (4, 3, 2) for group_size in (32, 64, 128)),
    *(("super", bits, 128) for bits in (4, 3, 2)),
)
"""Codes, bits and groups; of super-blocks those of the embedding beside them."""


@dataclass(frozen=True)
class Candidate:
    """One file that a model is, or could be."""

    name: str  # of the format of the blocks; of several, how many bits they come to
    lies_here: bool  # it is the file itself, not what it could become
    formats: Mapping[str, Format]  # of the matrices that run packed
    orders: Orders
    file_bytes: int
    weights_bytes: int  # in memory
    block_bits: float  # bits per weight of the matrices of the blocks
    codes: str  # what those of most of their bytes stand for


def candidates(checkpoint: Checkpoint) -> list[Candidate]:
    """The model as it lies, and where it lies as floats, in each format; the largest first."""
    lying = as_it_lies(checkpoint)
    if any(isinstance(entry, Quantized) for entry in checkpoint.tensors.entries.values()):
        return [lying]
    return [lying, *sorted(quantized(checkpoint), key=lambda each: -each.file_bytes)]


def as_it_lies(checkpoint: Checkpoint) -> Candidate:
    """The file itself."""
    plan, entry = checkpoint.plan, checkpoint.tensors.entry
    sizes: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    weights = 0
    for stage in plan.stages[1:-1]:
        for spec in stage.tensors():
            lying = entry(spec.name)
            if spec.matrix:
                format = lying.format if isinstance(lying, Quantized) else None
                sizes[lying.source if format is None else format.name] += lying.size_bytes
                codes[INTEGER if format is None else format.row.kind] += lying.size_bytes
                weights += int(np.prod(spec.shape))
    block_bits = 8 * sizes.total() / max(weights, 1)
    return Candidate(
        _name(sizes, block_bits),
        True,
        formats_of(checkpoint),
        orders_of(checkpoint),
        checkpoint.weight_bytes(),
        weights_bytes(checkpoint),
        block_bits,
        next((kind for kind, _ in codes.most_common(1)), INTEGER),
    )


def _name(kinds: Collection[str], block_bits: float) -> str:
    """What a file is called by the kinds of its blocks' matrices."""
    if len(kinds) == 1:
        return next(iter(kinds))
    return f"mix {block_bits:.1f} bits" if kinds else "nothing"


def quantized(checkpoint: Checkpoint) -> Iterator[Candidate]:
    """What `crumb quantize` would write, uniform formats with the usual embedding and head."""
    plan, entry = checkpoint.plan, checkpoint.tensors.entry
    for codes, bits, group_size in OFFERED:
        request = QuantizeRequest("", Path(), bits=bits, group_size=group_size, codes=codes)
        try:
            formats = choose(plan, request).formats
        except UsageError:  # the group is wider than a matrix
            continue
        floats = [spec.name for spec in plan.tensors() if spec.name not in formats]
        used = packed_bytes(plan, formats) + sum(entry(name).used_bytes for name in floats)
        blocks = request.blocks()
        width = max(linear.in_features for linear in plan.linears())
        yield Candidate(
            blocks.name,
            False,
            formats,
            {},
            directory_bytes(checkpoint, formats),
            used,
            blocks.bits_per_weight(width),
            codes,
        )


def directory_bytes(checkpoint: Checkpoint, formats: Mapping[str, Format]) -> int:
    """Exact bytes of the weight files of a crumb directory, headers and all."""
    parts = [_part(checkpoint, name, formats.get(name)) for name in _names(checkpoint)]
    return sum(shard.size_bytes for shard in plan_shards(parts, METHOD))


def _names(checkpoint: Checkpoint) -> list[str]:
    return [spec.name for spec in checkpoint.plan.tensors()]


def _part(checkpoint: Checkpoint, name: str, format: Format | None) -> Part:
    """An array of the directory, without what is in it."""
    entry = checkpoint.tensors.entry(name)
    if format is None:
        assert not isinstance(entry, Quantized), "floats"
        return Part(name, ArrayToWrite(entry.dtype, entry.shape, _unread))
    out_features, in_features = entry.shape
    shape = stored_shape(format, out_features, in_features)
    metadata = {name: matrix_metadata(format, (out_features, in_features))}
    return Part(f"{name}.{TILES}", ArrayToWrite(np.dtype(np.uint8), shape, _unread), metadata)


def _unread() -> NDArray[Any]:
    raise AssertionError("only the sizes are asked for")
