"""What it costs that a model writes a part of its own calibration text (calibrate/own_text.py).

In: the cost of a quantization, the float checkpoint, how many sequences of how many tokens.
Out: the cost of both. Refuses nothing.
"""

from __future__ import annotations

from dataclasses import replace

from crumb.calibrate.own_text import WRITING_WORK, writing_settings
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.fitting.quantize_cost import FIXED_BYTES, measured_rate
from crumb.fitting.stage_cost import stage_work
from crumb.progress import Cost
from crumb.run.memory_plan import plan_memory


def with_writing(cost: Cost, checkpoint: Checkpoint, sequences: int, length: int) -> Cost:
    """The cost of a quantization before which so many sequences are written."""
    if not sequences:
        return cost
    plan, weights_bytes = checkpoint.plan, checkpoint.weight_bytes()
    work = sum(stage_work(stage, sequences * length, length) for stage in plan.stages)
    memory = plan_memory(plan, {}, weights_bytes, writing_settings(sequences, length))
    return replace(
        cost,
        seconds=cost.seconds + WRITING_WORK * work / measured_rate(),
        memory_bytes=max(cost.memory_bytes, memory.total_bytes + FIXED_BYTES),
    )
