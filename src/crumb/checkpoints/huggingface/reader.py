"""Hugging Face directories: config.json, one or many safetensors shards, a tokenizer.

In: a directory. Out: a Checkpoint. The configuration is read before any weight file, so that a
method or family that is not known is refused by its name.
Refuses two shards with the same tensor, and what the readers of weights and settings refuse.
"""

from __future__ import annotations

from pathlib import Path

from crumb.architectures.registry import families, plan_of, text_part
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.huggingface.quantization import reader_of, with_settings
from crumb.checkpoints.huggingface.text_names import with_plan_names
from crumb.checkpoints.huggingface.tied_head import with_own_head
from crumb.checkpoints.huggingface.weight_files import weight_files
from crumb.checkpoints.joined_rows import rows_apart
from crumb.checkpoints.latent_heads import heads_apart
from crumb.checkpoints.safetensors import StoredArray, read_header
from crumb.checkpoints.stacked_experts import apart
from crumb.checkpoints.tensor_map import QuantizedDirectory, TensorMap
from crumb.checkpoints.transposed import turned
from crumb.errors import CheckpointError
from crumb.files.model_files import CONFIGURATION, DirectoryFiles, needed_json


def open_directory(path: Path) -> Checkpoint:
    """Open a local model directory. Raises: ModelNotFound, CheckpointError, UnknownFamily."""
    files = DirectoryFiles(path)
    configuration = text_part(with_settings(needed_json(files, CONFIGURATION)))
    plan = plan_of(configuration)
    read = reader_of(configuration, path / CONFIGURATION)
    weights = weight_files(path)
    arrays: dict[str, StoredArray] = {}
    metadata: dict[str, str] = {}
    for file in weights:
        shard, said = read_header(file)
        repeated = arrays.keys() & shard.keys()
        if repeated:
            raise CheckpointError(
                "two shards hold the same tensor", where=file, found=min(repeated)
            )
        arrays |= shard
        metadata |= said
    arrays = with_plan_names(arrays, plan)
    entries = read(QuantizedDirectory(path, configuration, arrays, metadata))
    family = families()[plan.family]
    entries = rows_apart(family, plan, heads_apart(family, plan, apart(family, plan, entries)))
    entries = turned(plan, entries)
    untied, plan, tensors = with_own_head(configuration, plan, TensorMap(path, entries))
    tensors.check(plan)
    return Checkpoint(path, untied, plan, tensors, weights, files)
