"""The workspace of a quantization: finished tensors on disk before the next begins.

In: an output directory and the job's key. Out: stored tensors, or the ones an earlier run left.
Lies beside the output as `<out>.partial`: job.json, tensors/ (one file each), model/ (assembled,
then renamed to the output). A damaged tensor counts as unfinished. Refuses another job's directory,
one that crumb did not make, and a second process at work there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from crumb.checkpoints.crumb.reader import (
    COLUMN_WEIGHTS,
    COLUMNS,
    MANIFEST,
    TILES,
    matrix_metadata,
    packed_entry,
    with_columns,
)
from crumb.checkpoints.safetensors import array_in_memory, read_header, write_file
from crumb.checkpoints.tensor_map import StoredPacked
from crumb.errors import CrumbError, OutputConflict, UsageError
from crumb.files.atomic_directory import is_free, take_place
from crumb.files.atomic_file import disk_errors, sync_directory, write_json
from crumb.files.model_files import read_json
from crumb.formats.packed_tensor import PackedTensor

JOB, GRADIENTS = "job.json", "gradients"


@dataclass(frozen=True)
class FinishedTensor:
    """One stored tensor and what the manifest will say of it."""

    entry: StoredPacked
    record: dict[str, Any]


@dataclass(frozen=True)
class Workspace:
    """Where one job keeps its finished work."""

    out: Path
    partial: Path
    key: dict[str, Any]

    @property
    def gradients(self) -> Path:
        """The folder of the pass that weighs the calibration tokens."""
        return self.partial / GRADIENTS

    def finished(self, name: str) -> FinishedTensor | None:
        """A tensor that an earlier run stored; None if there is none, or it is damaged."""
        try:
            arrays, metadata = read_header(self._tensor_path(name))
            record = msgspec.json.decode(metadata["record"], type=dict[str, Any])
            entry = packed_entry(metadata["format"], arrays[TILES], name)
            entry = with_columns(entry, arrays, name)
        except (CrumbError, msgspec.MsgspecError, LookupError):
            return None
        return FinishedTensor(entry, record)

    def stored_bytes(self) -> int:
        """Size of the finished tensors on disk."""
        return sum(path.stat().st_size for path in _finished_files(self.partial))

    def store(self, name: str, tensor: PackedTensor, record: dict[str, Any]) -> None:
        """Put a finished tensor on disk: synced under a temporary name, then renamed."""
        metadata = {
            "name": name,
            "format": matrix_metadata(tensor.format, (tensor.out_features, tensor.in_features)),
            "record": msgspec.json.encode(record).decode(),
        }
        arrays = {TILES: array_in_memory(tensor.tiles)}
        if tensor.columns is not None:
            arrays[COLUMN_WEIGHTS] = array_in_memory(tensor.columns.tiles)
            arrays[COLUMNS] = array_in_memory(tensor.columns.places)
        write_file(self._tensor_path(name), arrays, metadata)

    def _tensor_path(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        return self.partial / "tensors" / f"{digest}.safetensors"

    def publish(self) -> None:
        """Turn the assembled model into the output directory, then drop the workspace."""
        sync_directory(self.partial / "model")
        shutil.rmtree(self.partial / "replaced", ignore_errors=True)
        if not is_free(self.out):
            self.out.rename(self.partial / "replaced")
        take_place(self.partial / "model", self.out)
        shutil.rmtree(self.partial)


def published_key(out: Path) -> dict[str, Any] | None:
    """The key of the job that made an output directory; None if it is absent or another's."""
    path = out / MANIFEST
    if not path.exists():
        return None
    job = read_json(path).get("job")
    return job if isinstance(job, dict) and "crumb" in job else None


@contextmanager
def open_workspace(out: Path, key: dict[str, Any], restart: bool) -> Iterator[Workspace | None]:
    """The workspace of a job, locked; None when the output already holds exactly this job.

    restart replaces another job's workspace, and its output once this job is done. A failure
    leaves finished tensors behind, or nothing when there are none.

    Raises: UsageError for a path without a name, OutputConflict for another job's directory,
    DoesNotFit when the disk is full.
    """
    if out.name in ("", ".."):
        raise UsageError(
            "the output needs a name of its own", where=repr(str(out)), do="Choose another --out"
        )
    beside = out.with_name(out.name + ".partial")
    with disk_errors(out):
        done = _is_done(out, key, restart)
        if done and not beside.exists():
            yield None
            return
        with _locked(beside, out):
            if _is_done(out, key, restart):  # another process may have finished meanwhile
                shutil.rmtree(beside, ignore_errors=True)
                yield None
                return
            try:
                _claim(beside, key, restart)
                yield Workspace(out, beside, key)
            except BaseException as error:
                _tidy(beside, failed=isinstance(error, CrumbError))
                raise


def _is_done(out: Path, key: dict[str, Any], restart: bool) -> bool:
    """Whether the output holds this job already. Raises: OutputConflict for anything else there."""
    if is_free(out):
        return False
    earlier = published_key(out)
    if earlier is None:
        raise OutputConflict(
            "the output exists and was not made by crumb, so it will not be replaced",
            where=out,
            do="Choose another --out",
        )
    if restart:
        return False
    if earlier != key:
        raise _other_work("the output holds the work of a different command", out, earlier, key)
    return True


@contextmanager
def _locked(beside: Path, out: Path) -> Iterator[None]:
    """The workspace's folder, held by this process alone. Raises: OutputConflict."""
    beside.mkdir(parents=True, exist_ok=True)
    with (beside / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A process that has just finished took the folder away, and the lock with it.
            held = os.path.samestat(os.fstat(lock.fileno()), (beside / "lock").stat())
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            raise OutputConflict("another process is quantizing here", where=out)
        yield


def _tidy(beside: Path, failed: bool) -> None:
    """Keep finished work, drop the rest. Weights of tokens alone are no use to what failed."""
    shutil.rmtree(beside / "model", ignore_errors=True)
    work = [path for path in _finished_files(beside) if not failed or path.suffix != ".npy"]
    if not work:
        shutil.rmtree(beside, ignore_errors=True)


def _finished_files(beside: Path) -> list[Path]:
    return [*(beside / "tensors").glob("*.safetensors"), *(beside / GRADIENTS).glob("*.npy")]


def _claim(beside: Path, key: dict[str, Any], restart: bool) -> None:
    """Take over the workspace's earlier work if it is this job's; same job, same bytes."""
    earlier = _claimed_key(beside)
    if earlier != key:
        if not restart and _finished_files(beside):
            what = "unfinished work of a different command lies here"
            raise _other_work(what, beside, earlier, key)
        for folder in ("tensors", GRADIENTS):
            shutil.rmtree(beside / folder, ignore_errors=True)
        write_json(beside / JOB, key)
    shutil.rmtree(beside / "model", ignore_errors=True)
    for unfinished in (beside / "tensors").glob("*.tmp"):
        unfinished.unlink()
    (beside / "tensors").mkdir(exist_ok=True)
    (beside / "model").mkdir()


def _claimed_key(beside: Path) -> dict[str, Any]:
    """The key of the job whose work lies here; empty where none says so."""
    try:
        return read_json(beside / JOB)
    except CrumbError:
        return {}


def _other_work(
    what: str, where: Path, earlier: Mapping[str, Any], key: Mapping[str, Any]
) -> OutputConflict:
    old, new = _flat(earlier), _flat(key)
    changed = sorted(word for word in {*old, *new} if old.get(word) != new.get(word))
    return OutputConflict(
        what,
        where=where,
        expected=", ".join(f"{word} {_short(new.get(word))}" for word in changed),
        found=", ".join(f"{word} {_short(old.get(word))}" for word in changed),
        do="Choose another --out, or --restart to discard that work",
    )


def _flat(key: Mapping[str, Any]) -> dict[str, Any]:
    """A job's key with the settings inside it under dotted names."""
    flat: dict[str, Any] = {}
    for word, value in key.items():
        if isinstance(value, dict):
            flat |= {f"{word}.{inner}": setting for inner, setting in value.items()}
        else:
            flat[word] = value
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "…"
