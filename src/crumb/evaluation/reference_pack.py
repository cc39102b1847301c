"""The reference pack: enough of a float model's predictions to measure a quantized one without it.

In: a float model and windows; later a model and the file. Out: a file of a few MB: of every
position the likeliest tokens, and some drawn from the tail, with their log-probabilities; then
TokenScores and how sure they are. The sum over the likeliest tokens is exact, the tail's part an
unbiased estimate. Refuses files that are broken, and models of another vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.safetensors import ArrayToWrite, StoredArray, read_header, write_file
from crumb.errors import CheckpointError, UsageError
from crumb.evaluation.execution import Execution, ExecutorKind, block_tokens
from crumb.evaluation.report import PackBound
from crumb.evaluation.scores import TokenScores, check_windows
from crumb.evaluation.walks import Blocks, walk
from crumb.run.model import Model
from crumb.texts.windows import Windows

PACK = "reference.pack"
"""The file beside a model's weights."""

FORMAT, VERSION = "crumb-reference-pack", "1"

TOP_TOKENS = 64
"""Likeliest tokens of a position."""

DRAWN_TOKENS = 64
"""Of those behind them, drawn by their probability."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class ReferencePack:
    """What a float model predicted; arrays begin with (windows, scored)."""

    model: str
    windows: Windows
    loss: Floats  # of the token that followed, nats
    tail: Floats  # probability of all tokens behind the likeliest
    tokens: NDArray[np.uint32]  # (..., top + drawn), the likeliest first
    log_probabilities: Floats  # of those

    @property
    def top(self) -> int:
        """How many of the tokens are the likeliest."""
        return int(self.tokens.shape[-1]) - DRAWN_TOKENS


@dataclass(frozen=True)
class _Positions:
    """Some positions of one window on their way into the pack, or through it."""

    loss: Doubles
    tail: Doubles
    tokens: NDArray[np.uint32]
    log_probabilities: Doubles


def make_pack(
    model: Model, windows: Windows, progress: Progress = lambda done, total: None
) -> ReferencePack:
    """What the model predicts, a stage of it in memory at a time.

    Raises: UsageError, CheckpointError.
    """
    check_windows([model], windows.tokens)

    def visit(index: int, blocks: Sequence[Blocks]) -> list[_Positions]:
        rows, begin = [], windows.first_scored
        generator = np.random.default_rng(index)
        for logits in _in_parts(blocks[0]):
            following = windows.tokens[index, begin : begin + len(logits)]
            rows.append(_packed(_log_softmax(logits), following, generator))
            begin += len(logits)
        return rows

    execution = Execution(ExecutorKind.ARRAY)
    parts = walk([model], [execution], windows.tokens, windows.first_scored, visit, progress)

    def stacked(name: str, dtype: Any) -> NDArray[Any]:
        of_windows = [np.concatenate([getattr(row, name) for row in rows]) for rows in parts]
        return np.stack(of_windows).astype(dtype)

    return ReferencePack(
        model.checkpoint.path.name,
        windows,
        stacked("loss", np.float32),
        stacked("tail", np.float32),
        stacked("tokens", np.uint32),
        stacked("log_probabilities", np.float32),
    )


def _in_parts(blocks: Iterable[Floats]) -> Iterator[Floats]:
    """Some rows at a time: their distributions and sums take eight times what the logits do."""
    for logits in blocks:
        rows = block_tokens(logits.shape[1], len(logits))
        for begin in range(0, len(logits), rows):
            yield logits[begin : begin + rows]


def _log_softmax(logits: Floats) -> Doubles:
    """Shapes: (rows, vocabulary) -> the same."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _packed(
    log_probabilities: Doubles, following: NDArray[np.int64], generator: np.random.Generator
) -> _Positions:
    """The likeliest tokens of each row, and drawn ones of the rest."""
    rows, vocabulary = log_probabilities.shape
    top = min(TOP_TOKENS, vocabulary)
    each = np.arange(rows)[:, None]
    likeliest = np.argpartition(log_probabilities, vocabulary - top, axis=-1)[:, -top:]
    falling = np.argsort(-log_probabilities[each, likeliest], axis=-1, kind="stable")
    likeliest = likeliest[each, falling]
    rest = np.exp(log_probabilities)
    rest[each, likeliest] = 0.0
    sums = np.cumsum(rest, axis=-1)
    tail = sums[:, -1].copy()
    # one draw in each of as many equal parts of the tail: less noise than drawing freely
    places = (np.arange(DRAWN_TOKENS) + generator.random((rows, DRAWN_TOKENS))) / DRAWN_TOKENS
    drawn = np.empty((rows, DRAWN_TOKENS), np.int64)
    for row in range(rows):
        drawn[row] = np.searchsorted(sums[row], places[row] * tail[row], side="right")
    drawn = np.minimum(drawn, vocabulary - 1)
    tokens = np.concatenate([likeliest, drawn], axis=-1)
    return _Positions(
        -log_probabilities[np.arange(rows), following],
        tail,
        tokens.astype(np.uint32),
        log_probabilities[each, tokens],
    )


def score_on_pack(
    model: Model,
    pack: ReferencePack,
    execution: Execution,
    progress: Progress = lambda done, total: None,
) -> tuple[TokenScores, TokenScores, PackBound]:
    """Scores of a model, those of the reference, and how sure the divergence is.

    Raises: UsageError, CheckpointError.
    """
    windows = pack.windows
    check_windows([model], windows.tokens)
    if int(pack.tokens.max()) >= model.plan.vocabulary:
        raise UsageError(
            "the model does not have the vocabulary of the reference pack",
            where=model.checkpoint.path,
            expected=f"more than {int(pack.tokens.max())} tokens",
            found=model.plan.vocabulary,
        )

    def visit(index: int, blocks: Sequence[Blocks]) -> NDArray[np.float64]:
        rows, begin = [], 0
        for logits in blocks[0]:
            here = slice(begin, begin + len(logits))
            following = windows.tokens[index, windows.first_scored :][here]
            rows.append(_compared(_log_softmax(logits), following, pack, index, here))
            begin += len(logits)
        return np.concatenate(rows, axis=-1)

    parts = walk([model], [execution], windows.tokens, windows.first_scored, visit, progress)
    loss, divergence, variance, lower, agrees = np.stack(parts, axis=1)
    if not np.isfinite(loss).all():
        raise CheckpointError("the model's logits are not finite", where=model.checkpoint.path)
    reference = pack.loss.astype(np.float64)
    scores = TokenScores(
        loss, divergence, agrees.astype(np.bool_), np.exp(-loss) - np.exp(-reference)
    )
    bound = PackBound(math.sqrt(variance.sum()) / variance.size, float(lower.mean()))
    return scores, TokenScores(reference, None, None, None), bound


def _compared(
    log_probabilities: Doubles,
    following: NDArray[np.int64],
    pack: ReferencePack,
    index: int,
    here: slice,
) -> Doubles:
    """Loss, divergence, its variance, its lower bound, agreement of each row. Shapes: (5, rows)."""
    tokens, top = pack.tokens[index, here].astype(np.int64), pack.top
    tail = pack.tail[index, here].astype(np.float64)
    rows = np.arange(len(tokens))
    reference = pack.log_probabilities[index, here].astype(np.float64)
    model = log_probabilities[rows[:, None], tokens]
    difference = reference - model
    of_top = (np.exp(reference[:, :top]) * difference[:, :top]).sum(axis=-1)
    drawn = difference[:, top:]
    model_tail = np.maximum(1.0 - np.exp(model[:, :top]).sum(axis=-1), LEAST_TAIL)
    safe_tail = np.maximum(tail, LEAST_TAIL)
    return np.stack(
        [
            -log_probabilities[rows, following],
            of_top + tail * drawn.mean(axis=-1),
            tail**2 * drawn.var(axis=-1, ddof=1) / DRAWN_TOKENS,
            of_top + tail * np.log(safe_tail / model_tail),
            tokens[:, 0] == log_probabilities.argmax(axis=-1),
        ]
    )


LEAST_TAIL = 1e-12
"""Of a sum of rounded probabilities, below which a tail is nothing."""


def write_pack(pack: ReferencePack, path: Path) -> None:
    """Write the file."""
    windows = pack.windows
    arrays = {
        "windows": windows.tokens.astype(np.int32),
        "loss": pack.loss,
        "tail": pack.tail,
        "tokens": pack.tokens,
        "log_probabilities": pack.log_probabilities,
    }
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": pack.model,
        "text": windows.text,
        "text_sha256": windows.text_sha256,
        "protocol": windows.protocol,
        "first_scored": str(windows.first_scored),
    }
    written = {
        name: ArrayToWrite(array.dtype, array.shape, lambda array=array: array)  # type: ignore[misc]
        for name, array in arrays.items()
    }
    write_file(path, written, metadata)


def read_pack(path: Path) -> ReferencePack:
    """The pack of a file. Raises: CheckpointError."""
    arrays, metadata = read_header(path)
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise CheckpointError(
            "this is no reference pack that is read here",
            where=path,
            expected=f"{FORMAT}, version {VERSION}",
            found=f"{metadata.get('format')}, version {metadata.get('version')}"[:80],
        )
    tokens = _array(path, arrays, "windows", "int32", None)
    said = metadata.get("first_scored", "")
    if not said.isdecimal():
        raise CheckpointError("first_scored is no number", where=path, found=said[:40])
    first = int(said)
    if tokens.ndim != 2 or not 1 <= first < tokens.shape[1] or tokens.min() < 0:
        raise CheckpointError("windows that cannot be", where=path, found=list(tokens.shape))
    scored = (tokens.shape[0], tokens.shape[1] - first)
    lists = _array(path, arrays, "tokens", "uint32", None)
    if lists.ndim != 3 or lists.shape[:2] != scored or lists.shape[2] <= DRAWN_TOKENS:
        raise CheckpointError("a pack without its tokens", where=path, found=list(lists.shape))
    windows = Windows(
        tokens.astype(np.int64),
        first,
        metadata.get("protocol", ""),
        metadata.get("text", ""),
        metadata.get("text_sha256", ""),
    )
    return ReferencePack(
        metadata.get("model", ""),
        windows,
        _array(path, arrays, "loss", "float32", scored),
        _array(path, arrays, "tail", "float32", scored),
        lists,
        _array(path, arrays, "log_probabilities", "float32", lists.shape),
    )


def _array(
    path: Path,
    arrays: dict[str, StoredArray],
    name: str,
    dtype: str,
    shape: tuple[int, ...] | None,
) -> NDArray[Any]:
    """One array, of finite numbers. Raises: CheckpointError."""
    array = arrays.get(name)
    if array is None or array.dtype.name != dtype or shape not in (None, array.shape):
        raise CheckpointError(
            "a reference pack lacks an array, or has another one",
            where=f"{path}: {name}",
            expected=f"{dtype} {'' if shape is None else list(shape)}",
            found=None if array is None else f"{array.dtype.name} {list(array.shape)}",
        )
    content = array.read()
    if not np.isfinite(content).all():
        raise CheckpointError("a number is not finite", where=f"{path}: {name}")
    return content
