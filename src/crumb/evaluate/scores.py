"""Score models on the same windows in one pass: the loss and divergence of every token.

In: a reference (or none), candidates, windows of tokens. Out: TokenScores for each model.
Windows go through the stages in chunks, so that weights are read once a chunk and logits exist
for one window at a time. Refuses models whose vocabularies differ, windows longer than a model's
context, and logits that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Stage
from crumb.errors import CheckpointError, UsageError
from crumb.kernels.threads import parallel_map
from crumb.run.array_executor import Array, Context, as_numpy, run_stage
from crumb.run.model import Model, start_buffers

Floats = NDArray[np.float32]

CHUNK_TOKENS = 16_384
"""Tokens whose hidden states are held at once."""


@dataclass(frozen=True)
class TokenScores:
    """What one model did with every scored token; all arrays (windows, scored)."""

    loss: NDArray[np.float64]  # -log p(token), nats
    divergence: NDArray[np.float64] | None  # KL(reference || model), nats; None without a reference
    agrees: NDArray[np.bool_] | None  # same most likely token as the reference
    probability_change: NDArray[np.float64] | None  # p(token) minus the reference's


@dataclass(frozen=True)
class _WindowLogits:
    """One window's logits before scored tokens, with what is needed of their softmax."""

    logits: Floats  # (scored, vocabulary)
    log_total: Floats  # (scored,) log of the sum of exponentials
    probability: Floats | None  # (scored, vocabulary), reference only

    @classmethod
    def of(cls, logits: Floats, with_probability: bool) -> _WindowLogits:
        top = logits.max(axis=-1, keepdims=True)
        power = np.exp(logits - top)
        total = power.sum(axis=-1, keepdims=True)
        log_total = (top + np.log(total))[:, 0]
        return cls(logits, log_total, power / total if with_probability else None)

    def log_probability(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        chosen = np.take_along_axis(self.logits, tokens[:, None], axis=-1)[:, 0]
        return chosen.astype(np.float64) - self.log_total

    def scores(self, tokens: NDArray[np.int64], reference: _WindowLogits | None) -> TokenScores:
        """Loss of each token, and divergence from the reference's softmax if there is one."""
        mine = self.log_probability(tokens)
        if reference is None or reference.probability is None:
            return TokenScores(-mine, None, None, None)
        shift = (self.log_total - reference.log_total).astype(np.float64)
        difference = reference.logits - self.logits
        divergence = np.einsum("ij,ij->i", reference.probability, difference) + shift
        agrees = reference.logits.argmax(axis=-1) == self.logits.argmax(axis=-1)
        change = np.exp(mine) - np.exp(reference.log_probability(tokens))
        return TokenScores(-mine, np.maximum(divergence, 0.0), agrees, change)


def score(
    models: Sequence[Model],
    tokens: NDArray[np.int64],
    first_scored: int,
    with_reference: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[TokenScores]:
    """Scores of every model on the same windows; with_reference makes models[0] the reference.

    Shapes: tokens (windows, length); tokens from first_scored on are scored.
    progress(done, total) counts windows. Raises: UsageError.
    """
    _check_vocabularies(models, tokens)
    _check_contexts(models, tokens.shape[1])
    per_chunk = max(1, CHUNK_TOKENS // tokens.shape[1])
    rows: list[list[TokenScores]] = []
    for begin in range(0, len(tokens), per_chunk):
        windows = tokens[begin : begin + per_chunk]
        hidden = [_hidden(model, windows) for model in models]
        chunk = _Chunk(models, hidden, windows, first_scored, with_reference)
        rows.extend(parallel_map(chunk.score_window, range(len(windows))))
        progress(begin + len(windows), len(tokens))
    return [_stack([row[index] for row in rows]) for index in range(len(models))]


def _check_vocabularies(models: Sequence[Model], tokens: NDArray[np.int64]) -> None:
    sizes = [model.plan.vocabulary for model in models]
    if len(set(sizes)) > 1 or int(tokens.max()) >= sizes[0]:
        raise UsageError(
            "the models do not share a vocabulary with the text's tokens",
            where=", ".join(str(model.checkpoint.path) for model in models),
            expected=f"one vocabulary of more than {int(tokens.max())} tokens",
            found=", ".join(map(str, sizes)),
        )


def _check_contexts(models: Sequence[Model], length: int) -> None:
    for model in models:
        if length > model.plan.max_positions:
            raise UsageError(
                "the windows are longer than the model's context",
                where=model.checkpoint.path,
                expected=f"at most {model.plan.max_positions} tokens",
                found=length,
                do="Ask for shorter ones with --window",
            )


def _hidden(model: Model, windows: NDArray[np.int64]) -> list[dict[str, Array]]:
    """What the head reads, for each window: all stages but the last, one stage at a time."""
    flowing = [start_buffers(model.as_array(window[None, :])) for window in windows]
    for stage in model.plan.stages[:-1]:
        context = Context(model.stage_weights(stage))

        def one(
            buffers: dict[str, Array], stage: Stage = stage, context: Context = context
        ) -> dict[str, Array]:
            with np.errstate(over="ignore", invalid="ignore"):  # refused where the logits are
                return buffers | run_stage(stage, dict(buffers), context)

        flowing = parallel_map(one, flowing)
    return flowing


@dataclass(frozen=True)
class _Chunk:
    """Windows whose hidden states are in memory for every model."""

    models: Sequence[Model]
    hidden: Sequence[Sequence[dict[str, Array]]]  # by model, by window
    windows: NDArray[np.int64]
    first_scored: int
    with_reference: bool

    def score_window(self, index: int) -> list[TokenScores]:
        tokens = self.windows[index]
        reference: _WindowLogits | None = None
        scores = []
        for model, hidden in zip(self.models, self.hidden, strict=True):
            stage = model.plan.stages[-1]
            context = Context(model.stage_weights(stage))
            with np.errstate(over="ignore", invalid="ignore"):
                logits = as_numpy(run_stage(stage, dict(hidden[index]), context)["logits"][0])
            predicting = logits[self.first_scored - 1 : len(tokens) - 1]
            _check_logits(predicting, model)
            is_reference = self.with_reference and reference is None
            window = _WindowLogits.of(predicting, is_reference)
            reference = window if is_reference else reference
            scores.append(window.scores(tokens[self.first_scored :], reference))
        return scores


def _check_logits(logits: Floats, model: Model) -> None:
    if not np.isfinite(logits).all():
        raise CheckpointError(
            "the model's logits are not finite",
            where=model.checkpoint.path,
            found=logits[~np.isfinite(logits)][0],
            do="Check the checkpoint for NaN, infinite or very large weights",
        )


def _stack(rows: list[TokenScores]) -> TokenScores:
    def join(name: str) -> NDArray[np.float64] | None:
        parts = [getattr(row, name) for row in rows]
        return None if parts[0] is None else np.stack(parts)

    loss, agrees = join("loss"), join("agrees")
    assert loss is not None, "every window has losses"
    return TokenScores(
        loss,
        join("divergence"),
        None if agrees is None else agrees.astype(np.bool_),
        join("probability_change"),
    )
