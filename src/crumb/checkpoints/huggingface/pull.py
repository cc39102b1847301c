"""Fetch a model from the hub and check that every weight file is what the hub says it is.

In: a name of the hub. Out: a Pulled: where it lies, its weight files, how many were checked. What
lies in the cache is not fetched again, and a file that was cut off goes on where it ended.
Refuses a disk that is too small, and files whose hash is another: those are removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crumb.checkpoints.huggingface.hub import local_path, locate, needed_hub_name
from crumb.checkpoints.huggingface.hub_files import HubFile, hub_files
from crumb.errors import CheckpointError, ModelNotFound, UsageError
from crumb.files.free_space import check_free_space
from crumb.files.read_errors import read_errors

SNAPSHOTS = "snapshots"
"""The folder of the hub's cache that holds a folder for each revision."""


@dataclass(frozen=True)
class Pulled:
    """A model that lies here now."""

    model: str
    path: Path
    files: int  # with a hash on the hub: weights, and large tokenizers
    size_bytes: int  # of those


def pull(
    model: str, weight_bytes: int, told: Callable[[float, str], None] = lambda share, doing: None
) -> Pulled:
    """Fetch and check. `told` hears the share of the check that is done.

    `weight_bytes`: what the weights take on the disk where none of them are there yet.
    Raises: ModelNotFound, CheckpointError, UsageError for a model that is here anyway, DoesNotFit.
    """
    from huggingface_hub import constants

    if local_path(model) is not None:
        raise UsageError("this model lies here already", where=model)
    name = needed_hub_name(model)
    files = hub_files(name)
    if files is None:
        raise ModelNotFound(
            "the hub could not be reached", where=model, do="Check the network, or HF_HUB_OFFLINE"
        )
    cache = Path(constants.HF_HUB_CACHE)
    check_free_space(cache, weight_bytes, model, "Make room, or set HF_HOME to a larger disk")
    path = locate(model)
    root = _snapshot_of(path)
    hashed = [file for file in files.values() if file.sha256 and (root / file.name).exists()]
    total, done = sum(file.size_bytes for file in hashed), 0
    for file in hashed:
        told(done / total, f"checking {file.name}")
        _check(root / file.name, file)
        done += file.size_bytes
    return Pulled(model, path, len(hashed), total)


def _snapshot_of(path: Path) -> Path:
    """The folder that names of files are relative to."""
    places = (path, *path.parents)
    return next((place for place in places if place.parent.name == SNAPSHOTS), path)


def _check(path: Path, file: HubFile) -> None:
    """Remove a file that is another. Raises: CheckpointError."""
    with read_errors(path), path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest == file.sha256:
        return
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    raise CheckpointError(
        "a file is not what the hub says it is; it was removed",
        where=path,
        expected=f"sha256 {file.sha256}",
        found=digest,
        do="Pull the model again",
    )
