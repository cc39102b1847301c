"""The files of a repository on the Hugging Face hub: their names, sizes and hashes, and ranges.

In: a HubName. Out: HubFiles, names, or some bytes of a file. Where the hub is out of reach, names
come from the local copy. Refuses what the hub refuses, in words that say what to do.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crumb.checkpoints.huggingface.hub_name import HubName
from crumb.errors import CheckpointError, CrumbError, DoesNotFit, ModelNotFound


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the hub lists it."""

    name: str  # with its folders
    size_bytes: int
    sha256: str | None  # of large files


def file_names(name: HubName) -> list[str]:
    """The files of a repository: of the hub, or of its local copy where that is out of reach."""
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        if not constants.HF_HUB_OFFLINE:
            return list(HfApi().list_repo_files(name.repository, revision=name.revision))
    except Exception as error:  # the library lets errors of its HTTP client through
        if getattr(error, "response", None) is not None:  # the hub's own answer
            raise explained(error, str(name)) from error
    try:
        local = snapshot_download(name.repository, revision=name.revision, local_files_only=True)
    except Exception as error:
        raise explained(error, str(name)) from error
    root = Path(local)
    return sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())


def hub_files(name: HubName) -> dict[str, HubFile] | None:
    """The files of a repository by name, asked of the hub; None where that is out of reach.

    Raises: ModelNotFound.
    """
    from huggingface_hub import HfApi

    try:
        told = HfApi().model_info(name.repository, revision=name.revision, files_metadata=True)
    except Exception as error:
        if getattr(error, "response", None) is not None:  # the hub's own answer
            raise explained(error, str(name)) from error
        return None
    return {
        each.rfilename: HubFile(each.rfilename, each.size or 0, _sha256(each.lfs))
        for each in told.siblings or ()
    }


def _sha256(pointer: Any) -> str | None:
    """The hash that the hub keeps of a large file, a record or, in older libraries, a mapping."""
    hash = pointer.get("sha256") if isinstance(pointer, dict) else getattr(pointer, "sha256", None)
    return hash if isinstance(hash, str) else None


def read_range(name: HubName, file: HubFile, begin: int, end: int) -> bytes:
    """The bytes from begin up to end of a file. Raises: ModelNotFound, CheckpointError."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_backoff,
    )

    url = hf_hub_url(name.repository, file.name, revision=name.revision)
    try:
        headers = build_hf_headers() | {"range": f"bytes={begin}-{end - 1}"}
        response = http_backoff("GET", url, headers=headers)
        hf_raise_for_status(response)
    except Exception as error:
        raise explained(error, f"{name}/{file.name}") from error
    content: bytes = response.content
    if len(content) != end - begin:
        raise CheckpointError(
            "the hub gave another range of a file than was asked for",
            where=f"{name}/{file.name}",
            expected=f"{end - begin} bytes from byte {begin}",
            found=f"{len(content)} bytes",
        )
    return content


def explained(error: Exception, where: str) -> CrumbError:
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
