"""A model ready to run: its Plan, its weights decoded stage by stage, its tokenizer.

In: a path or hub name, then batches of tokens. Out: logits, from one pass over the Plan's stages
that whole texts and sessions share. Small models keep all stages in memory; larger ones hold one
at a time. Refuses what the checkpoint readers refuse, and texts that the model cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from crumb.architectures.plan import Plan, Stage
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.huggingface.hub import locate
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import UsageError
from crumb.operations.operation import Array, Context, TensorSpec
from crumb.run.array_executor import run_stage
from crumb.tokenizer.tokenizer import Tokenizer, load_tokenizer

KEPT_BYTES = 1 << 30
"""A model whose f32 weights are at most this stays decoded in memory."""


@dataclass
class Model:
    """An opened model. `as_array` moves NumPy arrays to the executor's library and device."""

    checkpoint: Checkpoint
    as_array: Callable[[Any], Array] = np.asarray
    keep: bool = True  # small models stay decoded
    _kept: dict[str, Array] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        return self.checkpoint.plan

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.checkpoint.files)

    @cached_property
    def _keeps(self) -> bool:
        return self.keep and 4 * self.plan.parameters() <= KEPT_BYTES

    def stage_weights(self, stage: Stage) -> Mapping[str, Array]:
        """The stage's tensors in f32."""
        return self.floats(stage.tensors())

    def floats(self, specs: Iterable[TensorSpec]) -> dict[str, Array]:
        """Some tensors in f32."""
        weights: dict[str, Array] = {}
        for spec in specs:
            if spec.name not in self._kept:
                array = self.as_array(self.checkpoint.tensors.read_float(spec.name))
                if not self._keeps:
                    weights[spec.name] = array
                    continue
                self._kept[spec.name] = array
            weights[spec.name] = self._kept[spec.name]
        return weights

    def logits(self, tokens: Array, inputs: Mapping[str, Array] | None = None) -> Array:
        """Logits of whole sequences; `inputs` holds the plan's further inputs.

        Shapes: (batch, tokens) -> (batch, tokens, vocabulary). Raises: UsageError.
        """
        return self.forward(tokens, Memory(lasting=dict(inputs or {}), states=None))

    def forward(self, tokens: Array, memory: Memory) -> Array:
        """Logits of the tokens that follow what is in memory, which then holds them too.

        Shapes: (batch, tokens) -> (batch, tokens, vocabulary). Raises: UsageError.
        """
        check_tokens(self.plan, tokens, memory)
        flowing = start_buffers(tokens, memory.length_tokens)
        rotations: dict[Any, tuple[Array, Array]] = {}
        for stage in self.plan.stages:
            if stage.once and memory.length_tokens:
                continue
            context = Context(self.stage_weights(stage), memory.states, rotations)
            if memory.states is not None:
                context.longest_tokens = self.plan.max_positions
            outputs = run_stage(stage, memory.lasting | flowing, context)
            if stage.once:
                memory.lasting |= outputs
            else:
                flowing |= outputs
        memory.length_tokens += tokens.shape[1]
        return flowing["logits"]


@dataclass
class Memory:
    """What a sequence keeps from call to call."""

    lasting: dict[str, Array]  # the plan's further inputs, and the outputs of stages that run once
    states: dict[str, tuple[Array, ...]] | None  # by slot; None: the whole text comes in one call
    length_tokens: int = 0


def start_buffers(tokens: Array, first_position: int = 0) -> dict[str, Array]:
    """The buffers every plan starts from: tokens and positions, both (batch, tokens)."""
    xp = array_namespace(tokens)
    batch, count = tokens.shape
    places = xp.arange(first_position, first_position + count, device=tokens.device)
    return {"tokens": tokens, "positions": xp.broadcast_to(places[None, :], (batch, count))}


def check_tokens(plan: Plan, tokens: Array, memory: Memory) -> None:
    """Refuse tokens that the model cannot take after what is in memory. Raises: UsageError."""
    if memory.length_tokens == 0 and memory.lasting.keys() != set(plan.inputs):
        raise UsageError(
            "what is given beside the tokens is not what the model reads",
            expected=", ".join(plan.inputs) or "nothing",
            found=", ".join(memory.lasting) or "nothing",
        )
    total = memory.length_tokens + tokens.shape[1]
    if total > plan.max_positions:
        raise UsageError(
            "the text is longer than the model's context",
            expected=f"at most {plan.max_positions} tokens",
            found=total,
        )
    xp = array_namespace(tokens)
    if not tokens.shape[1]:
        raise UsageError("there are no tokens to run", expected="at least one")
    low, high = int(xp.min(tokens)), int(xp.max(tokens))
    if low < 0 or high >= plan.vocabulary:
        raise UsageError(
            "a token is not in the model's vocabulary",
            expected=f"0 to {plan.vocabulary - 1}",
            found=low if low < 0 else high,
        )


def open_model(name: str, as_array: Callable[[Any], Array] = np.asarray) -> Model:
    """A model from a path or hub name. Raises: ModelNotFound, CheckpointError."""
    return Model(open_checkpoint(locate(name)), as_array)
