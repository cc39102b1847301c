"""Assemble a crumb directory from finished tensors and the source's small ones.

In: a source checkpoint, a workspace whose matrices are all finished, the manifest. Out: shards,
index, config.json, tokenizer files and manifest.json in the workspace's model/.
One tensor is in memory at a time; shards hold at most SHARD_BYTES, matrices before small tensors.
"""

from __future__ import annotations

from typing import Any

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.reader import (
    MANIFEST,
    METHOD,
    TILES,
    matrix_metadata,
    quantization_config,
)
from crumb.checkpoints.crumb.workspace import Workspace
from crumb.checkpoints.directory_writer import Part, write_model
from crumb.checkpoints.safetensors import ArrayToWrite, StoredArray
from crumb.checkpoints.tensor_map import Quantized, StoredFloats
from crumb.errors import CheckpointError
from crumb.files.atomic_file import write_json


def assemble_directory(source: Checkpoint, workspace: Workspace, manifest: dict[str, Any]) -> None:
    """Write everything into the workspace's model/."""
    target = workspace.partial / "model"
    parts = [_gather(source, workspace, spec.name) for spec in source.plan.tensors()]
    configuration = dict(source.configuration) | {"quantization_config": quantization_config()}
    write_model(target, parts, configuration, source.files, METHOD)
    write_json(target / MANIFEST, manifest)


def _gather(source: Checkpoint, workspace: Workspace, name: str) -> Part:
    finished = workspace.finished(name)
    if finished is None:
        entry = source.tensors.entry(name)
        if isinstance(entry, Quantized):
            raise CheckpointError("the source is quantized already", where=source.path, found=name)
        return Part(name, copied(entry))
    stored = finished.stored
    metadata = {name: matrix_metadata(stored.format, stored.shape)}
    return Part(f"{name}.{TILES}", copied(stored.tiles), metadata)


def copied(entry: StoredArray | StoredFloats) -> ArrayToWrite:
    """An array as it is stored."""
    return ArrayToWrite(entry.dtype, entry.shape, entry.read)
