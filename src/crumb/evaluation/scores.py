"""Score models on the same windows in one pass: the loss and divergence of every token.

In: a reference (or none), candidates, windows of tokens. Out: TokenScores for each model.
Logits come in blocks of rows and are worked on in place, so their memory is bounded.
Refuses models whose vocabularies differ, windows longer than a model's context, and logits that
are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.errors import CheckpointError, UsageError
from crumb.evaluation.execution import Execution
from crumb.evaluation.walks import Blocks, walk
from crumb.run.model import Model

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class TokenScores:
    """What one model did with every scored token; all arrays (windows, scored)."""

    loss: Doubles  # -log p(token), nats
    divergence: Doubles | None  # KL(reference || model), nats; None without a reference
    agrees: NDArray[np.bool_] | None  # same most likely token as the reference
    probability_change: Doubles | None  # p(token) minus the reference's


@dataclass(frozen=True)
class _Block:
    """Some rows of one model's logits, with what is needed of their softmax."""

    logits: Floats  # (rows, vocabulary)
    best: NDArray[np.intp]  # (rows,) most likely token
    log_total: Floats  # (rows,) log of the sum of exponentials
    log_probability: Doubles  # (rows,) of the token that followed
    probability: Floats | None  # (rows, vocabulary), reference only

    @classmethod
    def of(cls, logits: Floats, tokens: Tokens, with_probability: bool, model: Model) -> _Block:
        """Exponentials are made once, in one array as large as the logits."""
        rows = np.arange(len(logits))
        best = logits.argmax(axis=-1)
        top = logits[rows, best]
        for extreme in (top, logits.min(axis=-1)):  # a NaN is both
            _check_finite(extreme, model)
        power = logits - top[:, None]
        np.exp(power, out=power)
        total = power.sum(axis=-1)
        log_total = top + np.log(total)
        if with_probability:
            power /= total[:, None]
        log_probability = logits[rows, tokens].astype(np.float64) - log_total
        return cls(logits, best, log_total, log_probability, power if with_probability else None)

    def scores(self, reference: _Block | None) -> TokenScores:
        """Loss of each token, and divergence from the reference's softmax if there is one.

        The logits are no longer these after a comparison.
        """
        if reference is None or reference.probability is None:
            return TokenScores(-self.log_probability, None, None, None)
        shift = (self.log_total - reference.log_total).astype(np.float64)
        difference = np.subtract(reference.logits, self.logits, out=self.logits)
        divergence = np.vecdot(reference.probability, difference) + shift
        return TokenScores(
            -self.log_probability,
            np.maximum(divergence, 0.0),
            self.best == reference.best,
            np.exp(self.log_probability) - np.exp(reference.log_probability),
        )


@dataclass(frozen=True)
class _Scorer:
    """Scores one window of every model, block by block."""

    models: Sequence[Model]
    windows: Tokens
    first_scored: int
    with_reference: bool

    def score_window(self, index: int, blocks: Sequence[Blocks]) -> list[TokenScores]:
        rows: list[list[TokenScores]] = []
        begin = self.first_scored
        for together in zip(*blocks, strict=True):
            tokens = self.windows[index, begin : begin + len(together[0])]
            rows.append(self.score_block(tokens, together))
            begin += len(tokens)
        return [_join(list(parts), np.concatenate) for parts in zip(*rows, strict=True)]

    def score_block(self, tokens: Tokens, together: Sequence[Floats]) -> list[TokenScores]:
        reference: _Block | None = None
        scores = []
        for model, logits in zip(self.models, together, strict=True):
            is_reference = self.with_reference and reference is None
            block = _Block.of(logits, tokens, is_reference, model)
            reference = block if is_reference else reference
            scores.append(block.scores(None if is_reference else reference))
        return scores


def score(
    models: Sequence[Model],
    tokens: Tokens,
    first_scored: int,
    with_reference: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
    execution: Execution | None = None,
) -> list[TokenScores]:
    """Scores of every model on the same windows; with_reference makes models[0] the reference.

    Shapes: tokens (windows, length); tokens from first_scored on are scored.
    progress(done, total) counts windows. Raises: UsageError, CheckpointError, DoesNotFit.
    """
    check_windows(models, tokens)
    execution = execution or Execution()
    executions = [execution] * len(models)
    if with_reference:
        executions[0] = execution.of_reference()
    scorer = _Scorer(models, tokens, first_scored, with_reference)
    rows = walk(models, executions, tokens, first_scored, scorer.score_window, progress)
    return [_join([row[index] for row in rows], np.stack) for index in range(len(models))]


def check_windows(models: Sequence[Model], tokens: Tokens) -> None:
    """Refuse windows that some model cannot run. Raises: UsageError."""
    _check_vocabularies(models, tokens)
    _check_contexts(models, tokens.shape[1])


def _check_vocabularies(models: Sequence[Model], tokens: Tokens) -> None:
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


def _check_finite(logits: Floats, model: Model) -> None:
    if not np.isfinite(logits).all():
        raise CheckpointError(
            "the model's logits are not finite",
            where=model.checkpoint.path,
            found=logits[~np.isfinite(logits)][0],
            do="Check the checkpoint for NaN, infinite or very large weights",
        )


def _join(parts: list[TokenScores], join: Callable[[list[Doubles]], Doubles]) -> TokenScores:
    """Scores put together: blocks of a window one after the other, or windows stacked."""

    def joined(name: str) -> Doubles | None:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else join(arrays)

    loss, agrees = joined("loss"), joined("agrees")
    assert loss is not None, "every window has losses"
    return TokenScores(
        loss,
        joined("divergence"),
        None if agrees is None else agrees.astype(np.bool_),
        joined("probability_change"),
    )
