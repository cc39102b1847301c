"""Tiny models as GGUF files whose matrices have one type; no tokenizer is needed.

In: a configuration, or a checkpoint, and where its files go. Out: the checkpoint, or the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models import write_model

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.gguf.writer import encode_plain, write_gguf
from crumb.checkpoints.opening import open_checkpoint


def source(folder: Path, configuration: dict[str, Any]) -> Checkpoint:
    """A tiny model with random weights."""
    folder.mkdir()
    return open_checkpoint(write_model(folder, configuration))


def written(checkpoint: Checkpoint, out: Path, type: str = "F32") -> Path:
    """The checkpoint as a GGUF file."""
    types = {spec.name: type for spec in checkpoint.plan.tensors() if spec.matrix}
    write_gguf(checkpoint, out, types, encode_plain(checkpoint), "tiny")
    return out
