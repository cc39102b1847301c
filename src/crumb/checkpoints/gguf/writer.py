"""Write a checkpoint as a GGUF file: llama.cpp's names, keys, row orders and tokenizer.

In: an opened checkpoint, the GGUF type of each matrix, and who gives the bytes of rows. Out: a
file, written one tensor at a time. Norms and biases are F32, as llama.cpp wants them.
Refuses families that llama.cpp does not load, settings it has no key for, and types whose blocks
do not divide a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.directory_writer import AGAIN, refuse_existing
from crumb.checkpoints.export_report import TensorReport, Told
from crumb.checkpoints.gguf.architecture import Named, Order
from crumb.checkpoints.gguf.container import TensorToWrite, write_container
from crumb.checkpoints.gguf.header import Value
from crumb.checkpoints.gguf.model import GgufModel, gguf_model_of
from crumb.checkpoints.gguf.number_forms import NumberForm, number_form, their_shape
from crumb.checkpoints.gguf.rope_scaling import Factors, frequency_factors
from crumb.checkpoints.gguf.tensor_types import choose_type, encode_rows, start_change
from crumb.checkpoints.gguf.tokenizer.writer import tokenizer_metadata
from crumb.checkpoints.tensor_map import refuse_float_columns
from crumb.errors import placed
from crumb.files.atomic_file import disk_errors
from crumb.formats.layouts.gguf_blocks import encode_floats
from crumb.formats.layouts.gguf_types import QUANTIZATION_VERSION, find_type
from crumb.formats.layouts.tile import TILE_ROWS
from crumb.operations.operation import TensorSpec

Bytes = NDArray[np.uint8]

Encode = Callable[[str, str, slice], Bytes]
"""(our tensor name, GGUF type, some of our rows) -> their bytes (rows, row_bytes)."""

PART_BYTES = 1 << 26
"""Rows are fetched in parts of about this many bytes as f32."""

VECTORS = "F32"


@dataclass(frozen=True)
class TypeChoice:
    """What a user asks of the types."""

    type: str | None = None  # of every matrix; None: the nearest to what it is
    strict: bool = False  # a larger type goes before one that changes weights


def export_gguf(
    checkpoint: Checkpoint, out: Path, choice: TypeChoice, name: str, told: Told
) -> None:
    """Write a file, each matrix in a type chosen for it, and tell of every tensor.

    Raises: UsageError, CheckpointError, OutputConflict, DoesNotFit, SolveError.
    """
    refuse_existing(out)
    entries = {}
    for spec in checkpoint.plan.tensors():
        entry = checkpoint.tensors.entry(spec.name)
        if spec.matrix:
            entries[spec.name] = entry
        else:
            told(TensorReport(spec.name, entry.source, VECTORS, exact=True))
    types = {
        each: choose_type(entry, choice.type, choice.strict) for each, entry in entries.items()
    }
    types = _of_stacks(gguf_model_of(checkpoint.configuration), types)
    for each, entry in entries.items():
        if find_type(types[each]).float_dtype is None:
            refuse_float_columns(each, entry, "GGUF")
    changes = {each: start_change(types[each], choice.type) for each in entries}

    def encode(matrix: str, type_name: str, rows: slice) -> Bytes:
        entry = entries[matrix]
        raw = encode_rows(entry, type_name, rows, changes[matrix])
        if rows.stop == entry.shape[0]:
            told(changes[matrix].report(matrix, entry, type_name))
        return raw

    with disk_errors(out, do=AGAIN):
        write_gguf(checkpoint, out, types, encode, name)


def _of_stacks(model: GgufModel, types: Mapping[str, str]) -> dict[str, str]:
    """The types, where experts that lie in one tensor have one: the widest that any of them has."""
    theirs = {each.ours: each.theirs for each in model.names()}
    widest: dict[str, str] = {}
    for name, type_name in types.items():
        other = widest.setdefault(theirs[name], type_name)
        widest[theirs[name]] = max(
            other, type_name, key=lambda each: find_type(each).bits_per_weight
        )
    return {name: widest[theirs[name]] for name in types}


def write_gguf(
    checkpoint: Checkpoint, out: Path, types: Mapping[str, str], encode: Encode, name: str
) -> None:
    """Write a file; `types` has every matrix of the plan, `name` is what the file calls the model.

    Raises: UsageError before anything is written; what `encode` raises.
    """
    model = gguf_model_of(checkpoint.configuration)
    metadata: dict[str, Value] = {
        **model.metadata,
        "general.type": "model",
        "general.name": name,
        "general.file_type": file_type(checkpoint.plan.tensors(), types),
        "general.quantization_version": QUANTIZATION_VERSION,
        **tokenizer_metadata(checkpoint.files, checkpoint.configuration),
    }
    tensors = _tensors(checkpoint, model, types, encode)
    for tensor in tensors:
        with placed(tensor.name):
            tensor.size_bytes()
    write_container(out, metadata, tensors)


def file_type(specs: tuple[TensorSpec, ...], types: Mapping[str, str]) -> int:
    """general.file_type: that of the type that most matrices have."""
    counted = Counter(types[spec.name] for spec in specs if spec.matrix)
    return find_type(counted.most_common(1)[0][0]).file_type


def encode_plain(checkpoint: Checkpoint) -> Encode:
    """Who gives rows of F32, F16 and BF16: any tensor, decoded."""

    def encode(name: str, type_name: str, rows: slice) -> Bytes:
        with placed(name):
            weights = checkpoint.tensors.read_float(name, rows)
            return encode_floats(type_name, weights.reshape(len(weights), -1))

    return encode


def _in_form(checkpoint: Checkpoint, form: NumberForm) -> Encode:
    """Who gives numbers that the file has in another form."""

    def encode(name: str, type_name: str, rows: slice) -> Bytes:
        weights = form.write(checkpoint.tensors.read_float(name, rows))
        return encode_floats(type_name, weights.reshape(len(weights), -1))

    return encode


def _tensors(
    checkpoint: Checkpoint, model: GgufModel, types: Mapping[str, str], encode: Encode
) -> list[TensorToWrite]:
    """Every tensor of the plan, in its order, and the frequency factors where there are some."""
    named: dict[str, list[Named]] = {}
    for name in model.names():
        named.setdefault(name.ours, []).append(name)
    plain = encode_plain(checkpoint)
    sources: dict[str, dict[int, _TensorSource]] = {}
    for spec in checkpoint.plan.tensors():
        type_name = types[spec.name] if spec.matrix else VECTORS
        for name in named[spec.name]:
            order = name.rows
            if order is None:
                order = model.architecture.row_order(name.role, spec.shape[0], model.reader)
            shape = spec.shape if order is None else (len(order), *spec.shape[1:])
            shape = their_shape(name.role, name.kind, shape, model.reader)
            if name.role in model.architecture.flat:
                shape = (prod(shape),)
            source = _TensorSource(spec, type_name, shape, order, encode if spec.matrix else plain)
            form = number_form(model.family, name.role, name.kind)
            if form is not None:
                source = replace(source, encode=_in_form(checkpoint, form))
            sources.setdefault(name.theirs, {})[name.part or 0] = source
    tensors = [
        _to_write(name, [parts[part] for part in sorted(parts)]) for name, parts in sources.items()
    ]
    by_name = {each.name: each for each in tensors}
    repeated = model.architecture.repeated.items()
    tensors += [replace(by_name[read], name=name) for name, read in repeated]
    factors = frequency_factors(model.rope)
    tensors[1:1] = [_factors_to_write(name, each) for name, each in factors.items()]
    return tensors


def _to_write(name: str, sources: list[_TensorSource]) -> TensorToWrite:
    """One tensor, or those of all experts, heads or token shifts behind each other."""
    first = sources[0]
    shape = first.shape if len(sources) == 1 else (len(sources), *first.shape)

    def parts() -> Iterator[Bytes]:
        for source in sources:
            yield from source.parts()

    return TensorToWrite(name, first.type, shape, parts)


def _factors_to_write(name: str, factors: Factors) -> TensorToWrite:
    raw = factors.view(np.uint8)
    return TensorToWrite(name, VECTORS, factors.shape, lambda: [raw])


@dataclass(frozen=True)
class _TensorSource:
    """Where the bytes of one tensor come from."""

    spec: TensorSpec
    type: str
    shape: tuple[int, ...]  # as the file has it
    order: Order | None  # which of our rows lie at each of its own
    encode: Encode

    def parts(self) -> Iterator[Bytes]:
        """Its bytes in the file's order of rows: whole where rows change places."""
        rows = self.spec.shape[0]
        if self.order is not None:
            yield self._bytes(slice(0, rows))[self.order]
            return
        row_bytes = 4 * (self.spec.shape[1] if self.spec.matrix else 1)
        step = max(PART_BYTES // row_bytes // TILE_ROWS, 1) * TILE_ROWS
        for begin in range(0, rows, step):
            yield self._bytes(slice(begin, min(begin + step, rows)))

    def _bytes(self, rows: slice) -> Bytes:
        with placed(self.spec.name):
            return self.encode(self.spec.name, self.type, rows)
