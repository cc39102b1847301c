"""Which files of a Hugging Face directory hold its weights.

In: a directory. Out: its safetensors files: one, those that the index names, or all the shards of
a set without an index.
Refuses pickles, adapters, shards that are missing or lie elsewhere, and directories with neither.
"""

from __future__ import annotations

import re
from pathlib import Path

from crumb.errors import CheckpointError, CrumbError, ModelNotFound
from crumb.files.model_files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
LEGACY_WEIGHTS = "gptq_model-*bit-*.safetensors"
"""What the first GPTQ tools called a model's only file."""

ADAPTER = "adapter_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def weight_files(path: Path) -> tuple[Path, ...]:
    """The files. Raises: CheckpointError, ModelNotFound."""
    if (path / SINGLE).exists():
        return (path / SINGLE,)
    if (path / INDEX).exists():
        return _indexed_files(path / INDEX)
    shards = _unindexed_shards(path)
    if shards:
        return shards
    legacy = sorted(path.glob(LEGACY_WEIGHTS))
    if len(legacy) == 1:
        return (legacy[0],)
    raise _no_weights(path)


def _no_weights(path: Path) -> CrumbError:
    pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    if (path / ADAPTER).exists():
        return CheckpointError(
            "an adapter is no model of its own",
            where=path / ADAPTER,
            do="Merge it into its base model where you have both: peft's merge_and_unload, then "
            "save_pretrained",
        )
    if pickles:
        return CheckpointError(
            "pickle weights can run code when opened and are refused",
            where=path / pickles[0],
            do="Convert them once where you trust them: "
            "transformers' save_pretrained writes model.safetensors",
        )
    others = sorted(file.name for file in path.glob("*.safetensors"))
    return ModelNotFound(
        "no weights in this directory",
        where=path,
        expected=f"{SINGLE} or {INDEX}",
        found=", ".join(others)[:200] or None,
        do=f"If this file is the model, name it {SINGLE}" if len(others) == 1 else None,
    )


def _unindexed_shards(path: Path) -> tuple[Path, ...]:
    """Shards whose own names say which they are. Raises: CheckpointError where one is missing."""
    named = {file: SHARD.fullmatch(file.name) for file in sorted(path.glob("*.safetensors"))}
    sets = {(match[1], int(match[3])) for match in named.values() if match is not None}
    if not sets:
        return ()
    if len(sets) > 1:
        raise CheckpointError(
            "shards of several models without an index",
            where=path,
            expected=INDEX,
            found=", ".join(sorted(f"{stem} of {count}" for stem, count in sets))[:200],
        )
    ((stem, count),) = sets
    there = [file for file, match in named.items() if match is not None]
    numbers = {int(match[2]) for match in named.values() if match is not None}
    missing = sorted(set(range(1, min(count, len(there) + 1) + 1)) - numbers)
    if missing or len(there) != count:
        raise CheckpointError(
            "a shard is missing, and there is no index",
            where=path,
            expected=f"{stem}-{(missing or [count])[0]:05}-of-{count:05}.safetensors",
            found=f"{len(there)} of {count} shards",
            do="Download the missing shard",
        )
    return tuple(there)


def _is_file(path: Path) -> bool:
    """Whether a file is there; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _indexed_files(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index has no weight_map", where=index)
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not _is_file(index.parent / name):
            raise CheckpointError(
                "the index names a shard that is not in this directory",
                where=index,
                expected="a file beside the index",
                found=repr(name[:120]),
                do="Download the missing shard",
            )
    return tuple(index.parent / name for name in names)
