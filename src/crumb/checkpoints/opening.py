"""Open a model by what lies at its path: a Hugging Face directory or a GGUF file.

In: a local path. Out: a Checkpoint. A directory without config.json may hold one GGUF model.
Refuses what is neither, and a directory of several GGUF models.
"""

from __future__ import annotations

from pathlib import Path

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.gguf.reader import PART, SUFFIX, open_gguf
from crumb.checkpoints.huggingface.reader import open_directory
from crumb.errors import ModelNotFound
from crumb.files.model_files import CONFIGURATION


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a local model. Raises: ModelNotFound, CheckpointError, UnknownFamily."""
    if path.is_dir():
        found = _gguf_models(path)
        return open_gguf(found[0]) if found else open_directory(path)
    if path.suffix == SUFFIX and path.is_file():
        return open_gguf(path)
    raise ModelNotFound("no such model directory or GGUF file", where=path)


def _gguf_models(path: Path) -> list[Path]:
    """The GGUF model of a directory that is no Hugging Face one. Raises: ModelNotFound."""
    if (path / CONFIGURATION).exists():
        return []
    files = sorted(path.glob(f"*{SUFFIX}"))
    models = [file for file in files if not _is_later_part(file.name)]
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
