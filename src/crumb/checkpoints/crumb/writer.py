"""Write a crumb directory: of finished tensors, or of what another container holds.

In: a source checkpoint, and a workspace whose matrices are all finished, or none. Out: shards,
index, config.json, tokenizer files and manifest.json.
One tensor is in memory at a time; shards hold at most SHARD_BYTES, matrices before small tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.reader import (
    COLUMN_WEIGHTS,
    COLUMNS,
    MANIFEST,
    METHOD,
    ORDER,
    TILES,
    matrix_metadata,
    quantization_config,
)
from crumb.checkpoints.crumb.workspace import Workspace
from crumb.checkpoints.directory_writer import Part, new_directory, write_model
from crumb.checkpoints.export_report import TensorReport, Told
from crumb.checkpoints.float_parts import plain_part
from crumb.checkpoints.safetensors import ArrayToWrite, StoredArray, array_in_memory
from crumb.checkpoints.tensor_map import Quantized, StoredFloats, StoredPacked
from crumb.errors import CheckpointError
from crumb.files.atomic_file import write_json
from crumb.files.model_files import optional_json
from crumb.formats.packed_tensor import stored_shape


def assemble_directory(source: Checkpoint, workspace: Workspace, manifest: dict[str, Any]) -> None:
    """Write everything into the workspace's model/."""
    target = workspace.partial / "model"
    parts: list[Part] = []
    for spec in source.plan.tensors():
        parts += _gather(source, workspace, spec.name)
    _write(source, target, parts, manifest)


def write_crumb(checkpoint: Checkpoint, out: Path, told: Told) -> None:
    """A model of another container; every quantized matrix keeps its codes and scales.

    Raises: CheckpointError, OutputConflict, DoesNotFit.
    """
    parts: list[Part] = []
    for spec in checkpoint.plan.tensors():
        entry = checkpoint.tensors.entry(spec.name)
        if isinstance(entry, Quantized):
            parts += _packed(spec.name, entry, told)
        else:
            parts.append(plain_part(spec.name, entry, told))
    manifest = optional_json(checkpoint.files, MANIFEST) or {
        "manifest_version": 1,
        "exported_from": {"name": checkpoint.path.name, "sha256": checkpoint.sha256()},
    }
    with new_directory(out) as target:
        _write(checkpoint, target, parts, manifest)


def _write(source: Checkpoint, target: Path, parts: list[Part], manifest: dict[str, Any]) -> None:
    """All of a directory, the manifest last."""
    configuration = dict(source.configuration) | {"quantization_config": quantization_config()}
    write_model(target, parts, configuration, source.files, METHOD)
    write_json(target / MANIFEST, manifest)


def _packed(name: str, entry: Quantized, told: Told) -> list[Part]:
    """A matrix in tiles, the order of its columns where they have one, its float columns."""
    shape = stored_shape(entry.format, *entry.shape)

    def read() -> NDArray[Any]:
        told(TensorReport(name, entry.source, entry.format.name, exact=True))
        return entry.read().tiles

    metadata = {name: matrix_metadata(entry.format, entry.shape)}
    parts = [Part(f"{name}.{TILES}", ArrayToWrite(np.dtype(np.uint8), shape, read), metadata)]
    if entry.order is not None:
        parts.append(Part(f"{name}.{ORDER}", array_in_memory(entry.order.astype(np.int32))))
    return parts + _float_columns(name, entry)


def _float_columns(name: str, entry: Quantized) -> list[Part]:
    """Places and weights of a matrix's float columns, if it has any."""
    columns = entry.columns if isinstance(entry, StoredPacked) else None
    if columns is None:
        return []
    places = array_in_memory(columns.places)
    return [
        Part(f"{name}.{COLUMNS}", places),
        Part(f"{name}.{COLUMN_WEIGHTS}", copied(columns.tiles)),
    ]


def _gather(source: Checkpoint, workspace: Workspace, name: str) -> list[Part]:
    finished = workspace.finished(name)
    if finished is None:
        entry = source.tensors.entry(name)
        if isinstance(entry, Quantized):
            raise CheckpointError("the source is quantized already", where=source.path, found=name)
        return [Part(name, copied(entry))]
    packed = finished.entry
    metadata = {name: matrix_metadata(packed.format, packed.shape)}
    tiles = Part(f"{name}.{TILES}", copied(packed.tiles), metadata)
    return [tiles, *_float_columns(name, packed)]


def copied(entry: StoredArray | StoredFloats) -> ArrayToWrite:
    """An array as it is stored."""
    return ArrayToWrite(entry.dtype, entry.shape, entry.read)
