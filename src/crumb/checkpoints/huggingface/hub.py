"""Where a model lies: a local path, inside this package, or a repository on the Hugging Face hub.

In: a path, "novella-7m", or what hub_name.py reads. Out: a local directory or GGUF file.
The hub's own environment applies (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE); only the configuration,
safetensors and tokenizer files at the top of a repository are fetched, or one GGUF file with its
other parts. What is there wins over a hub name. Refuses names that are neither.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from crumb.checkpoints.huggingface.hub_files import explained, file_names
from crumb.checkpoints.huggingface.hub_name import GGUF, HubName, parse_hub_name
from crumb.checkpoints.local_model import model_at
from crumb.embedded import MODELS
from crumb.errors import CheckpointError, ModelNotFound

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
    local = local_path(model)
    return _fetched(needed_hub_name(model), model) if local is None else local


def local_path(model: str) -> Path | None:
    """Where a model lies on this machine under this very name; None for a name of the hub.

    Raises: ModelNotFound, CheckpointError.
    """
    try:
        path = Path(model).expanduser()
        exists = bool(model) and path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, not permitted, no such user
        reason = getattr(error, "strerror", None) or error
        raise ModelNotFound(f"cannot be a path: {reason}", where=repr(model[:200])) from error
    return model_at(path) if exists else MODELS.get(model)


def needed_hub_name(model: str) -> HubName:
    """What a name means on the hub. Raises: ModelNotFound for what is no name."""
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
    return name


def _fetched(name: HubName, model: str) -> Path:
    """The local copy of what a name means."""
    if name.file is not None:
        return _gguf_file(name, name.file, model)
    if name.type is not None:
        return _gguf_file(name, file_of_type(name, file_names(name), model), model)
    directory = download(name.repository, name.revision)
    if any(directory.glob("*.safetensors")):
        return directory
    files = file_names(name)
    models = gguf_models(files)
    if len(models) == 1:
        return _gguf_file(name, models[0], model)
    if models:
        raise ModelNotFound(
            "this repository holds several GGUF files",
            where=model,
            found=shown_files(models),
            do=f"Name a type, such as {name.repository}:Q4_K_M, or {name.repository}/FILE",
        )
    refuse_pickles(files, model)
    return directory


def refuse_pickles(files: Sequence[str], model: str) -> None:
    """Of a repository without other weights. Raises: CheckpointError where there are any."""
    pickles = [file for file in files if file.endswith(PICKLES)]
    if pickles:
        raise CheckpointError(
            "this repository has pickle weights alone, which can run code when opened",
            where=model,
            found=shown_files(pickles),
            do="Look for a copy in safetensors, or convert it once where you trust it: "
            "transformers' save_pretrained writes model.safetensors",
        )


def _gguf_file(name: HubName, file: str, model: str) -> Path:
    """One GGUF file of a repository, with its other parts. Raises: ModelNotFound."""
    pattern = all_parts(file)
    local = download(name.repository, name.revision, [pattern], ignored=()) / file
    if not local.is_file():
        raise ModelNotFound("the repository has no such file", where=model)
    return local


def all_parts(file: str) -> str:
    """The pattern that a GGUF file and its other parts match."""
    return PART_NUMBER.sub(r"-*\1", file)


def gguf_models(files: Sequence[str]) -> list[str]:
    """GGUF models among a repository's files; a split one by its first part."""
    return sorted(
        file
        for file in files
        if file.lower().endswith(GGUF) and not LATER_PART.search(file) and not NO_MODEL.search(file)
    )


def file_of_type(name: HubName, files: Sequence[str], model: str) -> str:
    """The only GGUF file whose name says this type. Raises: ModelNotFound."""
    type = re.compile(rf"(^|[-._/]){re.escape(str(name.type))}([-./]|$)", re.IGNORECASE)
    models = gguf_models(files)
    matching = [file for file in models if type.search(file)]
    if len(matching) == 1:
        return matching[0]
    raise ModelNotFound(
        f"{'several files' if matching else 'no GGUF file'} of type {name.type}",
        where=model,
        expected=None if matching else "one of the types that the repository has",
        found=shown_files(matching or models) or "no GGUF file",
        do=f"Name the file: {name.repository}/FILE",
    )


def shown_files(files: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = len(files) - 12
    return ", ".join(files[:12]) + (f" and {more} more" if more > 0 else "")


def download(
    repository: str,
    revision: str | None = None,
    patterns: Sequence[str] = tuple(WANTED),
    ignored: Sequence[str] = tuple(UNWANTED),
) -> Path:
    """A hub repository's files in the local cache. Raises: ModelNotFound, DoesNotFit."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[*patterns],
                ignore_patterns=[*ignored],
            )
        )
    except Exception as error:  # the hub's library lets errors of its HTTP client through
        where = repository if revision is None else f"{repository}@{revision}"
        raise explained(error, where) from error
