"""Assemble a crumb directory from finished tensors and the source's small ones.

In: a source checkpoint, a workspace whose matrices are all finished, the manifest. Out: shards,
index, config.json, tokenizer files and manifest.json in the workspace's model/.
One tensor is in memory at a time; shards hold at most SHARD_BYTES.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crumb.checkpoints.crumb_directory import MANIFEST, quantization_config
from crumb.checkpoints.huggingface import INDEX, SINGLE, Checkpoint
from crumb.checkpoints.safetensors import ArrayToWrite, StoredArray, write_file
from crumb.checkpoints.workspace import Workspace, write_json, write_synced
from crumb.errors import CheckpointError

SHARD_BYTES = 4 << 30

Named = tuple[str, dict[str, ArrayToWrite], dict[str, str]]  # tensor, its arrays, its metadata


def assemble_directory(
    source: Checkpoint, workspace: Workspace, manifest: dict[str, Any], copied: Sequence[str]
) -> None:
    """Write everything into the workspace's model/; `copied` are files taken from the source."""
    target = workspace.partial / "model"
    _write_shards(target, [_gather(source, workspace, spec.name) for spec in source.plan.tensors()])
    configuration = dict(source.configuration) | {"quantization_config": quantization_config()}
    write_json(target / "config.json", configuration)
    for name in copied:
        if (source.path / name).exists():
            write_synced(target / name, (source.path / name).read_bytes())
    write_json(target / MANIFEST, manifest)


def _gather(source: Checkpoint, workspace: Workspace, name: str) -> Named:
    finished = workspace.finished(name)
    if finished is None:
        entry = source.tensors.entry(name)
        if not isinstance(entry, StoredArray):
            raise CheckpointError("the source is quantized already", where=source.path, found=name)
        return name, {name: ArrayToWrite(entry.dtype, entry.shape, entry.read)}, {}
    stored = finished.stored
    arrays = {
        f"{name}.{suffix}": ArrayToWrite(array.dtype, array.shape, array.read)
        for suffix, array in stored.arrays.items()
    }
    return name, arrays, {name: f"{stored.format.name} {stored.shape[1]}"}


def _write_shards(target: Path, tensors: Sequence[Named]) -> None:
    shards: list[list[Named]] = [[]]
    filled = 0
    for tensor in tensors:
        size = sum(array.size_bytes for array in tensor[1].values())
        if filled and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    weight_map: dict[str, str] = {}
    for index, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{index:05}-of-{len(shards):05}.safetensors"
        arrays: dict[str, ArrayToWrite] = {}
        metadata = {"format": "crumb"}
        for _, parts, formats in shard:
            arrays |= parts
            metadata |= formats
        write_file(target / name, arrays, metadata)
        weight_map |= dict.fromkeys(arrays, name)
    if len(shards) > 1:
        write_json(target / INDEX, {"metadata": {}, "weight_map": weight_map})
