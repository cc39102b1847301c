"""Write a Hugging Face directory: shards, index, config.json and what belongs to the tokenizer.

In: arrays whose bytes are fetched when their turn comes, a configuration, a model's files. Out: the
directory, put together beside its place and renamed. One array is in memory at a time; shards hold
at most SHARD_BYTES. Refuses an output that exists and is no empty directory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crumb.architectures.plan import Plan
from crumb.architectures.registry import families, plan_of
from crumb.checkpoints.huggingface.weight_files import INDEX, SINGLE
from crumb.checkpoints.latent_heads import heads_together
from crumb.checkpoints.safetensors import ArrayToWrite, encode_header, write_file
from crumb.checkpoints.stacked_experts import stacked_again
from crumb.checkpoints.transposed import turned_back
from crumb.errors import OutputConflict, UsageError
from crumb.files.atomic_directory import refuse_filled, take_place
from crumb.files.atomic_file import disk_errors, sync_directory, write_json, write_synced
from crumb.files.model_files import CONFIGURATION, TOKENIZER_FILES, ModelFiles

SHARD_BYTES = 4 << 30

AGAIN = "Free some space and run the same command again"


@dataclass(frozen=True)
class Part:
    """One array of a shard."""

    name: str
    array: ArrayToWrite
    metadata: Mapping[str, str] = field(default_factory=dict)  # what its file says of it


def write_model(
    target: Path,
    parts: Sequence[Part],
    configuration: Mapping[str, Any],
    files: ModelFiles,
    format: str,
) -> None:
    """All of a model into an empty directory. `format` is what the shards say they are."""
    plan = plan_of(configuration)
    if format == "pt":
        parts = _as_others_read(plan, parts)
    parts = [replace(part, array=turned_back(plan, part.name, part.array)) for part in parts]
    write_shards(target, parts, format)
    write_json(target / CONFIGURATION, configuration)
    for name in TOKENIZER_FILES:
        content = files.read(name)
        if content is not None:
            write_synced(target / name, content)


def _as_others_read(plan: Plan, parts: Sequence[Part]) -> list[Part]:
    """Parts as the family's own files have them: stacks of experts, one matrix for all heads."""
    family = families()[plan.family]
    arrays = stacked_again(family, plan, {part.name: part.array for part in parts})
    return [Part(name, array) for name, array in heads_together(family, plan, arrays).items()]


@dataclass(frozen=True)
class Shard:
    """One weight file before it is written."""

    name: str
    arrays: Mapping[str, ArrayToWrite]
    metadata: Mapping[str, str]

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        arrays = sum(array.size_bytes for array in self.arrays.values())
        return len(encode_header(self.arrays, self.metadata)) + arrays


def plan_shards(parts: Sequence[Part], format: str) -> list[Shard]:
    """The weight files of some parts: at most SHARD_BYTES of arrays in each."""
    shards: list[list[Part]] = [[]]
    filled = 0
    for part in parts:
        if filled and filled + part.array.size_bytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(part)
        filled += part.array.size_bytes
    planned = []
    for index, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{index:05}-of-{len(shards):05}.safetensors"
        # Small tensors have any size: behind them a matrix could begin at any byte.
        shard.sort(key=lambda part: not part.metadata)
        metadata = {"format": format}
        for part in shard:
            metadata |= part.metadata
        planned.append(Shard(name, {part.name: part.array for part in shard}, metadata))
    return planned


def write_shards(target: Path, parts: Sequence[Part], format: str) -> None:
    """Shards of at most SHARD_BYTES, and an index where there are several."""
    shards = plan_shards(parts, format)
    weight_map: dict[str, str] = {}
    for shard in shards:
        write_file(target / shard.name, shard.arrays, shard.metadata)
        weight_map |= dict.fromkeys(shard.arrays, shard.name)
    if len(shards) > 1:
        write_json(target / INDEX, {"metadata": {}, "weight_map": weight_map})


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """An empty directory beside `out`, which becomes `out` if all goes well and is gone if not.

    Raises: UsageError for a path without a name, OutputConflict where something is in `out`,
    DoesNotFit when the disk is full.
    """
    if out.name in ("", ".."):
        raise UsageError(
            "the output needs a name of its own", where=repr(str(out)), do="Choose another --out"
        )
    with disk_errors(out, do=AGAIN):
        partial = out.with_name(out.name + ".partial")
        refuse_filled(out)
        partial.parent.mkdir(parents=True, exist_ok=True)
        _claim(partial)
        try:
            yield partial
            sync_directory(partial)
            refuse_filled(out)
            take_place(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _claim(partial: Path) -> None:
    """Make the directory, for this process alone. Raises: OutputConflict."""
    try:
        partial.mkdir()
    except FileExistsError as error:
        raise OutputConflict(
            "another run is at work here, or was killed",
            where=partial,
            do="Wait for it, or remove this directory, or choose another --out",
        ) from error


def refuse_existing(*paths: Path) -> None:
    """Refuse to write over anything. Raises: OutputConflict."""
    for path in paths:
        if path.exists() or path.is_symlink():
            raise OutputConflict(
                "the output exists and will not be replaced", where=path, do="Choose another --out"
            )
