"""Where a model lies: a local path, inside this package, or a repository on the Hugging Face hub.

In: "path", "novella-7m", "org/name" or "org/name@revision". Out: a local directory.
The hub's own environment applies (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE); only the configuration,
safetensors and tokenizer files at the top of a repository are fetched. A directory that is there
wins over a hub name. Refuses names that are neither.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from crumb.embedded import MODELS
from crumb.errors import CrumbError, DoesNotFit, ModelNotFound

WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "README.md"]
UNWANTED = ["*/*", "consolidated*"]
"""Files in folders, and Mistral's second copy of the same weights."""

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)


def locate(model: str) -> Path:
    """The local directory of a model, downloaded first if it is a hub name.

    Raises: ModelNotFound, saying what was tried; DoesNotFit when the disk is full.
    """
    try:
        path = Path(model).expanduser()
        is_directory, exists = path.is_dir(), path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, not permitted, no such user
        reason = getattr(error, "strerror", None) or error
        raise ModelNotFound(f"cannot be a path: {reason}", where=repr(model[:200])) from error
    if model and is_directory:
        return path
    if model in MODELS:
        return MODELS[model]
    if exists or not HUB_NAME.fullmatch(model):
        raise ModelNotFound(
            "neither a model directory nor a hub name",
            where=repr(model[:200]),
            expected="a directory with config.json, or org/name, or org/name@revision",
        )
    repository, _, revision = model.partition("@")
    return download(repository, revision or None)


def download(repository: str, revision: str | None = None) -> Path:
    """A hub repository's files in the local cache. Raises: ModelNotFound, DoesNotFit."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED
            )
        )
    except Exception as error:  # the hub's library lets errors of its HTTP client through
        where = repository if revision is None else f"{repository}@{revision}"
        raise _explained(error, where) from error


def _explained(error: Exception, where: str) -> CrumbError:
    """What a failure of the hub's library means to the user."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DoesNotFit(
            "the disk is full", where=where, do="Make room, or set HF_HOME to a larger disk"
        )
    response = getattr(error, "response", None)
    if isinstance(error, GatedRepoError) or getattr(response, "status_code", None) == 403:
        return ModelNotFound(
            "this repository asks for permission",
            where=where,
            do="Accept its terms on the hub, then set HF_TOKEN",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound("the repository has no such revision", where=where)
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return ModelNotFound(
            "no such directory, and no such repository on the hub",
            where=where,
            do="Check the name; a private repository needs HF_TOKEN",
        )
    return ModelNotFound(
        "the hub could not be reached and the cache does not hold all of this model",
        where=where,
        found=f"{type(error).__name__}: {str(error)[:200]}",
        do="Check the network, or HF_HUB_OFFLINE and HF_HOME",
    )
