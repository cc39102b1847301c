"""The models that lie on this machine: size, bits, what was measured of them, whether they fit.

In: folders, the hub's cache. Out: one Listed for each model, largest first. Only headers are read.
Refuses nothing: a model that cannot be opened is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from crumb.checkpoints.crumb.manifest import read_manifest
from crumb.checkpoints.local_model import gguf_files
from crumb.checkpoints.opening import open_checkpoint
from crumb.embedded import MODELS
from crumb.errors import CrumbError, ModelNotFound
from crumb.files.model_files import CONFIGURATION
from crumb.fitting.candidates import as_it_lies
from crumb.machine.memory import available_bytes, resident_bytes
from crumb.run.load import engine_settings
from crumb.run.memory_plan import plan_memory, process_bytes


@dataclass(frozen=True)
class Listed:
    """One model."""

    name: str  # what `crumb` calls it by
    path: Path
    format: str | None = None  # of its blocks; of several, how many bits they come to
    file_bytes: int | None = None
    bits_per_weight: float | None = None
    kl: float | None = None  # nats, as its manifest has it
    memory_bytes: int | None = None  # at the usual context
    fits: bool | None = None
    problem: str | None = None  # why it cannot be opened


def list_models(folders: Iterable[Path]) -> list[Listed]:
    """Models of the folders, of the hub's cache and of the package; each path once.

    Raises: ModelNotFound for a folder that is not there.
    """
    folders = list(folders)
    for folder in folders:
        if not folder.is_dir():
            raise ModelNotFound("there is no such folder", where=folder)
    places: dict[Path, str] = {}
    for name, path in [*_in_folders(folders), *_in_cache(), *MODELS.items()]:
        places.setdefault(path.resolve(), name)
    resident = resident_bytes()
    listed = [_listed(name, path, resident) for path, name in places.items()]
    return sorted(listed, key=lambda model: (-(model.file_bytes or 0), model.name))


def _in_folders(folders: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Models in a folder or one below it; the folder may be one itself."""
    for folder in folders:
        with suppress(OSError):
            places = [folder, *sorted(each for each in folder.iterdir() if each.is_dir())]
            for place in places:
                if (place / CONFIGURATION).is_file() and any(place.glob("*.safetensors")):
                    yield str(place), place
                else:
                    yield from ((str(file), file) for file in gguf_files(place))


def _in_cache() -> Iterator[tuple[str, Path]]:
    """Models that were fetched from the hub, those that hold weights."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    with suppress(CacheNotFound):
        for repository in sorted(scan_cache_dir().repos, key=lambda each: each.repo_id):
            for revision in repository.revisions if repository.repo_type == "model" else ():
                name = repository.repo_id
                if "main" not in revision.refs:
                    name += f"@{min(revision.refs, default=revision.commit_hash)}"
                files = [file.file_path for file in revision.files]
                for file in sorted(files):
                    if file.suffix == ".gguf":
                        inside = file.relative_to(revision.snapshot_path)
                        yield f"{repository.repo_id}/{inside}", file
                if any(file.suffix == ".safetensors" for file in files):
                    yield name, Path(revision.snapshot_path)


def _listed(name: str, path: Path, resident: int) -> Listed:
    try:
        checkpoint = open_checkpoint(path)
        plan, lying = checkpoint.plan, as_it_lies(checkpoint)
        settings = engine_settings(plan)
        memory = replace(
            plan_memory(plan, lying.formats, lying.weights_bytes, settings, lying.orders),
            process_bytes=process_bytes(plan.vocabulary, resident, lambda: None),
        )
        measured = read_manifest(path)[0].measured
    except CrumbError as error:
        return Listed(name, path, problem=error.what)
    return Listed(
        name,
        path,
        lying.name,
        lying.file_bytes,
        8 * lying.file_bytes / plan.parameters(),
        None if measured is None else measured.kl,
        memory.total_bytes,
        memory.total_bytes <= available_bytes(),
    )
