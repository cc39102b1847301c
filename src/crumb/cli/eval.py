"""`crumb eval`: perplexity of a model and its divergence from a reference, or tasks, with errors.

In: a model, a text, a protocol; or tasks. Out: figures on stdout; exit 3 when a --fail-if condition
holds. Refuses tasks beside a reference or conditions, which are about texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from crumb.cli.option_groups import ENGINE, ONE_WAY, OUTPUT, TASKS, TEXT
from crumb.cli.output import bytes_text, log_cost, print_json, print_table, progress_bar
from crumb.cli.whole_number import OptionalWhole
from crumb.errors import UsageError
from crumb.evaluation.comparison import evaluate as run_evaluate
from crumb.evaluation.execution import ExecutorKind
from crumb.evaluation.report import Evaluation, FailCondition, Figure
from crumb.evaluation.tasks import evaluate_tasks as run_evaluate_tasks
from crumb.fitting.evaluation_cost import estimating
from crumb.requests.evaluate_request import EvaluateRequest
from crumb.requests.tasks_request import TasksRequest, make_tasks_request
from crumb.run.memory_plan import ActivationKind


@TASKS
@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Measure on tasks in place of a text.

    Attributes:
        tasks: tasks of lm-evaluation-harness, such as arc_easy,hellaswag, or .yaml files that
            say what a task is; needs the extra `tasks`. They are run in this process.
        examples: how many answered questions are shown before each; by default as the task says.
        chat: ask in the model's chat template.
        context: most tokens of a question; by default 4096 or what the model has.
    """

    tasks: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    examples: OptionalWhole = None
    chat: Annotated[bool, Parameter(negative=())] = False
    context: OptionalWhole = None

    def request(self, model: str, limit: int | None, activations: ActivationKind) -> TasksRequest:
        """What is asked. Raises: UsageError."""
        return make_tasks_request(
            model,
            ",".join(self.tasks),
            examples=self.examples,
            limit=limit,
            chat=self.chat,
            context_tokens=self.context,
            activations=activations.value,
        )


TASK_DEFAULTS = TaskOptions()


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
    tasks: TaskOptions = TASK_DEFAULTS,
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
        limit: score only so many windows, or questions of each task.
        activations: f32 measures the weights; int8 measures what running them costs, with the
            f16 cache. A reference is always run in f32.
        executor: native, or array: slow and plain, the oracle of the other.
        fail_if: exit with 3 if this holds, as 'kl > 0.05' or 'perplexity_ratio > 1.1'; repeatable.
        json: print the figures as JSON.
    """
    if tasks.tasks:
        if reference is not None or fail_if:
            raise UsageError("tasks have no reference and no conditions", where="--tasks")
        evaluate_on_tasks(tasks.request(model, limit, activations), json)
        return
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


def evaluate_on_tasks(request: TasksRequest, as_json: bool) -> None:
    """Measure on tasks, and print the figures."""
    with progress_bar() as bar:
        evaluation = run_evaluate_tasks(request, bar)
    if as_json:
        print_json(evaluation)
        return
    print(
        f"{evaluation.model}\n  lm-eval {evaluation.harness}, {evaluation.activations} "
        f"activations, {evaluation.cache} cache, context {evaluation.context_tokens}"
    )
    rows = [
        (
            each.task,
            each.metric if each.filter == "none" else f"{each.metric} ({each.filter})",
            figure_text(Figure(each.value, each.standard_error)),
            str(each.questions),
            "" if each.examples is None else str(each.examples),
        )
        for each in evaluation.figures
    ]
    print_table(("task", "metric", "value", "questions", "examples"), rows)


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
    if evaluation.bits_per_byte is not None:
        lines.append(("bits per byte", f"{evaluation.bits_per_byte:.4f}"))
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
