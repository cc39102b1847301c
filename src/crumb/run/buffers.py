"""Where every buffer of a plan lies in one arena of floats.

In: a Plan, the rows of its buffers. Out: places by stage; buffers that never live together share
memory. Refuses operations that the native engine does not have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from crumb.architectures.plan import Plan, Stage
from crumb.kernels.engine import buffer_stride
from crumb.operations.table import output_widths


@dataclass(frozen=True)
class Place:
    """Where a buffer lies in the arena."""

    offset: int  # floats from the arena's begin
    width: int
    rows: int

    @property
    def stride(self) -> int:
        return buffer_stride(self.width)

    @property
    def end(self) -> int:
        return self.offset + self.rows * self.stride


def place_stage(
    stage: Stage, lasting: Mapping[str, int], rows: int, begin: int
) -> tuple[dict[str, Place], int]:
    """Places of a stage's own buffers from `begin` on, and where they end.

    `kept` names the buffers that live between stages, with their widths. Buffers whose lives do
    not meet may share memory.
    """
    widths = dict(lasting)
    lives: dict[str, tuple[int, int]] = {}
    for index, operation in enumerate(stage.operations):
        for name in operation.reads:
            if name in lives:
                lives[name] = (lives[name][0], index)
        for name, width in output_widths(operation, widths).items():
            widths[name] = width
            if name not in lasting:
                lives[name] = (lives.get(name, (index, 0))[0], index)
    for name in stage.outputs:
        if name in lives:
            lives[name] = (lives[name][0], len(stage.operations))
    places: dict[str, Place] = {}
    for name in sorted(lives, key=lambda name: (-widths[name], lives[name], name)):
        offset = begin
        busy = sorted(
            (places[other].offset, places[other].end)
            for other in places
            if lives[other][0] <= lives[name][1] and lives[name][0] <= lives[other][1]
        )
        size = Place(0, widths[name], rows).end
        for first, last in busy:
            if offset + size <= first:
                break
            offset = max(offset, last)
        places[name] = Place(offset, widths[name], rows)
    return places, max((place.end for place in places.values()), default=begin)


def place_buffers(
    plan: Plan, rows: int, head_rows: int
) -> tuple[tuple[dict[str, Place], ...], int]:
    """Places by stage, and the floats of the arena. The last stage runs on head_rows rows alone.

    Stages that run once have steps of their own, so their buffers and the others' share memory.
    """
    once, often = (
        [each for each in plan.stages[:-1] if each.once == which] for which in (True, False)
    )
    own, largest, _ = _place_flow(once, rows, lasting_names(once))
    places, end, lasting = _place_flow(
        often, rows, {name for each in often for name in each.outputs}
    )
    places |= own
    chosen: dict[str, Place] = {}
    head, begin = plan.stages[-1], max((place.end for place in lasting.values()), default=0)
    for name in (name for name in head.inputs if name in lasting):
        chosen[name] = Place(begin, lasting[name].width, head_rows)
        begin = chosen[name].end
    widths = {name: place.width for name, place in chosen.items()}
    of_head, last = place_stage(head, widths, head_rows, begin)
    places[head.name] = chosen | of_head
    return tuple(places[stage.name] for stage in plan.stages), max(largest, end, last)


def lasting_names(stages: Sequence[Stage]) -> set[str]:
    """Outputs that others of these stages read."""
    read = {name for stage in stages for name in stage.inputs}
    return {name for stage in stages for name in stage.outputs if name in read}


def _place_flow(
    stages: Sequence[Stage], rows: int, names: Collection[str]
) -> tuple[dict[str, dict[str, Place]], int, dict[str, Place]]:
    """Places by stage, where they end, and those of the buffers that live between stages."""
    widths: dict[str, int] = {}
    for stage in stages:
        inner = {name: widths[name] for name in stage.inputs if name in widths}
        for operation in stage.operations:
            inner |= output_widths(operation, inner)
        widths |= {name: inner[name] for name in stage.outputs if name in names}
    lasting: dict[str, Place] = {}
    end = 0
    for name, width in widths.items():
        lasting[name] = Place(end, width, rows)
        end = lasting[name].end
    by_stage, largest = {}, end
    for stage in stages:
        own, last = place_stage(stage, widths, rows, end)
        by_stage[stage.name] = lasting | own
        largest = max(largest, last)
    return by_stage, largest, lasting
