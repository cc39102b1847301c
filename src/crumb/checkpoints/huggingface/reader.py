"""Hugging Face directories: config.json, one or many safetensors shards, a tokenizer.

In: a directory. Out: a Checkpoint. A quantized directory names its quant_method: READERS has who
turns its arrays into matrices.
Refuses pickle weights, shards that are missing or lie elsewhere, and other layout versions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from crumb.architectures.registry import plan_of
from crumb.checkpoints.awq import reader as awq
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.compressed_tensors import reader as compressed_tensors
from crumb.checkpoints.crumb import reader as crumb_directory
from crumb.checkpoints.gptq import reader as gptq
from crumb.checkpoints.safetensors import StoredArray, read_header
from crumb.checkpoints.tensor_map import Entry, QuantizedDirectory, TensorMap
from crumb.errors import CheckpointError, ModelNotFound
from crumb.files.model_files import CONFIGURATION, DirectoryFiles, needed_json, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LEGACY_WEIGHTS = "gptq_model-*bit-*.safetensors"
"""What the first GPTQ tools called a model's only file."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def open_directory(path: Path) -> Checkpoint:
    """Open a local model directory. Raises: ModelNotFound, CheckpointError, UnknownFamily."""
    files = DirectoryFiles(path)
    configuration = needed_json(files, CONFIGURATION)
    plan = plan_of(configuration)
    weight_files = _weight_files(path)
    arrays: dict[str, StoredArray] = {}
    metadata: dict[str, str] = {}
    for file in weight_files:
        stored, said = read_header(file)
        repeated = arrays.keys() & stored.keys()
        if repeated:
            raise CheckpointError(
                "two shards hold the same tensor", where=file, found=min(repeated)
            )
        arrays |= stored
        metadata |= said
    directory = QuantizedDirectory(path, configuration, arrays, metadata)
    tensors = TensorMap(path, _entries(directory))
    tensors.check(plan)
    return Checkpoint(path, configuration, plan, tensors, weight_files, files)


READERS: dict[str, Callable[[QuantizedDirectory], dict[str, Entry]]] = {
    crumb_directory.METHOD: crumb_directory.group_packed,
    gptq.METHOD: gptq.read_gptq,
    awq.METHOD: awq.read_awq,
    compressed_tensors.METHOD: compressed_tensors.read_compressed_tensors,
}
"""quant_method of a directory -> who reads its matrices."""

LEGACY_FILES = {gptq.LEGACY_FILE: gptq.METHOD, awq.LEGACY_FILE: awq.METHOD}
"""Where earlier tools wrote the settings, without their quant_method."""


def _entries(directory: QuantizedDirectory) -> dict[str, Entry]:
    """Entries by tensor name; those of a float directory are its arrays."""
    given = directory.configuration.get("quantization_config")
    if given is None:
        given = _legacy_settings(directory)
    if given is None:
        return dict(directory.arrays)
    configuration = dict(directory.configuration) | {"quantization_config": given}
    directory = replace(directory, configuration=configuration)
    method = given.get("quant_method") if isinstance(given, dict) else given
    reader = READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise CheckpointError(
            "this quantization method cannot be read by this version",
            where=directory.path / CONFIGURATION,
            expected=f"quant_method {' or '.join(READERS)}",
            found=repr(method)[:80],
            do="Quantize the float checkpoint again with `crumb quantize`",
        )
    return reader(directory)


def _legacy_settings(directory: QuantizedDirectory) -> dict[str, Any] | None:
    """Quantization settings that lie beside config.json, for a directory that needs some."""
    if not any(name.endswith(".qweight") for name in directory.arrays):
        return None
    for name, method in LEGACY_FILES.items():
        if (directory.path / name).is_file():
            return {"quant_method": method} | read_json(directory.path / name)
    raise CheckpointError(
        "quantized arrays without settings",
        where=directory.path,
        expected=f"quantization_config in {CONFIGURATION}, or {' or '.join(LEGACY_FILES)}",
    )


def _weight_files(path: Path) -> tuple[Path, ...]:
    if (path / SINGLE).exists():
        return (path / SINGLE,)
    if (path / INDEX).exists():
        return _indexed_files(path / INDEX)
    legacy = sorted(path.glob(LEGACY_WEIGHTS))
    if len(legacy) == 1:
        return (legacy[0],)
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
