"""Evaluate models on one text in one pass, against a reference where there is one.

In: opened models, a text's name, a protocol. Out: an Evaluation for each model.
Refuses texts shorter than a window and models whose vocabularies differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from crumb.evaluate.report import Evaluation, divergence, perplexity
from crumb.evaluate.scores import TokenScores, score
from crumb.run.model import Model, open_model
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text
from crumb.texts.windows import Windows, cut_windows


def evaluate_models(
    candidates: Sequence[Model],
    reference: Model | None,
    windows: Windows,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Evaluation]:
    """Evaluations in the order reference (if any), candidates.

    progress(done, total) counts windows. Raises: UsageError.
    """
    models = [*([] if reference is None else [reference]), *candidates]
    with_reference = reference is not None
    scores = score(models, windows.tokens, windows.first_scored, with_reference, progress)
    against = scores[0] if with_reference else None
    return [
        make_evaluation(model, each, windows, reference, against if each is not against else None)
        for model, each in zip(models, scores, strict=True)
    ]


def make_evaluation(
    model: Model,
    scores: TokenScores,
    windows: Windows,
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
        perplexity=perplexity(scores),
        divergence=divergence(scores, reference_scores) if reference_scores else None,
    )


def evaluate(
    model: str,
    reference: str | None = None,
    text: str = "wikitext2",
    protocol: str = "gptq",
    window_tokens: int | None = None,
    limit_windows: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    begin: Callable[[Sequence[Model], Windows], None] = lambda models, windows: None,
) -> Evaluation:
    """Evaluate one model by name, against a reference if given.

    begin(models, windows) is told what will be scored.
    Raises: ModelNotFound, CheckpointError, TextError, UsageError.
    """
    candidate = open_model(model)
    against = None if reference is None else open_model(reference)
    windows = cut_windows(
        read_text(text, Use.EVALUATION),
        candidate.tokenizer.encode,
        protocol=protocol,
        length=window_tokens,
        limit=limit_windows,
        begin_token=candidate.tokenizer.begin_token,
    )
    begin([candidate, against] if against else [candidate], windows)
    return evaluate_models([candidate], against, windows, progress)[-1]
