"""Where the difference between the native engine and the array executor comes from.

In: names of tiny models. Out: for each how far both lie from the same plan in f64, over the largest
logit, and how far logits move when operations of one kind alone compute in f32.
Run: python tests/architectures/rounding.py [variant ...]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_models import VARIANTS, make_tokens, write_model

from crumb.architectures.plan import Plan
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.opening import open_checkpoint
from crumb.operations.operation import Context
from crumb.operations.table import row_of
from crumb.run.engine import Engine, Rows, StepPart
from crumb.run.memory_plan import ActivationKind, CacheKind, EngineSettings

TOKENS = 64

Array = NDArray[Any]


def logits(
    plan: Plan, weights: Mapping[str, Array], tokens: Array, single: frozenset[str]
) -> Array:
    """Logits by the rows' references, these kinds of operations in f32 and the others in f64."""
    buffers = {"tokens": tokens[None], "positions": np.arange(len(tokens))[None]}
    rotations: dict[Any, tuple[Array, Array]] = {}
    for stage in plan.stages:
        for operation in stage.operations:
            dtype = np.float32 if operation.word in single else np.float64
            reads = tuple(
                buffers[name] if buffers[name].dtype.kind == "i" else buffers[name].astype(dtype)
                for name in operation.reads
            )
            own = {spec.name: weights[spec.name].astype(dtype) for spec in operation.tensors()}
            outputs = row_of(operation).reference(operation, reads, Context(own, None, rotations))
            for name, output in zip(operation.writes, outputs, strict=True):
                buffers[name] = output
    found: Array = buffers["logits"][0]
    return found


def native_logits(checkpoint: Checkpoint, tokens: Array) -> Array:
    """Logits of the native engine, everything in f32."""
    settings = EngineSettings(
        context_tokens=TOKENS,
        step_tokens=TOKENS,
        logits_rows=TOKENS,
        cache=CacheKind.F32,
        activations=ActivationKind.F32,
        threads=1,
    )
    engine, given = Engine(checkpoint, settings), tokens.tolist()
    sequence = engine.begin(given, reuse=False)
    return engine.run([StepPart(sequence, given, Rows.ALL)]).copy()


def main() -> None:
    """Print a line for each model and kind."""
    for variant in sys.argv[1:] or VARIANTS:
        with tempfile.TemporaryDirectory() as name:
            checkpoint = open_checkpoint(write_model(Path(name), VARIANTS[variant]))
            if checkpoint.plan.inputs:  # an encoder's too
                continue
            plan, tokens = checkpoint.plan, make_tokens(VARIANTS[variant])[0, :TOKENS]
            weights = {
                spec.name: checkpoint.tensors.read_float(spec.name) for spec in plan.tensors()
            }
            native = native_logits(checkpoint, tokens)
        kinds = frozenset(each.word for stage in plan.stages for each in stage.operations)
        truth = logits(plan, weights, tokens, frozenset())
        largest = np.abs(truth).max()

        def apart(one: Array, other: Array, largest: float = largest) -> str:
            return f"{np.abs(one - other).max() / largest:.1e}"

        array = logits(plan, weights, tokens, kinds)
        print(
            f"{variant}: array from f64 {apart(array, truth)}, native from f64 "
            f"{apart(native, truth)}, native from array {apart(native, array)}; alone in f32:",
            ", ".join(
                f"{kind} {apart(logits(plan, weights, tokens, frozenset({kind})), truth)}"
                for kind in sorted(kinds - {"embed", "split", "join"})
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
