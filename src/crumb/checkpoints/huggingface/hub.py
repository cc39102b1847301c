"""Where a model lies: a local path, inside this package, or a repository on the Hugging Face hub.

In: a path, "novella-7m", or what hub_name.py reads. Out: a local directory or GGUF file.
The hub's own environment applies (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE); only the configuration,
safetensors and tokenizer files at the top of a repository are fetched, or one GGUF file with its
other parts. What is there wins over a hub name. Refuses names that are neither.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from pathlib import Path

from crumb.checkpoints.huggingface.hub_name import GGUF, HubName, parse_hub_name
from crumb.checkpoints.local_model import model_at
from crumb.embedded import MODELS
from crumb.errors import CheckpointError, CrumbError, DoesNotFit, ModelNotFound

WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "README.md"]
UNWANTED = ["*/*", "consolidated*"]
"""Files in folders, and Mistral's second copy of the same weights."""

PART_NUMBER = re.compile(r"-\d{5}(-of-\d{5}\.gguf)", re.IGNORECASE)
LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf", re.IGNORECASE)
NO_MODEL = re.compile(r"(^|[-._/])(mmproj|imatrix)", re.IGNORECASE)
"""GGUF files that go with a model: projectors of pictures, importance matrices."""

PICKLES = (".bin", ".pt", ".pth")


def locate(model: str) -> Path:
    """The local directory or file of a model, downloaded first if it is a hub name.

    Raises: ModelNotFound, saying what was tried; CheckpointError for pickles; DoesNotFit when the
    disk is full.
    """
    try:
        path = Path(model).expanduser()
        exists = bool(model) and path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, not permitted, no such user
        reason = getattr(error, "strerror", None) or error
        raise ModelNotFound(f"cannot be a path: {reason}", where=repr(model[:200])) from error
    if exists:
        return model_at(path)
    if model in MODELS:
        return MODELS[model]
    name = parse_hub_name(model)
    if name is None:
        raise ModelNotFound(
            "no model directory, GGUF file or hub name",
            where=repr(model[:200]),
            expected="a directory with config.json, a GGUF file, org/name, org/name@revision, "
            "org/name/file.gguf, or org/name:Q4_K_M",
            do="Ollama's own names are not known here: give the repository on the hub"
            if re.fullmatch(r"[\w.-]+:[\w.-]+", model)
            else None,
        )
    return _fetched(name, model)


def _fetched(name: HubName, model: str) -> Path:
    """The local copy of what a name means."""
    if name.file is not None:
        return _gguf_file(name, name.file, model)
    if name.type is not None:
        return _gguf_file(name, _file_of_type(name, files_of(name), model), model)
    directory = download(name.repository, name.revision)
    if any(directory.glob("*.safetensors")):
        return directory
    files = files_of(name)
    models = _gguf_models(files)
    if len(models) == 1:
        return _gguf_file(name, models[0], model)
    if models:
        raise ModelNotFound(
            "this repository holds several GGUF files",
            where=model,
            found=_shown(models),
            do=f"Name a type, such as {name.repository}:Q4_K_M, or {name.repository}/FILE",
        )
    pickles = [file for file in files if file.endswith(PICKLES)]
    if pickles:
        raise CheckpointError(
            "this repository has pickle weights alone, which can run code when opened",
            where=model,
            found=_shown(pickles),
            do="Look for a copy in safetensors, or convert it once where you trust it: "
            "transformers' save_pretrained writes model.safetensors",
        )
    return directory


def _gguf_file(name: HubName, file: str, model: str) -> Path:
    """One GGUF file of a repository, with its other parts. Raises: ModelNotFound."""
    pattern = PART_NUMBER.sub(r"-*\1", file)
    local = download(name.repository, name.revision, [pattern], ignored=()) / file
    if not local.is_file():
        raise ModelNotFound("the repository has no such file", where=model)
    return local


def _gguf_models(files: Sequence[str]) -> list[str]:
    """GGUF models among a repository's files; a split one by its first part."""
    return sorted(
        file
        for file in files
        if file.lower().endswith(GGUF) and not LATER_PART.search(file) and not NO_MODEL.search(file)
    )


def _file_of_type(name: HubName, files: Sequence[str], model: str) -> str:
    """The only GGUF file whose name says this type. Raises: ModelNotFound."""
    type = re.compile(rf"(^|[-._/]){re.escape(str(name.type))}([-./]|$)", re.IGNORECASE)
    models = _gguf_models(files)
    matching = [file for file in models if type.search(file)]
    if len(matching) == 1:
        return matching[0]
    raise ModelNotFound(
        f"{'several files' if matching else 'no GGUF file'} of type {name.type}",
        where=model,
        expected=None if matching else "one of the types that the repository has",
        found=_shown(matching or models) or "no GGUF file",
        do=f"Name the file: {name.repository}/FILE",
    )


def _shown(files: Sequence[str]) -> str:
    more = len(files) - 12
    return ", ".join(files[:12]) + (f" and {more} more" if more > 0 else "")


def files_of(name: HubName) -> list[str]:
    """The files of a repository: of the hub, or of its local copy where that is out of reach."""
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        if not constants.HF_HUB_OFFLINE:
            return list(HfApi().list_repo_files(name.repository, revision=name.revision))
    except Exception as error:  # the library lets errors of its HTTP client through
        if getattr(error, "response", None) is not None:  # the hub's own answer
            raise _explained(error, str(name)) from error
    try:
        local = snapshot_download(name.repository, revision=name.revision, local_files_only=True)
    except Exception as error:
        raise _explained(error, str(name)) from error
    root = Path(local)
    return sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())


def download(
    repository: str,
    revision: str | None = None,
    wanted: Sequence[str] = tuple(WANTED),
    ignored: Sequence[str] = tuple(UNWANTED),
) -> Path:
    """A hub repository's files in the local cache. Raises: ModelNotFound, DoesNotFit."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[*wanted],
                ignore_patterns=[*ignored],
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
