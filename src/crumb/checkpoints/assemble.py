"""Assemble a crumb directory from finished tensors and the source's small ones.

In: a source checkpoint, a workspace whose matrices are all finished, the manifest. Out: shards,
index, config.json, tokenizer files and manifest.json in the workspace's model/.
One tensor is in memory at a time; shards hold at most SHARD_BYTES, matrices before small tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crumb.checkpoints.crumb_directory import (
    MANIFEST,
    TILES,
    matrix_metadata,
    quantization_config,
)
from crumb.checkpoints.huggingface import INDEX, SINGLE, Checkpoint
from crumb.checkpoints.safetensors import ArrayToWrite, StoredArray, write_file
from crumb.checkpoints.workspace import Workspace, write_json, write_synced
from crumb.errors import CheckpointError

SHARD_BYTES = 4 << 30


@dataclass(frozen=True)
class _Part:
    """One array of a shard."""

    name: str
    array: ArrayToWrite
    metadata: dict[str, str]  # of a packed matrix, empty otherwise


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


def _gather(source: Checkpoint, workspace: Workspace, name: str) -> _Part:
    finished = workspace.finished(name)
    if finished is None:
        entry = source.tensors.entry(name)
        if not isinstance(entry, StoredArray):
            raise CheckpointError("the source is quantized already", where=source.path, found=name)
        return _Part(name, _copied(entry), {})
    stored = finished.stored
    metadata = {name: matrix_metadata(stored.format, stored.shape)}
    return _Part(f"{name}.{TILES}", _copied(stored.tiles), metadata)


def _copied(array: StoredArray) -> ArrayToWrite:
    return ArrayToWrite(array.dtype, array.shape, array.read)


def _write_shards(target: Path, parts: Sequence[_Part]) -> None:
    shards: list[list[_Part]] = [[]]
    filled = 0
    for part in parts:
        if filled and filled + part.array.size_bytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(part)
        filled += part.array.size_bytes
    weight_map: dict[str, str] = {}
    for index, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{index:05}-of-{len(shards):05}.safetensors"
        # Small tensors have any size: behind them a matrix could begin at any byte.
        shard.sort(key=lambda part: not part.metadata)
        metadata = {"format": "crumb"}
        for part in shard:
            metadata |= part.metadata
        write_file(target / name, {part.name: part.array for part in shard}, metadata)
        weight_map |= {part.name: name for part in shard}
    if len(shards) > 1:
        write_json(target / INDEX, {"metadata": {}, "weight_map": weight_map})
