"""The outline of a model on the hub: everything but its weights, fetched before any weight is.

In: a name of the hub, an empty folder. Out: a directory, or GGUF files, that the readers open:
configuration and tokenizer, and weight files as long as the real ones, made of their headers and
of holes. Headers come by range reads. Refuses what the hub and the readers refuse.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from crumb.checkpoints.gguf.container import read_gguf_header
from crumb.checkpoints.gguf.header import HeaderBytes
from crumb.checkpoints.gguf.rope_scaling import FACTOR_TENSORS
from crumb.checkpoints.huggingface.hub import (
    UNWANTED,
    WANTED,
    all_parts,
    download,
    file_of_type,
    gguf_models,
    refuse_pickles,
)
from crumb.checkpoints.huggingface.hub_files import HubFile, hub_files, read_range
from crumb.checkpoints.huggingface.hub_name import HubName
from crumb.checkpoints.huggingface.weight_files import weight_files
from crumb.checkpoints.safetensors import LARGEST_HEADER_BYTES, StoredArray, read_header
from crumb.errors import ModelNotFound

BESIDE_WEIGHTS = [pattern for pattern in WANTED if pattern != "*.safetensors"]

DECIDING = (".weight_shape", ".order")
"""Endings of small arrays that readers look into when they open a model."""

READ_BYTES = 1 << 17
"""What is asked of the hub at once, at least: most headers in one piece."""

TOGETHER = 8
"""Requests at a time."""


@dataclass(frozen=True)
class Outline:
    """What the readers open in place of a model, and what else its repository offers."""

    path: Path  # a directory or a GGUF file
    others: Mapping[str, int] = field(default_factory=dict)  # other GGUF models -> their bytes


def outline(name: HubName, model: str, folder: Path) -> Outline | None:
    """Put a model's outline into a folder; None where the hub is out of reach.

    Raises: ModelNotFound, CheckpointError.
    """
    files = hub_files(name)
    if files is None:
        return None
    models = gguf_models(list(files))
    if name.file is not None or name.type is not None:
        chosen = name.file or file_of_type(name, list(files), model)
        if chosen not in files:
            raise ModelNotFound("the repository has no such file", where=model)
        return Outline(_gguf_outline(name, chosen, files, folder))
    weights = [file for file in files if _is_weights(file)]
    if not weights and models:
        first = _gguf_outline(name, models[0], files, folder)
        others = {each: sum(file.size_bytes for file in _parts(each, files)) for each in models[1:]}
        return Outline(first, others)
    if not weights:
        refuse_pickles(list(files), model)
    snapshot = download(name.repository, name.revision, BESIDE_WEIGHTS)
    for file in snapshot.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (folder / file.name).symlink_to(file.resolve())
    _together(_safetensors_outline, [(name, files[each], folder / each) for each in weights])
    for path in weight_files(folder):
        arrays, _ = read_header(path)
        deciding = [array for key, array in arrays.items() if key.endswith(DECIDING)]
        _fill(name, files[path.name], deciding)
    return Outline(folder)


def _is_weights(file: str) -> bool:
    """Whether a download would fetch it for its weights."""
    return Path(file).match("*.safetensors") and not any(map(Path(file).match, UNWANTED))


def _parts(first: str, files: Mapping[str, HubFile]) -> list[HubFile]:
    return [file for name, file in files.items() if fnmatchcase(name, all_parts(first))]


def _gguf_outline(name: HubName, chosen: str, files: Mapping[str, HubFile], folder: Path) -> Path:
    parts = _parts(chosen, files)
    _together(_gguf_part, [(name, part, folder / Path(part.name).name) for part in parts])
    return folder / Path(chosen).name


def _together(run: Any, arguments: Iterable[tuple[Any, ...]]) -> None:
    """Run a function on each of some arguments, some at a time. Raises: the first error."""
    with ThreadPoolExecutor(TOGETHER) as pool:
        for done in [pool.submit(run, *each) for each in arguments]:
            done.result()


def _safetensors_outline(name: HubName, file: HubFile, path: Path) -> None:
    with _copied(name, file, path) as copy:
        length = int.from_bytes(copy.read(8), "little")
        if length <= min(file.size_bytes, LARGEST_HEADER_BYTES):  # else the reader refuses it
            copy.read(length)


def _gguf_part(name: HubName, file: HubFile, path: Path) -> None:
    with _copied(name, file, path) as copy:
        read = read_gguf_header(HeaderBytes(path, copy, file.size_bytes))
    _fill(name, file, [read.tensors[each].raw for each in FACTOR_TENSORS if each in read.tensors])


def _fill(name: HubName, file: HubFile, arrays: Iterable[StoredArray]) -> None:
    """Fetch some arrays of a file into its outline."""

    def fill(array: StoredArray) -> None:
        begin, end = array.offset_bytes, array.offset_bytes + array.size_bytes
        with array.path.open("r+b") as copy:
            copy.seek(begin)
            copy.write(read_range(name, file, begin, end))

    _together(fill, [(array,) for array in arrays if array.size_bytes])


def _copied(name: HubName, file: HubFile, path: Path) -> BinaryIO:
    """A file of the hub to read from; what is read lies in the path afterwards, the rest holes."""
    path.touch()
    os.truncate(path, file.size_bytes)
    return io.BufferedReader(_RemoteFile(name, file, path), READ_BYTES)


class _RemoteFile(io.RawIOBase):
    """A file of the hub, read by ranges that are copied to a local one."""

    def __init__(self, name: HubName, file: HubFile, path: Path) -> None:
        self._name, self._file, self._path, self._at = name, file, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._file.size_bytes)
        if end <= self._at:
            return 0
        content = read_range(self._name, self._file, self._at, end)
        with self._path.open("r+b") as copy:
            copy.seek(self._at)
            copy.write(content)
        buffer[: len(content)] = content
        self._at = end
        return len(content)
