"""Where a model lies: a local path, inside this package, or a repository on the Hugging Face hub.

In: "path", "novella-7m", "org/name", "org/name@revision" or "org/name/file.gguf". Out: a local
directory or GGUF file.
The hub's own environment applies (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE); only the configuration,
safetensors and tokenizer files at the top of a repository are fetched, or the named file with its
other parts. What is there wins over a hub name. Refuses names that are neither.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from pathlib import Path

from crumb.embedded import MODELS
from crumb.errors import CrumbError, DoesNotFit, ModelNotFound

WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "README.md"]
UNWANTED = ["*/*", "consolidated*"]
"""Files in folders, and Mistral's second copy of the same weights."""

HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+?)(/[\w.-]+\.gguf)?(@[\w./-]+)?", re.ASCII)
"""Repository, a file at its top, revision."""

GGUF = ".gguf"
PART_NUMBER = re.compile(r"-\d{5}(-of-\d{5}\.gguf)")


def locate(model: str) -> Path:
    """The local directory or file of a model, downloaded first if it is a hub name.

    Raises: ModelNotFound, saying what was tried; DoesNotFit when the disk is full.
    """
    try:
        path = Path(model).expanduser()
        exists, is_model = path.exists(), path.is_dir() or (path.suffix == GGUF and path.is_file())
    except (OSError, ValueError, RuntimeError) as error:  # too long, not permitted, no such user
        reason = getattr(error, "strerror", None) or error
        raise ModelNotFound(f"cannot be a path: {reason}", where=repr(model[:200])) from error
    if model and is_model:
        return path
    if model in MODELS:
        return MODELS[model]
    named = None if exists else HUB_NAME.fullmatch(model)
    if named is None:
        raise ModelNotFound(
            "no model directory, GGUF file or hub name",
            where=repr(model[:200]),
            expected="a directory with config.json, a .gguf file, org/name, org/name@revision, "
            "or org/name/file.gguf",
        )
    repository, file, revision = named[1], named[2], (named[3] or "")[1:] or None
    if file is None:
        return download(repository, revision)
    wanted = PART_NUMBER.sub(r"-*\1", file[1:])
    found = download(repository, revision, [wanted]) / file[1:]
    if not found.is_file():
        raise ModelNotFound("the repository has no such file", where=model)
    return found


def download(
    repository: str, revision: str | None = None, wanted: Sequence[str] = tuple(WANTED)
) -> Path:
    """A hub repository's files in the local cache. Raises: ModelNotFound, DoesNotFit."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=[*wanted], ignore_patterns=UNWANTED
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
