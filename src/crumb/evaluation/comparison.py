"""Evaluate models on one text in one pass, against a reference where there is one.

In: opened models, a text's name, a protocol. Out: an Evaluation for each model.
Refuses texts shorter than a window and models whose vocabularies differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from crumb.errors import CrumbError, ModelNotFound
from crumb.evaluation.execution import Execution, make_execution
from crumb.evaluation.pair_windows import cut_pair_windows, joined, together
from crumb.evaluation.reference_pack import PACK, read_pack, score_on_pack
from crumb.evaluation.report import Evaluation, divergence, perplexity
from crumb.evaluation.scores import TokenScores, check_windows, score
from crumb.progress import ProgressClock, ProgressListener, untold
from crumb.requests.evaluate_request import EvaluateRequest
from crumb.run.model import Model, open_model
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text
from crumb.texts.windows import Windows, cut_windows

Begin = Callable[[Sequence[Model], Windows, Execution], None]
"""Told what an evaluation is about to score."""


BESIDE = "pack"
"""The word for the pack beside a model's weights, where a reference is asked for."""


def is_pack(reference: str | None) -> bool:
    """Whether a reference is a pack and not a model."""
    return reference is not None and (reference == BESIDE or reference.endswith(Path(PACK).suffix))


def evaluate_models(
    candidates: Sequence[Model],
    reference: Model | None,
    windows: Windows,
    progress: ProgressListener = untold,
    execution: Execution | None = None,
) -> list[Evaluation]:
    """Evaluations in the order reference (if any), candidates.

    The reference is always run exactly. Raises: UsageError, CheckpointError, DoesNotFit.
    """
    clock = ProgressClock(progress)

    def scored(done: int, total: int) -> None:
        clock(done / total, f"{done} of {total} windows")

    execution = execution or Execution()
    models = [*([] if reference is None else [reference]), *candidates]
    with_reference = reference is not None
    scores = score(models, windows.tokens, windows.first_scored, with_reference, scored, execution)
    against = scores[0] if with_reference else None
    evaluations = []
    for model, each in zip(models, scores, strict=True):
        is_reference = each is against
        ran = execution.of_reference() if is_reference else execution
        compared = None if is_reference else against
        evaluations.append(make_evaluation(model, each, windows, ran, reference, compared))
    return evaluations


def make_evaluation(
    model: Model,
    scores: TokenScores,
    windows: Windows,
    execution: Execution,
    reference: Model | None,
    reference_scores: TokenScores | None,
) -> Evaluation:
    """The figures of one model."""
    size = model.checkpoint.weight_bytes()
    compared = reference is not None and reference_scores is not None
    return Evaluation(
        model=str(model.checkpoint.path),
        reference=str(reference.checkpoint.path) if compared and reference else None,
        text=windows.text,
        text_sha256=windows.text_sha256,
        protocol=windows.protocol,
        window_tokens=windows.length,
        windows=len(windows.tokens),
        scored_tokens=windows.scored_tokens,
        file_bytes=size,
        bits_per_weight=8 * size / model.plan.parameters(),
        executor=execution.executor.value,
        activations=execution.activations.value,
        cache=execution.cache.value,
        perplexity=perplexity(scores),
        divergence=divergence(scores, reference_scores) if reference_scores else None,
        bits_per_byte=bits_per_byte(model, scores, windows),
    )


def bits_per_byte(model: Model, scores: TokenScores, windows: Windows) -> float | None:
    """What coding the scored tokens takes, over the bytes of their text.

    Unlike perplexity it compares models of different vocabularies.
    """
    try:
        decode = model.tokenizer.decode
    except CrumbError:
        return None
    scored = windows.tokens[:, windows.first_scored :]
    size = sum(len(decode(row.tolist()).encode()) for row in scored)
    return float(scores.loss.sum()) / math.log(2) / size if size else None


def evaluate(
    request: EvaluateRequest,
    progress: ProgressListener = untold,
    begin: Begin = lambda models, windows, execution: None,
) -> Evaluation:
    """Evaluate one model by name, against a reference if given.

    A reference may be a pack, which has a text of its own. Activations in f32 measure the weights,
    int8 what running them costs, with its f16 cache; the reference is run in f32.
    begin(models, windows, execution) is told what will be scored.
    Raises: ModelNotFound, CheckpointError, TextError, UsageError, DoesNotFit.
    """
    execution = make_execution(request.activations, request.executor)
    candidate = open_model(request.model)
    if is_pack(request.reference):
        path = pack_path(candidate.checkpoint.path, str(request.reference))
        return evaluate_on_pack(candidate, path, execution, progress)
    against = None if request.reference is None else open_model(request.reference)
    if candidate.plan.inputs:
        return _evaluate_pairs(candidate, against, request, execution, progress, begin)
    windows = cut_windows(
        read_text(request.text, Use.EVALUATION),
        candidate.tokenizer.encode,
        protocol=request.protocol,
        length=request.window_tokens,
        limit=request.limit_windows,
        begin_token=candidate.tokenizer.begin_token,
    )
    models = [against, candidate] if against else [candidate]
    check_windows(models, windows.tokens)
    begin(models, windows, execution)
    return evaluate_models([candidate], against, windows, progress, execution)[-1]


def _evaluate_pairs(
    candidate: Model,
    against: Model | None,
    request: EvaluateRequest,
    execution: Execution,
    progress: ProgressListener,
    begin: Begin,
) -> Evaluation:
    """Of a model that reads a source: the targets of pairs, read from a text or made of it."""
    text, clock = read_text(request.text, Use.EVALUATION), ProgressClock(progress)
    groups = cut_pair_windows(candidate, text, request)
    models = [against, candidate] if against else [candidate]
    pairs, done = sum(len(each.tokens) for each in groups), 0
    for windows in groups:
        check_windows(models, windows.tokens)
    begin(models, groups[0], execution)
    by_group: list[list[TokenScores]] = []
    for windows in groups:

        def scored(count: int, total: int, before: int = done) -> None:
            del total
            clock((before + count) / pairs, f"{before + count} of {pairs} pairs")

        has_reference, tokens = against is not None, windows.tokens
        by_group.append(
            score(models, tokens, windows.first_scored, has_reference, scored, execution)
        )
        done += len(tokens)
    of_each = [joined(scores) for scores in zip(*by_group, strict=True)]
    evaluation = make_evaluation(
        candidate,
        of_each[-1],
        together(groups),
        execution,
        against,
        of_each[0] if against else None,
    )
    mean = sum(each.tokens.size for each in groups) // pairs
    return replace(evaluation, windows=pairs, window_tokens=mean)


def evaluate_on_pack(
    model: Model, path: Path, execution: Execution, progress: ProgressListener = untold
) -> Evaluation:
    """Figures of a model against the float model of a pack. Raises: CheckpointError, UsageError."""
    pack, clock = read_pack(path), ProgressClock(progress)

    def scored(done: int, total: int) -> None:
        clock(done / total, f"{done} of {total} windows")

    scores, reference, bound = score_on_pack(model, pack, execution, scored)
    evaluation = make_evaluation(model, scores, pack.windows, execution, None, None)
    return replace(
        evaluation,
        reference=f"{path} of {pack.model}",
        divergence=divergence(scores, reference),
        pack=bound,
    )


def pack_path(model: Path, reference: str) -> Path:
    """The pack that is meant. Raises: ModelNotFound where it is not there."""
    if reference != BESIDE:
        path = Path(reference)
    else:
        path = (model if model.is_dir() else model.parent) / PACK
    if not path.is_file():
        raise ModelNotFound(
            "there is no reference pack",
            where=path,
            do="`crumb quantize` writes one beside the weights; else give --reference MODEL",
        )
    return path
