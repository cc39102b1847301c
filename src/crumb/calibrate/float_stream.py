"""Targets that answer for what earlier layers lost: the float model beside the quantized one.

In: the float checkpoint, calibration tokens, weights of them, the quantized model's walk. Out: of
each group of linear layers a Correction: its weights put out, of what the quantized model reads,
nearly what the float ones put out of what the float model reads (asymmetric calibration; GPTAQ,
arXiv 2504.02692). One text in four is held out: the correction is taken by the share that leaves
them the least error, and not at all where it leaves them more. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.calibrate.walk import LinearGroup, StageWalk, walk_model
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.kernels.products import multiply
from crumb.kernels.threads import parallel_map, single_blas
from crumb.texts.pairs import PairTokens

Floats = NDArray[np.float32]

HELD_OUT = 4
"""Every so many texts one is held out."""

DAMPING = 0.01
"""Share of the mean diagonal of H, added to it."""

JUDGED_ROWS = 1024
"""Of a matrix, about so many judge how much of a correction is taken."""

ROWS_AT_ONCE = 8192
"""Of a matrix that are read together."""

COLUMNS_TOGETHER = 192
"""Of moments, that one thread sums."""


@dataclass(frozen=True)
class Correction:
    """What a group's weights W become: W + W @ matrix."""

    matrix: Floats  # (in_features, in_features)
    share: float  # of the whole correction, above 0, at most 1

    def of(self, weights: Floats) -> Floats:
        """Shapes: (rows, in_features) -> the same, whatever the number of processors."""
        return np.asarray(weights + multiply(weights, self.matrix), np.float32)


@dataclass(frozen=True)
class StreamMoments:
    """Weighted sums over some tokens."""

    cross: Floats  # (in_features, in_features), (x - y) y^T; x of the float model
    second: Floats  # (in_features, in_features), y y^T

    def solved(self) -> Floats:
        """A with A y nearest to x - y. Raises: LinAlgError."""
        damping = DAMPING * float(np.trace(self.second)) / len(self.second)
        damped = self.second + np.float32(damping) * np.eye(len(self.second), dtype=np.float32)
        with single_blas():
            return np.asarray(np.linalg.solve(damped, self.cross.T).T, np.float32)

    def add(self, other: StreamMoments) -> None:
        """In place: these are large."""
        for total, more in ((self.cross, other.cross), (self.second, other.second)):
            total += more


@dataclass(frozen=True, eq=False)
class PairedText:
    """One text as a group of layers reads it in both models, (tokens, in_features)."""

    exact: Floats  # of the float model
    read: Floats
    weights: Floats  # (tokens, 1)


class FloatStream:
    """The float model on its way; at each group where the quantized one is."""

    def __init__(self, checkpoint: Checkpoint, tokens: NDArray[np.int64] | PairTokens) -> None:
        self._tensors = checkpoint.tensors
        self._groups = walk_model(checkpoint, tokens)
        self._walk: StageWalk

    def advance(self) -> None:
        """Go on to the next group of layers."""
        self._walk, _ = next(self._groups)

    def correction(
        self, walk: StageWalk, group: LinearGroup, weights: Floats | None
    ) -> Correction | None:
        """Of the group where both walks are; None where it helps no text that is held out.

        Shapes: weights (tokens,).
        """
        texts = list(self._texts(walk, group, weights))
        learned = _moments([text for number, text in enumerate(texts) if not _held_out(number)])
        judges = [text for number, text in enumerate(texts) if _held_out(number)]
        if not judges or not np.isfinite(learned.second).all():
            return None  # what is not finite is refused by the statistics, by name
        judged = _moments(judges)
        try:
            share = self._share(group, learned.solved(), judged)
            if share <= 0.0:
                return None
            learned.add(judged)
            whole = learned.solved()
        except np.linalg.LinAlgError:
            return None
        return Correction(whole * np.float32(share), share)

    def _share(self, group: LinearGroup, full: Floats, judged: StreamMoments) -> float:
        """By how much of a correction the error of the texts held out falls most, from 0 to 1.

        With W the weights it is quadratic in the share s: tr(W (E - 2 s C A^T + s^2 A H A^T) W^T).
        """
        falling = curvature = 0.0
        for linear in group.linears:
            stride = max(1, linear.out_features // JUDGED_ROWS)
            for _, rows in self._tensors.slices(linear.weight, ROWS_AT_ONCE):
                chosen = rows[::stride]
                with single_blas():
                    changed = chosen @ full
                    falling += float(np.vdot(chosen @ judged.cross, changed))
                    curvature += float(np.vdot(changed @ judged.second, changed))
        share = falling / curvature if curvature > 0.0 else 0.0
        return min(max(share, 0.0), 1.0) if np.isfinite(share) else 0.0

    def _texts(
        self, walk: StageWalk, group: LinearGroup, weights: Floats | None
    ) -> Iterator[PairedText]:
        begin = 0
        both = zip(self._walk.inputs(group), walk.inputs(group), walk.flowing, strict=True)
        for exact, read, batch in both:
            length = len(read) // len(batch.tokens)
            for row in range(0, len(read), length):
                own = slice(begin + row, begin + row + length)
                counted = np.ones(length, np.float32) if weights is None else weights[own]
                rows = slice(row, row + length)
                yield PairedText(exact[rows], read[rows], counted[:, None])
            begin += len(read)


def _held_out(number: int) -> bool:
    return number % HELD_OUT == HELD_OUT - 1


def _moments(texts: list[PairedText]) -> StreamMoments:
    features = texts[0].read.shape[1]
    moments = StreamMoments(*(np.zeros((features, features), np.float32) for _ in range(2)))

    def some(begin: int) -> None:
        columns = slice(begin, begin + COLUMNS_TOGETHER)
        with np.errstate(invalid="ignore", over="ignore"):
            for text in texts:
                read = text.read[:, columns]
                weighted = text.read * text.weights
                moments.cross[columns] += (text.exact[:, columns] - read).T @ weighted
                moments.second[columns] += read.T @ weighted

    parallel_map(some, range(0, features, COLUMNS_TOGETHER))
    return moments
