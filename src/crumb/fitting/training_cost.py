"""What training codes takes: operations, memory and room on disk.

In: a Plan, the formats of its matrices, solver settings, the length of a calibration text.
Out: operations, bytes. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from crumb.architectures.plan import Plan, Stage
from crumb.calibrate import block_training, model_training
from crumb.calibrate.block_trainer import trained_linears
from crumb.fitting.stage_cost import stage_work
from crumb.formats.catalog import Format
from crumb.solve.problem import SolveSettings

LOGITS = 6
"""Arrays as large as a step's logits: both models' and what becomes of them."""


def training_work(
    stage: Stage, formats: Mapping[str, Format], settings: SolveSettings, length: int
) -> float:
    """Operations of training a stage's codes; length is that of a calibration text."""
    if not settings.trains or not trained_linears(stage, formats):
        return 0.0
    tokens = settings.training_steps * max(block_training.STEP_TOKENS // length, 1) * length
    return block_training.TRAINING_WORK * stage_work(stage, tokens, length)


def training_bytes(stage: Stage, formats: Mapping[str, Format], features: int, tokens: int) -> int:
    """Memory of training a stage: its matrices several times over, and all texts at its borders."""
    weights = sum(each.in_features * each.out_features for each in trained_linears(stage, formats))
    return 4 * (block_training.ARRAYS * weights + 4 * tokens * features)


def trained_weights(plan: Plan, formats: Mapping[str, Format]) -> int:
    """Weights of all blocks that are trained together."""
    return sum(
        linear.in_features * linear.out_features
        for stage in plan.stages[1:-1]
        for linear in trained_linears(stage, formats)
    )


def together_work(
    plan: Plan, formats: Mapping[str, Format], settings: SolveSettings, length: int
) -> float:
    """Operations of training all blocks together, if all steps are walked."""
    if not trains_together(plan, formats, settings):
        return 0.0
    per_step = max(model_training.STEP_TOKENS // length, 1) * length
    judged = 2 * model_training.MOST_JUDGES * length / model_training.JUDGED_EVERY
    tokens = settings.model_steps * (model_training.TRAINING_WORK * per_step + judged)
    return sum(stage_work(stage, int(tokens), length) for stage in plan.stages)


def together_bytes(
    plan: Plan, formats: Mapping[str, Format], settings: SolveSettings, length: int
) -> int:
    """Memory of training all blocks together, both models in f32 included."""
    if not trains_together(plan, formats, settings):
        return 0
    tokens = max(model_training.STEP_TOKENS // length, 1) * length
    logits = LOGITS * tokens * plan.vocabulary
    arrays = model_training.ARRAYS * trained_weights(plan, formats)
    return 4 * (arrays + logits + 2 * plan.parameters())


def together_disk_bytes(plan: Plan, formats: Mapping[str, Format], settings: SolveSettings) -> int:
    """What lies on disk for a training that is killed: written beside the one before it."""
    if not trains_together(plan, formats, settings):
        return 0
    return 2 * model_training.STORED_BYTES * trained_weights(plan, formats)


def trains_together(plan: Plan, formats: Mapping[str, Format], settings: SolveSettings) -> bool:
    """Whether all blocks are trained together: not those of a model that is too large for it."""
    weights = trained_weights(plan, formats)
    return settings.trains_together and 0 < weights <= model_training.MOST_WEIGHTS
