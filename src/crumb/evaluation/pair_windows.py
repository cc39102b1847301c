"""What is scored of a model that reads a source: the targets of pairs, given what came before.

In: a model, a text's name. Out: Windows whose rows are source, start token, target; the targets are
scored. A text is cut into stretches with spans left out (protocol t5-spans), a file of pairs is
taken as it is (protocol pairs), those of one shape together.
Refuses other protocols, and what the readers of texts refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from crumb.errors import TextError, UsageError
from crumb.evaluation.scores import TokenScores
from crumb.requests.evaluate_request import EvaluateRequest
from crumb.run.model import Model
from crumb.run.source_texts import pair_tokens
from crumb.texts.pairs import (
    PairMarks,
    has_pairs,
    leave_spans_out,
    read_pairs,
    rows_of,
    whole_tokens,
)
from crumb.texts.sources import Text
from crumb.texts.windows import Windows, token_stream

SPANS, PAIRS = "t5-spans", "pairs"
"""Names of the protocols, as evaluations have them."""

DEFAULT = EvaluateRequest.protocol

ROW_TOKENS = 512
"""Of a stretch of text: its source, its target and the start between them."""

SEED = 0
"""Of the spans that are left out: the same for all models of a vocabulary."""


def cut_pair_windows(model: Model, text: Text, request: EvaluateRequest) -> list[Windows]:
    """Windows of each shape that there is. Raises: UsageError, TextError, CheckpointError."""
    protocol = PAIRS if has_pairs(text) else SPANS
    if request.protocol not in (DEFAULT, protocol):
        raise UsageError(
            "no such protocol for a model that reads a source",
            where=text.name,
            expected=protocol,
            found=repr(request.protocol[:80]),
        )
    return (_of_pairs if protocol == PAIRS else _of_text)(model, text, request)


def _of_text(model: Model, text: Text, request: EvaluateRequest) -> list[Windows]:
    marks, tokenizer = _marks(model), model.tokenizer
    row = request.window_tokens or min(ROW_TOKENS, model.plan.max_positions)
    length = whole_tokens(row)
    stream = token_stream(text, lambda words: tokenizer.encode(words, special=False))
    count = min(len(stream) // length, request.limit_windows or len(stream))
    if not count:
        raise TextError(
            "this text is shorter than one window",
            where=text.name,
            expected=f"at least {length} tokens",
            found=f"{len(stream)} tokens",
            do="Give a longer text, or shorter windows",
        )
    stretches = stream[: count * length].reshape(count, length)
    rows = leave_spans_out(stretches, marks, np.random.default_rng(SEED))
    return [Windows(rows.tokens, rows.source_tokens + 1, SPANS, text.name, text.sha256)]


def _of_pairs(model: Model, text: Text, request: EvaluateRequest) -> list[Windows]:
    pairs = read_pairs(text, model.tokenizer.encode)[: request.limit_windows]
    most = min(request.window_tokens or ROW_TOKENS, model.plan.max_positions) // 2
    groups = rows_of(pairs, _marks(model), most).groups
    return [
        Windows(each.tokens, each.source_tokens + 1, PAIRS, text.name, text.sha256)
        for each in groups
    ]


def _marks(model: Model) -> PairMarks:
    return PairMarks(*pair_tokens(model.checkpoint, model.tokenizer))


def together(groups: Sequence[Windows]) -> Windows:
    """All that is scored in one row, as `joined` has the scores."""
    if len(groups) == 1:
        return groups[0]
    scored = [each.tokens[:, each.first_scored :].reshape(-1) for each in groups]
    row = np.concatenate([[0], *scored])[None, :]
    return Windows(row, 1, groups[0].protocol, groups[0].text, groups[0].text_sha256)


def joined(groups: Sequence[TokenScores]) -> TokenScores:
    """Scores of all groups in one row: tokens count alike, whatever pair they belong to."""
    if len(groups) == 1:
        return groups[0]

    def row(of: Callable[[TokenScores], np.ndarray | None]) -> np.ndarray | None:
        arrays = [of(each) for each in groups]
        rows = [array.reshape(-1) for array in arrays if array is not None]
        return np.concatenate(rows)[None, :] if rows else None

    loss = row(lambda each: each.loss)
    assert loss is not None, "every token has a loss"
    return TokenScores(
        loss,
        row(lambda each: each.divergence),
        row(lambda each: each.agrees),
        row(lambda each: each.probability_change),
    )
