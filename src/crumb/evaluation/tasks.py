"""A model on tasks of lm-evaluation-harness, in this process: no server, no copy of the weights.

In: a TasksRequest. Out: every metric of every task with its standard error. The harness reads
the questions and counts; the model's own scores and texts are what it counts.
Refuses, in one line, to work without the package and names that it does not have.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.huggingface.hub import locate
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import UsageError
from crumb.evaluation.execution import CACHES, block_tokens
from crumb.evaluation.harness_model import harness_model
from crumb.progress import ProgressClock, ProgressListener, untold
from crumb.requests.tasks_request import TasksRequest
from crumb.run.language_model import LanguageModel
from crumb.run.load import engine_settings
from crumb.run.memory_plan import ActivationKind, EngineSettings, chosen_kind

SEQUENCES = 16
"""Of full length, that the cache has room for; shorter texts share it."""

TASK_LINE = re.compile(r"""^task:\s*["']?([^\s"']+)""", re.MULTILINE)
"""Where a file says the name of its task."""

ERROR = "_stderr"
"""What the harness adds to a metric's name for its standard error."""


@dataclass(frozen=True)
class TaskFigure:
    """One metric of one task."""

    task: str
    metric: str
    filter: str  # what was done to an answer before it was compared
    value: float
    standard_error: float | None
    questions: int
    examples: int | None  # shown before each question
    version: str  # of the task


@dataclass(frozen=True)
class TasksEvaluation:
    """All figures of one model."""

    model: str
    harness: str  # its version
    activations: str
    cache: str
    context_tokens: int
    figures: tuple[TaskFigure, ...]


def evaluate_tasks(request: TasksRequest, progress: ProgressListener = untold) -> TasksEvaluation:
    """Measure a model on tasks.

    Raises: UsageError, ModelNotFound, CheckpointError, DoesNotFit.
    """
    check_installed()
    checkpoint = open_checkpoint(locate(request.model))
    settings = settings_of(checkpoint, request)
    names, manager = named_tasks(request.tasks)
    with LanguageModel(checkpoint, settings) as model, quiet_harness():
        results = run_harness(model, request, names, manager, progress)
    return TasksEvaluation(
        model=str(checkpoint.path),
        harness=str(results["lm_eval_version"]),
        activations=settings.activations.value,
        cache=settings.cache.value,
        context_tokens=settings.context(checkpoint.plan),
        figures=tuple(figures_of(results)),
    )


def check_installed() -> None:
    """Raises: UsageError without the harness."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "tasks are read by the package lm-eval, which is not installed",
            found=str(error),
            do="pip install 'crumb-llm[tasks]'",
        ) from error


def settings_of(checkpoint: Checkpoint, request: TasksRequest) -> EngineSettings:
    """An engine that scores many rows in a step. Raises: UsageError."""
    activations = chosen_kind(ActivationKind, request.activations, "activations")
    settings = engine_settings(
        checkpoint.plan, request.context_tokens, SEQUENCES, CACHES[activations], activations
    )
    rows = block_tokens(checkpoint.plan.vocabulary, settings.step_tokens)
    return replace(settings, logits_rows=max(rows, settings.logits_rows))


def named_tasks(words: tuple[str, ...]) -> tuple[list[str], Any]:
    """Names of tasks, and the harness's list that has them. Raises: UsageError."""
    from lm_eval.tasks import TaskManager

    files = [Path(word) for word in words if word.endswith((".yaml", ".yml"))]
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise UsageError("no such file of a task", where=missing[0])
    folders = sorted({str(path.parent.resolve()) for path in files})
    manager = TaskManager(include_path=folders or None, include_defaults=len(files) < len(words))
    names = []
    for word in words:
        name = word
        if Path(word) in files:
            said = TASK_LINE.search(Path(word).read_text(encoding="utf-8"))
            name = said[1] if said else Path(word).stem
        if name not in manager.all_tasks:
            raise UsageError(
                "the harness has no such task",
                found=name[:80],
                do="`lm_eval ls tasks` lists them; a file that ends in .yaml says what its own is",
            )
        names.append(name)
    return names, manager


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Its log is about itself: warnings alone are told."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, os.environ.get("TQDM_DISABLE")
    logger.setLevel(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        logger.setLevel(level)
        os.environ.pop("TQDM_DISABLE")
        if bars is not None:
            os.environ["TQDM_DISABLE"] = bars


def run_harness(
    model: LanguageModel,
    request: TasksRequest,
    names: list[str],
    manager: Any,
    progress: ProgressListener,
) -> dict[str, Any]:
    """What the harness says of a model. Raises: UsageError for questions that cannot be read."""
    from lm_eval import simple_evaluate

    clock, answered = ProgressClock(progress), 0

    def told(more: int) -> None:
        nonlocal answered
        answered += more
        clock(0.0, f"{answered} questions answered")

    try:
        results = simple_evaluate(
            harness_model(model, told),
            tasks=names,
            task_manager=manager,
            num_fewshot=request.examples,
            limit=request.limit,
            apply_chat_template=request.chat,
            log_samples=False,
        )
    except (OSError, ConnectionError, ValueError) as error:
        raise UsageError(
            "the questions of a task cannot be read",
            where=", ".join(names)[:200],
            found=" ".join(str(error).split())[:200],
        ) from error
    assert results is not None, "of one process"
    return dict(results) | {"lm_eval_version": version()}


def version() -> str:
    """Of the harness."""
    from importlib.metadata import version as version_of

    return version_of("lm_eval")


def figures_of(results: dict[str, Any]) -> Iterator[TaskFigure]:
    """Every metric with its error; the harness writes them as "metric,filter"."""
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith(ERROR) or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}{ERROR},{filter_name}")
            count = results.get("n-samples", {}).get(task, {}).get("effective", 0)
            yield TaskFigure(
                task=task,
                metric=metric,
                filter=filter_name,
                value=float(value),
                standard_error=float(error) if isinstance(error, int | float) else None,
                questions=int(count),
                examples=results.get("n-shot", {}).get(task),
                version=str(results.get("versions", {}).get(task, "")),
            )
