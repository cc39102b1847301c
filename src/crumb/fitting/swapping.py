"""An allocation checked by the KL it really has, and bettered by swaps of two formats at a time.

In: the room of a budget, its allocation, a rehearsal, how many swaps to try. Out: an allocation
that fits and was measured to lose no more, and its KL. What was measured for other budgets counts
too, so more bytes never lose more among plans of one model that were made from small to large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from crumb.architectures.plan import Plan
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.fitting.allocation import Refine, Room
from crumb.fitting.bundles import bundles_of
from crumb.fitting.gradient_cost import gradient_disk_bytes
from crumb.fitting.ladder import ladder
from crumb.fitting.quantize_cost import input_work, matrix_work, measured_rate, peak_bytes
from crumb.fitting.rehearsal import MeasuredMix, Rehearsal
from crumb.fitting.sensitivity import pass_work
from crumb.fitting.stage_cost import stage_work
from crumb.progress import Cost
from crumb.solve.allocate import Allocation, swaps
from crumb.solve.problem import SolveSettings
from crumb.texts.mixture import CalibrationTokens
from crumb.texts.windows import Windows

WINDOWS = 8
"""Of the text that mixes are measured on."""

REHEARSED_BITS = 6
"""Of a weight, in the files of a mix and of what swaps need beside it."""

Told = Callable[[str], None]
"""What comes next."""


def refining(rehearsal: Rehearsal, count: int, told: Told) -> Refine:
    """What tries so many swaps."""
    return partial(_refined, rehearsal, count, told)


def _refined(
    rehearsal: Rehearsal, count: int, told: Told, room: Room, allocation: Allocation
) -> tuple[Allocation, float]:
    proposals = swaps(room.menus, allocation, room.spare_bytes(allocation), count)
    after = [swap.of(allocation) for swap in proposals]
    mixes = [_names(room, each) for each in (allocation, *after)]
    rehearsal.solve(mixes, lambda stage: told(f"{stage.name}, in the formats that are tried"))
    best = rehearsal.measure(mixes[0])
    for number, swap in enumerate(proposals, 1):
        told(f"swap {number} of {len(proposals)}")
        swapped = swap.of(allocation)
        if room.spare_bytes(swapped) < 0:
            continue
        measured = rehearsal.measure(_names(room, swapped))
        gain, error = measured.less_than(best)
        if gain > error:
            allocation, best = swapped, measured
    for earlier in rehearsal.measured():
        other = _allocation(room, earlier)
        if other is not None and earlier.kl < best.kl and room.spare_bytes(other) >= 0:
            allocation, best = other, earlier
    return allocation, best.kl


def _names(room: Room, allocation: Allocation) -> Mapping[str, str]:
    return {name: format.name for name, format in room.formats(allocation).items()}


def _allocation(room: Room, measured: MeasuredMix) -> Allocation | None:
    """The offers of a mix that was measured; None where the menus lack one."""
    firsts = {bundle.name: bundle.matrices for bundle in bundles_of(room.checkpoint.plan)}
    offers = []
    for menu in room.menus:
        open_ones = [spec.name for spec in firsts.get(menu.name, ()) if spec.name not in room.asked]
        format = measured.formats.get((open_ones or [menu.name])[0])
        offers += [offer for offer in menu.offers if offer.name == format][:1]
    allocation = Allocation(tuple(offers))
    if len(offers) < len(room.menus) or _names(room, allocation) != measured.formats:
        return None
    return allocation


def held_out(drawn: CalibrationTokens, text: str) -> Windows:
    """Windows to measure mixes on: spread over what was drawn, all but the first token scored."""
    places = np.linspace(0, len(drawn.tokens) - 1, min(WINDOWS, len(drawn.tokens))).astype(int)
    return Windows(drawn.tokens[places], 1, "all", text, drawn.sha256())


def planning_cost(
    checkpoint: Checkpoint,
    shape: tuple[int, int],
    settings: SolveSettings,
    passes: bool,
    count: int,
) -> Cost:
    """Of finding formats: of the pass if it is still to be made, and of trying so many swaps.

    `shape` is that of the calibration tokens, (texts, length).
    """
    plan, work, disk, stays = checkpoint.plan, 0.0, 0, 0
    if passes:
        work, disk = pass_work(plan, shape), gradient_disk_bytes(plan, shape)
    if count:
        work += rehearsal_work(plan, shape, settings, count)
        stays = plan.parameters() * REHEARSED_BITS // 8
    memory = peak_bytes(plan, {}, shape, settings)
    return Cost(memory, work / measured_rate(), disk + stays, stays)


def rehearsal_work(
    plan: Plan, shape: tuple[int, int], settings: SolveSettings, count: int
) -> float:
    """Operations of solving a mix and of measuring it with so many swaps; shape as above."""
    tokens, measured = shape[0] * shape[1], WINDOWS * shape[1]
    work = 0.0
    for stage in plan.stages:
        work += stage_work(stage, tokens, shape[1])
        work += (2 + count) * stage_work(stage, measured, shape[1])
        specs = [spec for spec in stage.tensors() if spec.matrix]
        work += sum(matrix_work(spec, ladder(settings)[0], settings) for spec in specs)
        work += sum(input_work(width, tokens) for width in {spec.shape[1] for spec in specs})
    return work
