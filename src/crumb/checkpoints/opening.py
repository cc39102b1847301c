"""Open a model by what lies at its path: a Hugging Face directory or a GGUF file.

In: a local path. Out: a Checkpoint. A directory without config.json or without safetensors files
may hold one GGUF model.
Refuses what is neither, and a directory of several GGUF models.
"""

from __future__ import annotations

from pathlib import Path

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.converted_cache import with_converted
from crumb.checkpoints.gguf.reader import PART, open_gguf
from crumb.checkpoints.huggingface.reader import open_directory
from crumb.checkpoints.local_model import gguf_files, is_gguf, model_at
from crumb.errors import ModelNotFound
from crumb.files.model_files import CONFIGURATION


def open_checkpoint(path: Path, cache_converted: bool = False) -> Checkpoint:
    """Open a local model; cache_converted keeps what is converted in a file beside it.

    Raises: ModelNotFound, CheckpointError, UnknownFamily.
    """
    checkpoint = _opened(path)
    return with_converted(checkpoint) if cache_converted else checkpoint


def _opened(path: Path) -> Checkpoint:
    if not path.exists():
        raise ModelNotFound("no such model directory or GGUF file", where=path)
    model = model_at(path)
    if is_gguf(model):
        return open_gguf(model)
    inside = _gguf_models(model)
    return open_gguf(inside[0]) if inside else open_directory(model)


def _gguf_models(path: Path) -> list[Path]:
    """The GGUF model of a directory that is no Hugging Face one. Raises: ModelNotFound."""
    if (path / CONFIGURATION).exists() and any(path.glob("*.safetensors")):
        return []
    models = [file for file in gguf_files(path) if not _is_later_part(file.name)]
    if len(models) > 1:
        raise ModelNotFound(
            "several GGUF files in one directory",
            where=path,
            found=", ".join(file.name for file in models)[:400],
            do="Name one of the files",
        )
    return models


def _is_later_part(name: str) -> bool:
    named = PART.fullmatch(name)
    return named is not None and int(named[2]) > 1
