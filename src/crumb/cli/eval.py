"""`crumb eval`: perplexity of a model and its divergence from a reference, with errors.

In: a model, a text, a protocol. Out: figures on stdout; exit 3 when a --fail-if condition holds.
"""

from __future__ import annotations

from typing import Annotated

from crumb.cli.option_groups import ENGINE, ONE_WAY, OUTPUT, TEXT
from crumb.cli.output import bytes_text, log_cost, print_json, progress_bar
from crumb.cli.whole_number import OptionalWhole
from crumb.evaluation.comparison import evaluate as run_evaluate
from crumb.evaluation.execution import ExecutorKind
from crumb.evaluation.report import Evaluation, FailCondition, Figure
from crumb.fitting.evaluation_cost import estimating
from crumb.requests.evaluate_request import EvaluateRequest
from crumb.run.memory_plan import ActivationKind


def evaluate(
    model: str,
    /,
    *,
    reference: Annotated[str | None, OUTPUT] = None,
    text: Annotated[str, TEXT] = "wikitext2",
    protocol: Annotated[str, TEXT] = "gptq",
    window: Annotated[OptionalWhole, TEXT] = None,
    limit: Annotated[OptionalWhole, TEXT] = None,
    activations: Annotated[ActivationKind, ENGINE] = ActivationKind.F32,
    executor: Annotated[ExecutorKind, ENGINE] = ExecutorKind.NATIVE,
    fail_if: Annotated[tuple[str, ...], OUTPUT, ONE_WAY] = (),
    json: Annotated[bool, OUTPUT, ONE_WAY] = False,
) -> None:
    """Measure a model, quantized or not; with --reference also how far it moved.

    Args:
        model: directory, .gguf file, org/name, or org/name@revision.
        reference: the float model to compare with, token by token; or pack, the reference pack
            beside the model, or FILE.pack: the pack has a text of its own.
        text: a file, a directory, wikitext2, ptb, c4, or excerpt-evaluation.
        protocol: gptq (windows of 2048, all but the first token scored) or llama.cpp (512, second
            half scored).
        window: another window length in tokens; the result says which.
        limit: score only so many windows.
        activations: f32 measures the weights; int8 measures what running them costs, with the
            f16 cache. A reference is always run in f32.
        executor: native, or array: slow and plain, the oracle of the other.
        fail_if: exit with 3 if this holds, as 'kl > 0.05' or 'perplexity_ratio > 1.1'; repeatable.
        json: print the figures as JSON.
    """
    gates = [FailCondition.parse(condition) for condition in fail_if]
    for gate in gates:
        gate.check_usable(reference is not None)
    request = EvaluateRequest(
        model, reference, text, protocol, window, limit, activations.value, executor.value
    )
    with progress_bar() as bar:
        evaluation = run_evaluate(request, bar, estimating(log_cost))
    print_json(evaluation) if json else print_evaluation(evaluation)
    for gate in gates:
        gate.check(evaluation)


def figure_text(figure: Figure, digits: int = 4) -> str:
    """A value with its standard error."""
    if figure.standard_error is None:
        return f"{figure.value:.{digits}f}"
    return f"{figure.value:.{digits}f} ± {figure.standard_error:.{digits}f}"


def print_evaluation(evaluation: Evaluation) -> None:
    """Every figure of one evaluation, one line each."""
    print(f"{evaluation.model}")
    print(
        f"  {bytes_text(evaluation.file_bytes)}, {evaluation.bits_per_weight:.3f} bits per weight "
        "of the whole file"
    )
    print(
        f"  {evaluation.text}, protocol {evaluation.protocol}, {evaluation.windows} windows of "
        f"{evaluation.window_tokens}, {evaluation.scored_tokens} tokens scored"
    )
    print(
        f"  {evaluation.executor} executor, {evaluation.activations} activations, "
        f"{evaluation.cache} cache"
    )
    lines = [("perplexity", figure_text(evaluation.perplexity))]
    divergence = evaluation.divergence
    if divergence is not None:
        lines += [
            ("perplexity ratio", figure_text(divergence.perplexity_ratio, 5)),
            ("KL, mean", f"{figure_text(divergence.kl, 6)} nats"),
            ("KL, median", f"{divergence.kl_median:.6f}"),
            ("KL, 99 %", f"{divergence.kl_99:.6f}"),
            ("KL, 99.9 %", f"{divergence.kl_99_9:.6f}"),
            ("KL, max", f"{divergence.kl_max:.6f}"),
            ("top-1 agreement", figure_text(divergence.top1_agreement, 5)),
            ("RMS change of p(token)", f"{divergence.probability_rms:.5f}"),
        ]
    for name, value in lines:
        print(f"  {name:<24} {value}")
    if evaluation.pack is not None:
        bound = evaluation.pack
        print(
            f"  the pack's own error of the KL is {bound.standard_error:.6f}; it is above "
            f"{bound.lower_bound:.6f}"
        )
    if divergence is not None:
        print(f"  against {evaluation.reference}")
    print("  ± is the standard error from the spread between windows")
