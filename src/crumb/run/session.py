"""A session: one sequence, its state between calls, and text generation from it.

In: tokens. Out: logits of the last token, or sampled tokens one by one.
Keys, values and recurrent states live in the session's slots; stages marked `once` run once.
Refuses sequences longer than the model's positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from crumb.errors import UsageError
from crumb.run.array_executor import Array, Context, run_stage
from crumb.run.model import Model, start_buffers
from crumb.run.sampling import Sampling, sample


class Session:
    """Cached decoding of one sequence."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.length_tokens = 0
        self._states: dict[str, tuple[Array, ...]] = {}
        self._kept: dict[str, Array] = {}

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; returns the logits after each, (tokens, vocabulary).

        Raises: UsageError when the model has no positions left.
        """
        total = self.length_tokens + len(tokens)
        if total > self.model.plan.max_positions:
            raise UsageError(
                "the text is longer than the model's context",
                expected=f"at most {self.model.plan.max_positions} tokens",
                found=total,
            )
        given = self.model.as_array(np.asarray(tokens, np.int64)[None, :])
        start = start_buffers(given, self.length_tokens)
        flowing: dict[str, Array] = {}
        for stage in self.model.plan.stages:
            if stage.once and self.length_tokens:
                continue
            context = Context(self.model.stage_weights(stage), self._states)
            outputs = run_stage(stage, start | self._kept | flowing, context)
            if stage.once:
                self._kept |= outputs
            flowing |= outputs
        self.length_tokens = total
        return np.asarray(flowing["logits"][0])


def generate(
    model: Model, prompt: Sequence[int], count_tokens: int, sampling: Sampling
) -> Iterator[int]:
    """Sampled tokens after a prompt, until the end token or count_tokens."""
    session = Session(model)
    generator = np.random.default_rng(sampling.seed)
    logits = session.feed(prompt)[-1]
    for _ in range(count_tokens):
        token = sample(logits, sampling, generator)
        if token in model.tokenizer.end_tokens:
            return
        yield token
        logits = session.feed([token])[-1]
