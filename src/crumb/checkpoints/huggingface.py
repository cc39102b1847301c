"""Hugging Face directories: config.json, one or many safetensors shards, a tokenizer.

In: a directory. Out: a Checkpoint (configuration, TensorMap, files). The `crumb` container is the
same directory whose quantized matrices are stored as packed arrays; it is read here too.
Refuses pickle weights, shards that are missing or lie elsewhere, and other layout versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from crumb.architectures.plan import Plan
from crumb.architectures.registry import plan_of
from crumb.checkpoints.crumb_directory import group_packed
from crumb.checkpoints.safetensors import StoredArray, read_header
from crumb.checkpoints.tensor_map import TensorMap
from crumb.errors import CheckpointError, ModelNotFound

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """An opened model directory; tensors are still on disk."""

    path: Path
    configuration: Mapping[str, Any]
    plan: Plan
    tensors: TensorMap
    weight_files: tuple[Path, ...]

    def sha256(self) -> str:
        """One hash over configuration and weight files, in name order."""
        total = hashlib.sha256()
        for path in (self.path / "config.json", *sorted(self.weight_files)):
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def weight_bytes(self) -> int:
        """Size of the weight files on disk."""
        return sum(path.stat().st_size for path in self.weight_files)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a local model directory. Raises: ModelNotFound, CheckpointError, UnknownFamily."""
    if not path.is_dir():
        raise ModelNotFound("no such model directory", where=path)
    configuration = read_json(path / "config.json")
    plan = plan_of(configuration)
    files = _weight_files(path)
    arrays: dict[str, StoredArray] = {}
    formats: dict[str, str] = {}
    for file in files:
        stored, metadata = read_header(file)
        repeated = arrays.keys() & stored.keys()
        if repeated:
            raise CheckpointError(
                "two shards hold the same tensor", where=file, found=min(repeated)
            )
        arrays |= stored
        formats |= metadata
    tensors = TensorMap(path, group_packed(path, configuration, arrays, formats))
    tensors.check(plan)
    return Checkpoint(path, configuration, plan, tensors, files)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises: ModelNotFound, CheckpointError."""
    try:
        value = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelNotFound("this is no model directory: a file is missing", where=path) from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"cannot be read as JSON: {error}", where=path) from error
    if not isinstance(value, dict):
        raise CheckpointError("not a JSON object", where=path, found=type(value).__name__)
    return value


def _weight_files(path: Path) -> tuple[Path, ...]:
    if (path / SINGLE).exists():
        return (path / SINGLE,)
    if (path / INDEX).exists():
        return _indexed_files(path / INDEX)
    pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    if pickles:
        raise CheckpointError(
            "pickle weights can run code when opened and are refused",
            where=path / pickles[0],
            do="Convert them once where you trust them: "
            "transformers' save_pretrained writes model.safetensors",
        )
    raise ModelNotFound("no weights in this directory", where=path, expected=f"{SINGLE} or {INDEX}")


def _is_file(path: Path) -> bool:
    """Whether a file is there; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _indexed_files(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index has no weight_map", where=index)
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not _is_file(index.parent / name):
            raise CheckpointError(
                "the index names a shard that is not in this directory",
                where=index,
                expected="a file beside the index",
                found=repr(name[:120]),
                do="Download the missing shard",
            )
    return tuple(index.parent / name for name in names)
