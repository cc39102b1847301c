"""The files beside a model's weights: configuration, tokenizer, chat template.

In: a directory, or files that a container reader made of its metadata. Out: bytes or JSON objects
by the name they have in a Hugging Face directory.
Refuses files that cannot be read and JSON that is no object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec

from crumb.errors import CheckpointError, ModelNotFound
from crumb.files.read_errors import read_errors

CONFIGURATION = "config.json"

WORLD_FILE = "rwkv_vocab_v20230424.txt"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    WORLD_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""What belongs to a tokenizer and travels with a quantized model."""


class ModelFiles(Protocol):
    """Files by name."""

    @property
    def path(self) -> Path:
        """Where they come from, for messages."""

    def read(self, name: str) -> bytes | None:
        """A file's content, None where there is no such file. Raises: CheckpointError."""


@dataclass(frozen=True)
class DirectoryFiles:
    """The files of a model directory."""

    path: Path

    def read(self, name: str) -> bytes | None:
        """A file's content, None where there is no such file. Raises: CheckpointError."""
        with read_errors(self.path / name), suppress(FileNotFoundError):
            return (self.path / name).read_bytes()
        return None


@dataclass(frozen=True)
class MadeFiles:
    """Files that a container reader made."""

    path: Path
    contents: Mapping[str, bytes]
    make: Callable[[], Mapping[str, bytes]] = dict  # the others, made when one is asked for

    @cached_property
    def _others(self) -> Mapping[str, bytes]:
        return self.make()

    def read(self, name: str) -> bytes | None:
        """A file's content, None where there is no such file. Raises: CheckpointError."""
        content = self.contents.get(name)
        return self._others.get(name) if content is None else content


def parse_json(raw: bytes, where: Path) -> dict[str, Any]:
    """A JSON object. Raises: CheckpointError."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"cannot be read as JSON: {error}", where=where) from error
    if not isinstance(value, dict):
        raise CheckpointError("not a JSON object", where=where, found=type(value).__name__)
    return value


def needed_json(files: ModelFiles, name: str) -> dict[str, Any]:
    """A JSON object from a file. Raises: ModelNotFound, CheckpointError."""
    raw = files.read(name)
    if raw is None:
        raise ModelNotFound(
            "this is no model directory: a file is missing", where=files.path / name
        )
    return parse_json(raw, files.path / name)


def optional_json(files: ModelFiles, name: str) -> dict[str, Any]:
    """A JSON object from a file, without its null entries; empty when there is no file.

    Raises: CheckpointError.
    """
    raw = files.read(name)
    content = {} if raw is None else parse_json(raw, files.path / name)
    return {key: value for key, value in content.items() if value is not None}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises: ModelNotFound, CheckpointError."""
    return needed_json(DirectoryFiles(path.parent), path.name)
