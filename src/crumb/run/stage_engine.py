"""One stage of a model on the native engine, run piece by piece over whole texts.

In: a checkpoint, the shape of a batch of texts; batches of the buffers that flow into a stage. Out:
the buffers behind any of its operations, such as the input of a linear layer, in f32 throughout.
A matrix is taken from the checkpoint's tensors when the walk reaches it: it may be made on the way.
Refuses what the engine refuses. Its oracle is run_span of run/array_executor.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.kernels.engine import PAGE_TOKENS
from crumb.run.memory_plan import ActivationKind, CacheKind, EngineSettings, MemoryPlan, plan_memory
from crumb.run.program import Program

Buffers = dict[str, NDArray[Any]]
"""What flows: "tokens" (texts, length), and f32 buffers (texts, length, features)."""


@dataclass(frozen=True)
class TextsPlan:
    """The memory that each stage takes in turn."""

    checkpoint: Checkpoint
    settings: EngineSettings
    memory: MemoryPlan


def plan_texts(checkpoint: Checkpoint, texts: int, length: int) -> TextsPlan:
    """For batches of at most so many texts of so many tokens. Raises: UsageError."""
    settings = EngineSettings(
        context_tokens=length,
        sequences=texts,
        step_tokens=texts * length,
        logits_rows=texts * length,
        cache=CacheKind.F32,
        activations=ActivationKind.F32,
    )
    return TextsPlan(checkpoint, settings, plan_memory(checkpoint.plan, {}, 0, settings))


class StageEngine:
    """One stage on its way. Its memory is a batch's, whatever flows."""

    def __init__(self, texts: TextsPlan, index: int) -> None:
        self.stage = texts.checkpoint.plan.stages[index]
        self._program = Program(texts.checkpoint, texts.settings, texts.memory)
        self._index, self._next, self._next_native = index, 0, 0

    def run_to(self, end: int, batches: Iterable[Buffers]) -> None:
        """Run all operations before `end` that have not run, on every batch.

        A batch then has the buffers that are still needed, those that it had among them.
        Raises: CheckpointError.
        """
        begin, first = self._next, self._next_native
        last = self._program.append(self._index, begin, end)
        self._next, self._next_native = end, last
        if end == begin:
            return
        places = self._program.places
        operations = self.stage.operations[begin:end]
        read = {name for each in operations for name in each.reads if name in places}
        written = {name for each in operations for name in each.writes}
        live = self.stage.live_after(end - 1)
        for batch in batches:
            tokens = batch["tokens"]
            rows = tokens.size
            for name in read & batch.keys():
                self._program.view(name)[:rows] = batch[name].reshape(rows, -1)
            self._step(tokens, first, last)
            for name in batch.keys() - live - {"tokens"}:
                del batch[name]
            for name in written & live:
                features = self._program.view(name)[:rows].copy()
                batch[name] = features.reshape(*tokens.shape, -1)

    def _step(self, tokens: NDArray[Any], first: int, last: int) -> None:
        pages = -(-tokens.shape[1] // PAGE_TOKENS)
        parts = [
            (text, 0, list(range(index * pages, (index + 1) * pages)), 0)
            for index, text in enumerate(tokens.tolist())
        ]
        self._program.native.step(parts, last, first)
