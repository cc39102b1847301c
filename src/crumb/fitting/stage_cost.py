"""What running tokens through a stage costs, in floating-point operations.

In: a stage, tokens. Out: operations, as a matrix product's cost time.
"""

from __future__ import annotations

from crumb.architectures.plan import Stage
from crumb.operations.table import row_of

FORWARD_OVERHEAD = 2.0
"""Time of a stage over the time of its matrix products: norms, activations, softmax."""


def stage_work(stage: Stage, tokens: int, length_tokens: int) -> float:
    """Operations of running tokens through a stage."""
    costs = (row_of(each).cost(each, length_tokens / 2) for each in stage.operations)
    return 2.0 * tokens * sum(cost.multiply_adds for cost in costs) * FORWARD_OVERHEAD
