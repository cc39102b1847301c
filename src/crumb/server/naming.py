"""The models that a server is started with: words of the command line -> served models.

In: models, names for them, a directory of models. Out: ServedModels in the order they were named.
Refuses two models of one name. Of a directory, what cannot be opened is told and left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from crumb.checkpoints.local_model import gguf_files
from crumb.errors import ModelNotFound, UsageError
from crumb.files.model_files import CONFIGURATION


def model_name(word: str) -> str:
    """The name of a model that was given none: a hub name as it is, a path's last part."""
    path = Path(word)
    if not path.exists():
        return word
    resolved = path.resolve()
    return resolved.stem if resolved.suffix.lower() == ".gguf" else resolved.name


def named_models(words: Iterable[str], pairs: Iterable[str]) -> Mapping[str, str]:
    """Name -> where its model is. Raises: UsageError for a name twice, or none."""
    named: dict[str, str] = {}
    for word in (*words, *pairs):
        name, equals, where = word.partition("=")
        is_pair = bool(equals) and not Path(word).exists()
        name, where = (name, where) if is_pair else (model_name(word), word)
        if not name or not where:
            raise UsageError("a model has a name and a place", found=word, expected="NAME=MODEL")
        if name in named:
            raise UsageError(
                "two models of one name", found=name, do="Give each one: --model NAME=MODEL"
            )
        named[name] = where
    return named


def models_in(directory: Path) -> Mapping[str, str]:
    """The models of a directory: its GGUF files and its model directories.

    Raises: ModelNotFound where there are none.
    """
    if not directory.is_dir():
        raise ModelNotFound("no such directory of models", where=directory)
    inside = sorted(path for path in directory.iterdir() if path.is_dir())
    directories = [path for path in inside if (path / CONFIGURATION).is_file() or gguf_files(path)]
    models = {path.stem: str(path) for path in gguf_files(directory)}
    models |= {path.name: str(path) for path in directories}
    if not models:
        raise ModelNotFound(
            "no models in this directory", where=directory, expected="GGUF files or directories"
        )
    return models
