"""Where a model named by the user lies: a local path, or a repository on the Hugging Face hub.

In: "path", "org/name" or "org/name@revision". Out: a local directory.
The hub's own environment applies (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE); only configuration,
safetensors and tokenizer files are fetched. Refuses names that are neither.
"""

from __future__ import annotations

import re
from pathlib import Path

from crumb.errors import ModelNotFound

PATTERNS = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "README.md"]
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def locate(model: str) -> Path:
    """The local directory of a model, downloaded first if it is a hub name.

    Raises: ModelNotFound, saying what was tried.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not HUB_NAME.fullmatch(model):
        raise ModelNotFound(
            "neither a model directory nor a hub name",
            where=model,
            expected="a directory with config.json, or org/name, or org/name@revision",
        )
    repository, _, revision = model.partition("@")
    return download(repository, revision or None)


def download(repository: str, revision: str | None = None) -> Path:
    """A hub repository's files in the local cache. Raises: ModelNotFound."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = repository if revision is None else f"{repository}@{revision}"
    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=PATTERNS)
        )
    except GatedRepoError as error:
        raise ModelNotFound(
            "this repository asks for permission",
            where=where,
            do="Accept its terms on the hub, then set HF_TOKEN",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound("the repository has no such revision", where=where) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFound(
            "no such directory, and no such repository on the hub",
            where=where,
            do="Check the name; a private repository needs HF_TOKEN",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelNotFound(
            "the hub could not be reached and the cache does not hold this model",
            where=where,
            do="Check the network, or HF_HUB_OFFLINE and HF_HOME",
        ) from error
