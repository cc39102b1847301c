"""A format for each matrix within a budget: exact bytes, and the least loss that fits into them.

In: an opened checkpoint, what each format of each matrix costs, a Budget. Out: a FormatPlan, which
is a file too. Memory is that of the engine's own dry run, bytes are those of the files it reads.
Refuses budgets that the smallest formats do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from crumb.architectures.plan import Plan
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.errors import CheckpointError, DoesNotFit, UsageError
from crumb.files.atomic_file import write_json
from crumb.files.model_files import read_json
from crumb.fitting.candidates import directory_bytes
from crumb.fitting.quantize_cost import packed_bytes
from crumb.fitting.sensitivity import Losses, possible, reached
from crumb.formats.catalog import Format, parse_format
from crumb.formats.packed_tensor import stored_shape
from crumb.operations.operation import TensorSpec
from crumb.requests.budget import Budget
from crumb.run.load import engine_settings
from crumb.run.memory_plan import CacheKind, chosen_kind, plan_memory, process_bytes
from crumb.solve.allocate import Allocation, Menu, Offer, allocate
from crumb.tokenizer.tokenizer import load_tokenizer

ROUNDS = 8
"""Times that what an allocation takes beside its matrices is measured anew."""

Size = Callable[[Mapping[str, Format]], int]
"""What formats take of the budget, all that lies beside the matrices included."""


class PlannedMatrix(msgspec.Struct, frozen=True):
    """One matrix."""

    tensor: str
    format: str
    size_bytes: int
    loss: float | None  # nats for each token; None of a format that was not asked about


class FormatPlan(msgspec.Struct, frozen=True):
    """What a budget came to."""

    budget: Budget
    matrices: tuple[PlannedMatrix, ...]
    file_bytes: int  # of the weight files
    bits_per_weight: float  # of the weight files, over all parameters
    memory_bytes: int | None  # with the budget's context; None where it asks for files
    expected_kl: float  # nats: the losses of all matrices together
    key: dict[str, object]  # of the source and of the pass behind the losses

    @property
    def formats(self) -> dict[str, Format]:
        """By tensor name."""
        return {each.tensor: parse_format(each.format) for each in self.matrices}

    def record(self) -> dict[str, Any]:
        """What a manifest says of it; its matrices are there anyway."""
        said = {name: value for name, value in asdict(self.budget).items() if value is not None}
        return {"budget": said, "expected_kl": self.expected_kl, "memory_bytes": self.memory_bytes}


def plan_formats(
    checkpoint: Checkpoint,
    losses: Losses,
    budget: Budget,
    asked: Mapping[str, Format | None],
    resident_bytes: int,
    key: dict[str, object],
) -> FormatPlan:
    """The formats of least loss. `asked`: of matrices whose format is decided; None: float.

    `resident_bytes`: of a process without a model. Raises: DoesNotFit, UsageError.
    """
    plan = checkpoint.plan
    menus = menus_of(plan, losses, asked)
    size, limit = _size(checkpoint, budget, resident_bytes)
    allocation = _within(menus, size, limit, checkpoint.path)
    formats = _formats(menus, allocation)
    file_bytes = directory_bytes(checkpoint, formats)
    return FormatPlan(
        budget,
        tuple(
            PlannedMatrix(
                menu.name,
                offer.name,
                offer.size_bytes,
                losses.get(menu.name, {}).get(offer.name),
            )
            for menu, offer in zip(menus, allocation.offers, strict=True)
        ),
        file_bytes,
        8 * file_bytes / plan.parameters(),
        size(formats) if budget.memory_bytes is not None else None,
        allocation.loss,
        key,
    )


def check_budget(
    checkpoint: Checkpoint,
    budget: Budget,
    asked: Mapping[str, Format | None],
    resident_bytes: int,
) -> None:
    """Refuse a budget that the smallest formats exceed, before any loss is known.

    Raises: DoesNotFit.
    """
    plan, names = checkpoint.plan, reached(checkpoint.plan)
    unknown = {
        spec.name: dict.fromkeys((each.name for each in possible(spec)), 0.0)
        for spec in plan.tensors()
        if spec.name in names
    }
    size, limit = _size(checkpoint, budget, resident_bytes)
    _smallest(menus_of(plan, unknown, asked), size, limit, checkpoint.path)


def menus_of(plan: Plan, losses: Losses, asked: Mapping[str, Format | None]) -> list[Menu]:
    """What each matrix may have; of one whose format is decided that alone."""
    menus = []
    for spec in {spec.name: spec for spec in plan.tensors()}.values():
        of_formats = losses.get(spec.name, {})
        if spec.name in asked:
            format = asked[spec.name]
            names = [] if format is None else [format.name]
        else:
            names = list(of_formats)
        if names:
            offers = (_offer(spec, name, of_formats.get(name, 0.0)) for name in names)
            menus.append(Menu(spec.name, tuple(offers)))
    return menus


def _offer(spec: TensorSpec, name: str, loss: float) -> Offer:
    rows, columns = spec.shape
    return Offer(name, prod(stored_shape(parse_format(name), rows, columns)), loss)


def _formats(menus: list[Menu], allocation: Allocation) -> dict[str, Format]:
    pairs = zip(menus, allocation.offers, strict=True)
    return {menu.name: parse_format(offer.name) for menu, offer in pairs}


def _size(checkpoint: Checkpoint, budget: Budget, resident_bytes: int) -> tuple[Size, int]:
    """What formats take, and how much they may."""
    plan, entry = checkpoint.plan, checkpoint.tensors.entry
    if budget.memory_bytes is None:
        limit = budget.file_bytes
        if limit is None:
            assert budget.bits_per_weight is not None, "one of the three"
            limit = int(budget.bits_per_weight * plan.parameters() / 8)
        return (lambda formats: directory_bytes(checkpoint, formats)), limit
    cache = chosen_kind(CacheKind, budget.cache, "cache")
    settings = engine_settings(plan, budget.context_tokens, budget.parallel, cache)
    process = process_bytes(
        plan.vocabulary, resident_bytes, lambda: load_tokenizer(checkpoint.files)
    )

    def memory(formats: Mapping[str, Format]) -> int:
        floats = [spec.name for spec in plan.tensors() if spec.name not in formats]
        weights = packed_bytes(plan, formats) + sum(entry(name).used_bytes for name in floats)
        return process + plan_memory(plan, formats, weights, settings).total_bytes

    return memory, budget.memory_bytes


def _smallest(menus: list[Menu], size: Size, limit: int, where: Path) -> tuple[Allocation, int]:
    """The smallest formats, and what all takes with them. Raises: DoesNotFit."""
    smallest = Allocation(
        tuple(min(menu.offers, key=lambda each: each.size_bytes) for menu in menus)
    )
    least = size(_formats(menus, smallest))
    if least > limit:
        raise DoesNotFit(
            "nothing fits this budget",
            where=where,
            expected=f"{least / 1e6:.2f} MB at least",
            found=f"{limit / 1e6:.2f} MB",
            do="Give more, ask for a shorter context or --cache int8, or take a smaller model",
        )
    return smallest, least


def _within(menus: list[Menu], size: Size, limit: int, where: Path) -> Allocation:
    """The allocation whose whole size is within the limit. Raises: DoesNotFit."""
    smallest, least = _smallest(menus, size, limit, where)
    beside = least - smallest.size_bytes
    allocation = smallest
    for _ in range(ROUNDS):
        allocation = allocate(menus, max(limit - beside, smallest.size_bytes))
        excess = size(_formats(menus, allocation)) - limit
        if excess <= 0:
            return allocation
        beside += excess
    return smallest


def write_plan(path: Path, plan: FormatPlan) -> None:
    """The file of a plan."""
    write_json(path, plan)


def read_plan(path: Path) -> FormatPlan:
    """The plan of a file. Raises: UsageError where there is none, CheckpointError."""
    if not path.is_file():
        raise UsageError("there is no such plan", where=path, do="Write one with --plan")
    try:
        return msgspec.convert(read_json(path), FormatPlan)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"no plan of formats: {error}", where=path) from error
