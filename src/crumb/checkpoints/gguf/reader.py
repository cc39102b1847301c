"""GGUF files as models: one file, or all the parts of a split one.

In: the path of a file. Out: a Checkpoint whose tensors have our names, rows in our order, and
whose config.json and tokenizer are made of the metadata.
Refuses architectures without a row, tensors that the architecture does not have, parts that are
missing or do not belong together, and scales that are not finite.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    depth_of,
    experts_of,
    names_of,
    weight_offset,
)
from crumb.checkpoints.gguf.architecture_rows import architecture_of
from crumb.checkpoints.gguf.configuration import GUESSING, KEYS, read_configuration
from crumb.checkpoints.gguf.container import GgufFile, StoredTensor, read_gguf
from crumb.checkpoints.gguf.metadata import Metadata
from crumb.checkpoints.gguf.rope_scaling import FACTOR_TENSORS, Factors
from crumb.checkpoints.gguf.tokenizer.reader import tokenizer_files
from crumb.checkpoints.latent_heads import heads_apart, whole_matrices
from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import Entry, Matrix, StoredCodes, StoredFloats, TensorMap
from crumb.checkpoints.unread_tensors import is_harmless
from crumb.errors import CheckpointError, CrumbError
from crumb.files.model_files import CONFIGURATION, MadeFiles
from crumb.formats.layouts.gguf_blocks import decode_blocks, decode_floats, fits

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
    sizes, experts = reader.sizes, experts_of(reader)
    used = {spec.name: spec.shape for spec in plan.tensors()}
    used |= {whole.name: whole.shape for whole in whole_matrices(family, plan)}
    entries: dict[str, Entry] = {}
    taken: set[str] = set()
    for name in names_of(row, family, depth_of(reader), experts, sizes.heads):
        whole = tensors.get(name.theirs) if name.ours in used else None
        if whole is None:
            continue
        taken.add(name.theirs)
        if name.role in row.flat and prod(whole.shape) == prod(used[name.ours]):
            whole = replace(whole, shape=used[name.ours])
        tensor = _part(whole, name, used[name.ours])
        places = None
        if tensor.shape == used[name.ours]:  # another shape is refused with all others
            places = _places(row.row_order(name.role, tensor.shape[0], sizes))
        entries[name.ours] = _Rows(tensor, places, weight_offset(family, name)).entry()
    unknown = [name for name in tensors.keys() - taken if not is_harmless(name)]
    if unknown:
        raise CheckpointError(
            f"a tensor that no {family.model_type} model has",
            where=path,
            expected=f"the tensors of general.architecture {row.name}",
            found=f"{min(unknown)!r}, one of {len(unknown)}",
        )
    return heads_apart(family, plan, entries)


def _part(tensor: StoredTensor, name: Named, shape: tuple[int, ...]) -> StoredTensor:
    """The tensor itself, or an expert's or head's share of it: its rows lie behind each other."""
    if name.part is None:
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


@dataclass(frozen=True)
class _Rows:
    """A tensor whose rows may lie in another order."""

    tensor: StoredTensor
    places: NDArray[np.intp] | None  # where each of our rows lies; None as ours do
    offset: float = 0.0  # what the file has added to each weight

    def entry(self) -> Entry:
        """Where it lies, as the rest of Crumb reads it. Raises: CheckpointError."""
        tensor = self.tensor
        type, shape, raw = tensor.type, tensor.shape, tensor.raw
        if type.float_dtype is not None:
            if self.places is None and not self.offset:
                return StoredArray(
                    raw.path, type.float_dtype, shape, raw.offset_bytes, raw.size_bytes
                )
            dtype = np.dtype(np.float32) if self.offset else type.float_dtype
            return StoredFloats(dtype, shape, raw.size_bytes, type.name, self._floats)
        if len(shape) == 2 and type.format is not None and self._fits():
            matrix = shape[0], shape[1]
            return StoredCodes(type.format, matrix, raw.size_bytes, type.name, self._codes)
        return StoredFloats(np.dtype(np.float32), shape, raw.size_bytes, type.name, self._decoded)

    def _fits(self) -> bool:
        """Whether codes can be read: powers of two beyond fp16 need floats."""
        if self.tensor.type.name != "MXFP4":
            return True
        rows, step = self.tensor.raw.shape[0], max((1 << 22) // self.tensor.raw.shape[1], 1)
        pieces = (slice(begin, begin + step) for begin in range(0, rows, step))
        return all(fits(self.tensor.type.name, self.tensor.raw.read(piece)) for piece in pieces)

    def _codes(self, rows: slice) -> Matrix:
        """Some rows. Raises: CheckpointError."""
        raw = self._raw(rows)
        codes, parameters = decode_blocks(self.tensor.type.name, raw, self.tensor.in_features)
        for halves in (parameters.scale, parameters.minimum):
            if halves is not None and not np.isfinite(halves).all():
                raise self._not_finite(halves)
        return codes, parameters

    def _decoded(self, rows: slice) -> NDArray[np.float32]:
        """Some rows of a quantized tensor, as f32. Raises: CheckpointError."""
        shape = self.tensor.shape
        with np.errstate(invalid="ignore", over="ignore"):
            if len(shape) == 1:
                whole = decode_floats(self.tensor.type.name, self.tensor.raw.read(), shape[0])
                decoded = self._ordered(whole[0], rows)
            else:
                lines = self._raw(rows)
                decoded = decode_floats(self.tensor.type.name, lines, shape[-1])
        if not np.isfinite(decoded).all():
            raise self._not_finite(decoded)
        return decoded

    def _floats(self, rows: slice) -> NDArray[Any]:
        """Some rows of a float tensor. Raises: CheckpointError."""
        dtype, shape = self.tensor.type.float_dtype, self.tensor.shape
        assert dtype is not None
        if len(shape) == 1:
            weights = self._ordered(self.tensor.raw.read().view(dtype)[0], rows)
        else:
            weights = self._raw(rows).view(dtype)
        return weights.astype(np.float32) - np.float32(self.offset) if self.offset else weights

    def _not_finite(self, numbers: NDArray[Any]) -> CheckpointError:
        return CheckpointError(
            "a scale or a weight is not finite",
            where=f"{self.tensor.raw.path}: {self.tensor.name}",
            expected="finite numbers",
            found=str(numbers[~np.isfinite(numbers)][0]),
            do="The file is damaged: copy or download it again",
        )

    def _ordered(self, vector: NDArray[Any], rows: slice) -> NDArray[Any]:
        """Some numbers of a vector, in our order."""
        return vector[rows] if self.places is None else vector[self.places[rows]]

    def _raw(self, rows: slice) -> Bytes:
        """Some of our rows as bytes; only what lies around them is read."""
        raw = self.tensor.raw
        if self.places is None:
            return raw.read(rows)
        rows_of_file, back = np.unique(self.places[rows], return_inverse=True)
        if not len(rows_of_file):
            return raw.read(slice(0, 0))
        runs = np.split(rows_of_file, np.nonzero(np.diff(rows_of_file) > GAP_ROWS)[0] + 1)
        pieces = [raw.read(slice(int(run[0]), int(run[-1]) + 1))[run - run[0]] for run in runs]
        lines: Bytes = np.concatenate(pieces)[back]
        return lines
