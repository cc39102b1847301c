"""A model ready to run: its Plan, its weights decoded stage by stage, its tokenizer.

In: a path or hub name. Out: a Model whose stages can be run on batches of tokens.
Small models keep all stages in memory; larger ones hold one stage at a time.
Refuses what the checkpoint readers refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from crumb.architectures.plan import Plan, Stage
from crumb.checkpoints.hub import locate
from crumb.checkpoints.huggingface import Checkpoint, open_checkpoint
from crumb.run.array_executor import Array, Context, run_stage
from crumb.run.tokenizer import Tokenizer, load_tokenizer

KEPT_BYTES = 1 << 30
"""A model whose f32 weights are at most this stays decoded in memory."""


@dataclass
class Model:
    """An opened model. `as_array` moves NumPy arrays to the executor's library and device."""

    checkpoint: Checkpoint
    as_array: Callable[[Any], Array] = np.asarray
    _kept: dict[str, Array] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        return self.checkpoint.plan

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.checkpoint.path)

    def stage_weights(self, stage: Stage) -> Mapping[str, Array]:
        """The stage's tensors in f32."""
        keep = 4 * self.plan.parameters() <= KEPT_BYTES
        weights: dict[str, Array] = {}
        for spec in stage.tensors():
            if spec.name not in self._kept:
                array = self.as_array(self.checkpoint.tensors.read_float(spec.name))
                if not keep:
                    weights[spec.name] = array
                    continue
                self._kept[spec.name] = array
            weights[spec.name] = self._kept[spec.name]
        return weights

    def logits(self, tokens: Array) -> Array:
        """Logits of whole sequences. Shapes: (batch, tokens) -> (batch, tokens, vocabulary)."""
        buffers = start_buffers(tokens)
        kept: dict[str, Array] = {}
        for stage in self.plan.stages:
            given = buffers | kept | start_buffers(tokens)
            kept |= run_stage(stage, given, Context(self.stage_weights(stage)))
        return kept["logits"]


def start_buffers(tokens: Array, first_position: int = 0) -> dict[str, Array]:
    """The buffers every plan starts from: tokens and positions, both (batch, tokens)."""
    from array_api_compat import array_namespace

    xp = array_namespace(tokens)
    batch, count = tokens.shape
    places = xp.arange(first_position, first_position + count, device=tokens.device)
    return {"tokens": tokens, "positions": xp.broadcast_to(places[None, :], (batch, count))}


def open_model(name: str, as_array: Callable[[Any], Array] = np.asarray) -> Model:
    """A model from a path or hub name. Raises: ModelNotFound, CheckpointError."""
    return Model(open_checkpoint(locate(name)), as_array)
