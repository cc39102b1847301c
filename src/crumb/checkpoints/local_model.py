"""A local path as the model it belongs to: a directory, a GGUF file, or a file of a directory.

In: a path that exists. Out: the directory or GGUF file to open. A GGUF file is known by its first
bytes or by its suffix, however that is written.
Refuses pickles and files that are no model's, saying what to give instead.
"""

from __future__ import annotations

from pathlib import Path

from crumb.checkpoints.gguf.container import MAGIC
from crumb.checkpoints.gguf.reader import SUFFIX
from crumb.checkpoints.huggingface.weight_files import PICKLES, weight_files
from crumb.errors import CheckpointError, ModelNotFound
from crumb.files.model_files import CONFIGURATION
from crumb.files.read_errors import read_errors

SAFETENSORS = ".safetensors"
JSON = ".json"
EXPECTED = "a directory with config.json, a GGUF file, or a file of weights inside such a directory"


def model_at(path: Path) -> Path:
    """What to open. Raises: ModelNotFound, CheckpointError."""
    if path.is_dir() or is_gguf(path):
        return path
    if any(path.match(pattern) for pattern in PICKLES):
        raise CheckpointError(
            "pickle weights can run code when opened and are refused",
            where=path,
            do="Convert them once where you trust them: "
            "transformers' save_pretrained writes model.safetensors",
        )
    if path.suffix.lower() not in (SAFETENSORS, JSON):
        raise ModelNotFound("this file is no model", where=path, expected=EXPECTED)
    directory = path.parent
    if not (directory / CONFIGURATION).is_file():
        raise ModelNotFound(
            "this file alone is no model",
            where=path,
            expected=f"{CONFIGURATION} and the tokenizer beside it",
            do="Download the whole repository, or give its name on the hub",
        )
    names = [file.name for file in weight_files(directory)]
    if path.suffix.lower() == SAFETENSORS and path.name not in names:
        raise ModelNotFound(
            "this file is not what its directory's model is made of",
            where=path,
            expected=", ".join(names)[:200],
            do=f"Give the directory, {directory}",
        )
    return directory


def is_gguf(path: Path) -> bool:
    """Whether a file's name or its first bytes say GGUF. Raises: CheckpointError."""
    if not path.is_file():
        return False
    if path.suffix.lower() == SUFFIX:
        return True
    with read_errors(path), path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def gguf_files(directory: Path) -> list[Path]:
    """The GGUF files of a directory, by their suffix."""
    files = (file for file in directory.iterdir() if file.suffix.lower() == SUFFIX)
    return sorted(file for file in files if file.is_file())
