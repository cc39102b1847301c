"""Text that a model writes itself, to calibrate it on: `self` of a calibration spec.

In: a float checkpoint, how many sequences of how many tokens, a seed. Out: the tokens, the same
for the same seed. Every second sequence is a chat that a user of the embedded dialogues opens,
where the model has a template for chats; the others begin with the token that begins a text.
Drawn at temperature 1, on past the end of a text. Refuses what the engine refuses.
Source: LLM-QAT (arXiv 2305.17888) calibrates on what the model itself writes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.errors import UsageError
from crumb.requests.generate_request import GenerateRequest, Sampling
from crumb.run.language_model import LanguageModel
from crumb.run.memory_plan import EngineSettings

TOGETHER = 16
"""Sequences that are written at a time."""

LARGEST_BYTES = 4 << 30
"""Of float weights: a larger model is not asked to write unless it is told to."""

WRITING_WORK = 6.0
"""Work of writing tokens, in forward passes of as many: each step reads all weights."""


def writes_readily(checkpoint: Checkpoint) -> bool:
    """Whether a model writes text by itself, and is small enough to do so for each calibration."""
    return writes(checkpoint.plan) and checkpoint.weight_bytes() <= LARGEST_BYTES


def writes(plan: Plan) -> bool:
    """Whether a model goes on with a text: no encoder, no other input."""
    return not plan.inputs and not any(stage.once for stage in plan.stages)


def writing_settings(count: int, length: int) -> EngineSettings:
    """The engine that writes so many sequences of so many tokens."""
    together = min(count, TOGETHER)
    return EngineSettings(context_tokens=length, sequences=together, logits_rows=together)


def write_texts(
    checkpoint: Checkpoint, openings: list[str], count: int, length: int, seed: int
) -> NDArray[np.int64]:
    """Sequences of the model's own. Shapes: (count, length).

    `openings` are texts that begin a chat, up to where the model answers; none where it knows no
    chats. Raises: UsageError, DoesNotFit.
    """
    rows: list[list[int]] = []
    with LanguageModel(checkpoint, writing_settings(count, length)) as model:
        begins = [_begin(model, openings, index, length) for index in range(count)]
        for first in range(0, count, TOGETHER):
            requests = [
                _request(begin, length, seed, first + place)
                for place, begin in enumerate(begins[first : first + TOGETHER])
            ]
            for request, written in zip(requests, model.run(requests), strict=True):
                if written.error is not None:
                    raise written.error
                rows.append([*map(int, request.prompt), *written.tokens])
    return np.asarray(rows, np.int64)


def _begin(model: LanguageModel, openings: list[str], index: int, length: int) -> list[int]:
    """The tokens that a sequence begins with, at least one and at most half of it."""
    tokenizer = model.tokenizer
    if openings and index % 2:
        opening = tokenizer.encode(openings[index // 2 % len(openings)])
        return opening[: max(length // 2, 1)]
    begin = tokenizer.begin_token
    if begin is None and not tokenizer.end_tokens:
        raise UsageError(
            "nothing begins a text of this model",
            where=model.checkpoint.path,
            expected="a begin token or an end token",
            do="Name a text to calibrate on",
        )
    return [min(tokenizer.end_tokens) if begin is None else begin]


def _request(begin: list[int], length: int, seed: int, index: int) -> GenerateRequest:
    own_seed = int(np.random.default_rng([seed, index]).integers(1 << 62))
    return GenerateRequest(
        prompt=begin,
        max_tokens=length - len(begin),
        sampling=Sampling(temperature=1.0, seed=own_seed),
        ignore_end=True,
        speculate=False,
    )
