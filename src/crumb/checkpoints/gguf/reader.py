"""GGUF files as models: one file, or all the parts of a split one.

In: the path of a file. Out: a Checkpoint whose tensors have our names, rows in our order, and
whose config.json and tokenizer are made of the metadata.
Refuses architectures without a row, tensors that the architecture does not have, parts that are
missing or do not belong together, and scales that are not finite.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from crumb.architectures.builder import reader_of
from crumb.architectures.plan import Plan
from crumb.architectures.reader import HIGHEST
from crumb.architectures.registry import families, plan_of
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.gguf.architecture import (
    Architecture,
    Named,
    Order,
    names_of_model,
)
from crumb.checkpoints.gguf.architecture_rows import architecture_of
from crumb.checkpoints.gguf.configuration import GUESSING, KEYS, read_configuration
from crumb.checkpoints.gguf.container import GgufFile, StoredTensor, read_gguf
from crumb.checkpoints.gguf.metadata import Metadata
from crumb.checkpoints.gguf.number_forms import (
    holds_alike,
    number_form,
    reshaped_bytes,
    their_shape,
)
from crumb.checkpoints.gguf.rope_scaling import FACTOR_TENSORS, Factors
from crumb.checkpoints.gguf.tensor_rows import TensorPiece, TensorRows, joined
from crumb.checkpoints.gguf.tokenizer.reader import tokenizer_files
from crumb.checkpoints.latent_heads import heads_apart, whole_matrices
from crumb.checkpoints.tensor_map import Entry, TensorMap
from crumb.checkpoints.unread_tensors import is_harmless
from crumb.errors import CheckpointError, CrumbError
from crumb.files.model_files import CONFIGURATION, MadeFiles

SUFFIX = ".gguf"
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
MOST_PARTS = 1024

GAP_ROWS = 64
"""Rows that are read and dropped rather than read in two pieces."""

Bytes = NDArray[np.uint8]


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file. Raises: CheckpointError, UnknownFamily."""
    parts = _parts(path)
    metadata = parts[0].metadata
    row = architecture_of(metadata)
    tensors = _without_guesses(row, metadata, _joined(parts))
    factors = {
        name: _frequency_factors(tensors.pop(name)) for name in FACTOR_TENSORS if name in tensors
    }
    configuration = read_configuration(metadata, tensors, factors)
    try:
        plan = plan_of(configuration)
        entries = _entries(row, configuration, plan, tensors, path)
    except CrumbError as error:
        if str(path) in str(error.where):
            raise
        place = path if error.where is None else f"{path}: {error.where}"
        raise error.at(place) from error
    tensor_map = TensorMap(path, entries)
    tensor_map.check(plan)
    files = MadeFiles(
        path,
        {CONFIGURATION: msgspec.json.encode(configuration)},
        partial(tokenizer_files, metadata.values, path),
    )
    weight_files = tuple(part.path for part in parts)
    return Checkpoint(path, configuration, plan, tensor_map, weight_files, files)


def _parts(path: Path) -> list[GgufFile]:
    """The file, or all the files it was split into. Raises: CheckpointError."""
    first = read_gguf(path)
    count = first.metadata.integer("split.count", 1, lowest=0, highest=MOST_PARTS)
    if count <= 1:
        return [first]
    named = PART.fullmatch(path.name)
    if named is None or int(named[3]) != count:
        raise CheckpointError(
            "a part of a split file is not named as one",
            where=path,
            expected=f"a name that ends in -00001-of-{count:05}.gguf",
            found=path.name,
        )
    parts = []
    for number in range(1, count + 1):
        part = path.with_name(f"{named[1]}-{number:05}-of-{count:05}{path.suffix}")
        read = first if part == path else read_gguf(part)
        for key, expected in (("split.count", count), ("split.no", number - 1)):
            if read.metadata.integer(key, lowest=0, highest=MOST_PARTS) != expected:
                raise read.metadata.refuse(key, str(expected))
        parts.append(read)
    return parts


def _joined(parts: list[GgufFile]) -> dict[str, StoredTensor]:
    """The tensors of all parts. Raises: CheckpointError."""
    tensors: dict[str, StoredTensor] = {}
    for part in parts:
        repeated = tensors.keys() & part.tensors.keys()
        if repeated:
            raise CheckpointError(
                "two parts hold the same tensor", where=part.path, found=min(repeated)
            )
        tensors |= part.tensors
    metadata, key = parts[0].metadata, "split.tensors.count"
    if len(parts) > 1 and metadata.integer(key, len(tensors), lowest=0) != len(tensors):
        raise metadata.refuse(key, f"{len(tensors)}, as many as all parts hold")
    return tensors


def _without_guesses(
    row: Architecture, metadata: Metadata, tensors: dict[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Tensors but those of blocks that guess the tokens after the next. Raises: CheckpointError."""
    guessing = metadata.integer(row.key(GUESSING), 0, lowest=0, highest=HIGHEST["blocks"])
    last = metadata.integer(row.key(KEYS["blocks"]), highest=HIGHEST["blocks"])
    blocks = tuple(f"blk.{block}." for block in range(max(last - guessing, 0), last))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(blocks)}


def _frequency_factors(tensor: StoredTensor) -> Factors:
    if tensor.type.name != "F32" or len(tensor.shape) != 1 or tensor.in_features > 1 << 16:
        raise CheckpointError(
            "no frequency factors",
            where=f"{tensor.raw.path}: {tensor.name}",
            expected="a vector of F32",
            found=f"{tensor.type.name} {list(tensor.shape)}",
        )
    factors: Factors = tensor.raw.read().view("<f4")[0]
    return factors


def _entries(
    row: Architecture,
    configuration: Mapping[str, Any],
    plan: Plan,
    tensors: Mapping[str, StoredTensor],
    path: Path,
) -> dict[str, Entry]:
    """Entries by our names. Raises: CheckpointError for a tensor that the plan has no use for."""
    reader = reader_of(families()[configuration["model_type"]], configuration)
    family = reader.family
    used = {spec.name: spec.shape for spec in plan.tensors()}
    used |= {whole.name: whole.shape for whole in whole_matrices(family, plan)}
    entries: dict[str, Entry] = {}
    pieces: dict[str, list[TensorPiece]] = {}
    taken: set[str] = set()
    for name in names_of_model(row, reader):
        whole = tensors.get(name.theirs) if name.ours in used else None
        if whole is None:
            continue
        taken.add(name.theirs)
        shape = used[name.ours]
        if name.rows is not None:
            shape = (len(name.rows), *shape[1:])
        if name.role in row.flat and prod(whole.shape) == prod(shape):
            whole = replace(whole, shape=shape)
        tensor = _part(whole, name, shape, their_shape(name.role, name.kind, shape, reader))
        places = None
        if tensor.shape == shape and name.rows is None:  # another is refused with all others
            places = _places(row.row_order(name.role, tensor.shape[0], reader))
        rows = TensorRows(tensor, places, number_form(family, name.role, name.kind))
        if name.rows is None:
            entries[name.ours] = rows.entry()
        else:
            pieces.setdefault(name.ours, []).append(TensorPiece(name.rows, rows, shape))
    entries |= {name: joined(parts) for name, parts in pieces.items() if name not in entries}
    unknown = [name for name in tensors.keys() - taken if not is_harmless(name)]
    if unknown:
        raise CheckpointError(
            f"a tensor that no {family.model_type} model has",
            where=path,
            expected=f"the tensors of general.architecture {row.name}",
            found=f"{min(unknown)!r}, one of {len(unknown)}",
        )
    return heads_apart(family, plan, entries)


def _part(
    tensor: StoredTensor, name: Named, shape: tuple[int, ...], theirs: tuple[int, ...]
) -> StoredTensor:
    """The tensor itself, or an expert's or head's share of it: its rows lie behind each other.

    `theirs` is how a file has a tensor of our shape.
    """
    if name.part is None:
        if tensor.type.float_dtype is not None and holds_alike(tensor.shape, theirs):
            raw = replace(tensor.raw, shape=reshaped_bytes(tensor.raw, shape))
            return replace(tensor, shape=shape, raw=raw)
        alike = _without_ones(tensor.shape) == _without_ones(shape)
        return replace(tensor, shape=shape) if alike else tensor
    raw, (count, *inside) = tensor.raw, tensor.shape
    if count != name.parts or not inside:
        raise CheckpointError(
            "a tensor does not have the shape its configuration implies",
            where=f"{raw.path}: {tensor.name}",
            expected=[name.parts, *shape],
            found=list(tensor.shape),
        )
    rows, size = raw.shape[0] // name.parts, raw.size_bytes // name.parts
    begin = raw.offset_bytes + name.part * size
    mine = replace(raw, shape=(rows, raw.shape[1]), offset_bytes=begin, size_bytes=size)
    return replace(tensor, shape=tuple(inside), raw=mine)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes behind leading ones, which one program writes and another leaves out."""
    ones = next((place for place, size in enumerate(shape) if size != 1), len(shape))
    return shape[ones:]


def _places(order: Order | None) -> Order | None:
    """Where each of our rows lies in the file."""
    if order is None:
        return None
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places
