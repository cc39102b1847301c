"""A format for each matrix within a budget: exact bytes, and the least loss that fits into them.

In: an opened checkpoint, what each format of each matrix costs, a Budget. Out: a FormatPlan, which
is a file too. Memory is that of the engine's own dry run, bytes are those of the files it reads.
Refuses budgets that the smallest formats do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from crumb.architectures.plan import Plan
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.reader import matrix_metadata
from crumb.errors import CheckpointError, DoesNotFit, UsageError, warn
from crumb.files.atomic_file import write_json
from crumb.files.model_files import read_json
from crumb.fitting.bundles import bundles_of
from crumb.fitting.candidates import directory_bytes
from crumb.fitting.ladder import possible
from crumb.fitting.quantize_cost import packed_bytes
from crumb.fitting.sensitivity import Losses
from crumb.formats.catalog import Format, parse_format
from crumb.formats.packed_tensor import stored_shape
from crumb.operations.operation import TensorSpec
from crumb.requests.budget import Budget
from crumb.run.load import engine_settings
from crumb.run.memory_plan import CacheKind, chosen_kind, plan_memory, process_bytes
from crumb.solve.allocate import Allocation, Menu, Offer, allocate
from crumb.solve.problem import SolveSettings
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
    expected_kl: float  # nats: the losses of all bundles together
    key: dict[str, object]  # of the source and of the pass behind the losses
    measured_kl: float | None = None  # nats, where mixes were rehearsed

    @property
    def formats(self) -> dict[str, Format]:
        """By tensor name."""
        return {each.tensor: parse_format(each.format) for each in self.matrices}

    def record(self) -> dict[str, Any]:
        """What a manifest says of it; its matrices are there anyway."""
        usual = asdict(Budget())
        said = {name: value for name, value in asdict(self.budget).items() if value != usual[name]}
        rehearsed = {} if self.measured_kl is None else {"rehearsed_kl": self.measured_kl}
        return {
            "budget": said,
            "expected_kl": self.expected_kl,
            "memory_bytes": self.memory_bytes,
        } | rehearsed


@dataclass(frozen=True)
class Room:
    """What a budget leaves open: menus, and what all of a model may take."""

    checkpoint: Checkpoint
    asked: Mapping[str, Format | None]  # matrices whose format is decided; None: float
    menus: Sequence[Menu]
    size: Size
    limit_bytes: int
    do: str  # where nothing fits

    def formats(self, allocation: Allocation) -> dict[str, Format]:
        """Of every matrix that is not float."""
        pairs = zip(self.menus, allocation.offers, strict=True)
        chosen = {menu.name: parse_format(offer.name) for menu, offer in pairs}
        formats = {}
        for bundle in bundles_of(self.checkpoint.plan):
            for spec in bundle.matrices:
                name = spec.name if spec.name in self.asked else bundle.name
                if name in chosen:
                    formats[spec.name] = chosen[name]
        return formats

    def spare_bytes(self, allocation: Allocation) -> int:
        """What an allocation leaves of the budget; negative: it does not fit."""
        return self.limit_bytes - self.size(self.formats(allocation))

    def smallest(self) -> Allocation:
        """The smallest formats. Raises: DoesNotFit."""
        offers = (min(menu.offers, key=lambda each: each.size_bytes) for menu in self.menus)
        smallest = Allocation(tuple(offers))
        spare = self.spare_bytes(smallest)
        if spare < 0:
            raise DoesNotFit(
                "nothing fits this budget",
                where=self.checkpoint.path,
                expected=f"{(self.limit_bytes - spare) / 1e6:.2f} MB at least",
                found=f"{self.limit_bytes / 1e6:.2f} MB",
                do=self.do,
            )
        return smallest

    def allocation(self) -> Allocation:
        """The one of least loss that fits. Raises: DoesNotFit."""
        smallest = self.smallest()
        beside = self.limit_bytes - self.spare_bytes(smallest) - smallest.size_bytes
        for _ in range(ROUNDS):
            room = max(self.limit_bytes - beside, smallest.size_bytes)
            allocation = allocate(self.menus, room)
            excess = -self.spare_bytes(allocation)
            if excess <= 0:
                return allocation
            beside += excess
        return smallest


Refine = Callable[[Room, Allocation], tuple[Allocation, float]]
"""An allocation -> a better one, and the KL that it was measured to have."""


def plan_formats(
    checkpoint: Checkpoint,
    losses: Losses,
    budget: Budget,
    asked: Mapping[str, Format | None],
    resident_bytes: int,
    key: dict[str, object],
    refine: Refine | None = None,
) -> FormatPlan:
    """The formats of least loss. `asked`: of matrices whose format is decided; None: float.

    `resident_bytes`: of a process without a model. Raises: DoesNotFit, UsageError.
    """
    plan = checkpoint.plan
    room = room_of(checkpoint, losses, budget, asked, resident_bytes)
    allocation, kl = room.allocation(), None
    if refine is not None:
        allocation, kl = refine(room, allocation)
    formats = room.formats(allocation)
    file_bytes = directory_bytes(checkpoint, formats)
    return FormatPlan(
        budget,
        tuple(_planned(plan, formats, losses)),
        file_bytes,
        8 * file_bytes / plan.parameters(),
        room.size(formats) if budget.memory_bytes is not None else None,
        allocation.loss,
        key,
        kl,
    )


def _planned(plan: Plan, formats: Mapping[str, Format], losses: Losses) -> Iterator[PlannedMatrix]:
    for bundle in bundles_of(plan):
        for spec in bundle.matrices:
            if spec.name not in formats:
                continue
            format = formats[spec.name]
            loss = losses.get(bundle.name, {}).get(format.name)
            share = None if loss is None else loss / len(bundle.matrices)
            size = prod(stored_shape(format, *spec.shape))
            yield PlannedMatrix(spec.name, format.name, size, share)


def room_of(
    checkpoint: Checkpoint,
    losses: Losses,
    budget: Budget,
    asked: Mapping[str, Format | None],
    resident_bytes: int,
) -> Room:
    """What a budget leaves open. Raises: UsageError."""
    menus = menus_of(checkpoint.plan, losses, asked, in_files=budget.memory_bytes is None)
    return Room(checkpoint, asked, menus, *_size(checkpoint, budget, resident_bytes))


def check_budget(
    checkpoint: Checkpoint,
    budget: Budget,
    asked: Mapping[str, Format | None],
    resident_bytes: int,
    settings: SolveSettings,
) -> None:
    """Refuse a budget that the smallest formats exceed, and tell of one that floats do not.

    No loss is known yet.
    Raises: DoesNotFit.
    """
    unknown = {
        bundle.name: dict.fromkeys(
            (each.name for each in possible(bundle.in_features, settings)), 0.0
        )
        for bundle in bundles_of(checkpoint.plan)
    }
    room = room_of(checkpoint, unknown, budget, asked, resident_bytes)
    room.smallest()
    if room.size({}) <= room.limit_bytes:
        warn(
            "the float model itself is within this budget",
            where=checkpoint.path,
            do="Ask for less if it shall become smaller or faster",
        )


def menus_of(
    plan: Plan, losses: Losses, asked: Mapping[str, Format | None], in_files: bool
) -> list[Menu]:
    """What each bundle may have; of matrices whose format is decided that alone.

    `in_files`: what a file says of a matrix, its table too, counts with its bytes.
    """

    def offer(matrices: Sequence[TensorSpec], format: Format, loss: float) -> Offer:
        size = sum(prod(stored_shape(format, *each.shape)) for each in matrices)
        if in_files:
            shapes = ((each.shape[0], each.shape[1]) for each in matrices)
            size += sum(len(matrix_metadata(format, shape)) for shape in shapes)
        return Offer(format.name, size, loss)

    menus = []
    for bundle in bundles_of(plan):
        open_ones = [spec for spec in bundle.matrices if spec.name not in asked]
        share = len(open_ones) / len(bundle.matrices)
        of_formats = losses.get(bundle.name, {})
        if open_ones and of_formats:
            offers = (
                offer(open_ones, parse_format(name), share * loss)
                for name, loss in of_formats.items()
            )
            menus.append(Menu(bundle.name, tuple(offers)))
        for spec in bundle.matrices:
            format = asked.get(spec.name)
            if format is not None:
                loss = of_formats.get(format.name, 0.0) / len(bundle.matrices)
                menus.append(Menu(spec.name, (offer([spec], format, loss),)))
    return menus


OF_MEMORY = "Give more, ask for a shorter --context or --cache int8, or take a smaller model"
OF_FILES = "Give more, or take a smaller model: these are the smallest formats there are"
"""What to do where nothing fits."""


def _size(checkpoint: Checkpoint, budget: Budget, resident_bytes: int) -> tuple[Size, int, str]:
    """What formats take, how much they may, and what to do where they cannot."""
    plan, entry = checkpoint.plan, checkpoint.tensors.entry
    if budget.memory_bytes is None:
        limit = budget.file_bytes
        if limit is None:
            assert budget.bits_per_weight is not None, "one of the three"
            limit = int(budget.bits_per_weight * plan.parameters() / 8)
        return (lambda formats: directory_bytes(checkpoint, formats)), limit, OF_FILES
    cache = chosen_kind(CacheKind, budget.cache, "cache")
    settings = engine_settings(plan, budget.context_tokens, budget.parallel, cache)
    process = process_bytes(
        plan.vocabulary, resident_bytes, lambda: load_tokenizer(checkpoint.files)
    )

    def memory(formats: Mapping[str, Format]) -> int:
        floats = [spec.name for spec in plan.tensors() if spec.name not in formats]
        weights = packed_bytes(plan, formats) + sum(entry(name).used_bytes for name in floats)
        return process + plan_memory(plan, formats, weights, settings).total_bytes

    return memory, budget.memory_bytes, OF_MEMORY


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
