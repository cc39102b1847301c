"""What is asked of a model that is measured on tasks. In: a model, names of tasks. Out: one record.

TasksOptions are its fields as keywords. Refuses counts that are none and a list without a task;
names of tasks are refused where they are looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from crumb.errors import UsageError
from crumb.requests.keywords import check_known
from crumb.requests.number import as_integer

LEAST = {"examples": 0, "limit": 1, "context_tokens": 1}
"""Field -> the smallest count that it may be."""


@dataclass(frozen=True)
class TasksRequest:
    """Which model to measure, on which tasks of lm-evaluation-harness."""

    model: str
    tasks: tuple[str, ...]  # its names, or files that say what a task is
    examples: int | None = None  # shown before each question; None: as the task says
    limit: int | None = None  # questions of each task; None: all
    chat: bool = False  # questions are messages in the model's chat template
    context_tokens: int | None = None  # None: 4096 or what the model has
    activations: str = "f32"  # f32 measures the weights, int8 what running them costs

    def __post_init__(self) -> None:
        if not self.tasks or not all(self.tasks):
            raise UsageError("no task to measure on", do="Give a task's name, such as arc_easy")
        for name, least in LEAST.items():
            value = getattr(self, name)
            count = as_integer(value)
            if value is not None and (count is None or count < least):
                raise UsageError(
                    "a count out of range",
                    where=name,
                    expected=f"{least} or more",
                    found=repr(value)[:40],
                )
            object.__setattr__(self, name, count)


class TasksOptions(TypedDict, total=False):
    """The fields of TasksRequest as keywords, but for the model and the tasks."""

    examples: int | None
    limit: int | None
    chat: bool
    context_tokens: int | None
    activations: str


def make_tasks_request(
    model: str | Path, tasks: Sequence[str] | str, **options: Unpack[TasksOptions]
) -> TasksRequest:
    """A request from keywords; names may be one text with commas. Raises: UsageError."""
    check_known(options, "an evaluation on tasks", TasksRequest)
    words = tasks.split(",") if isinstance(tasks, str) else tasks
    return TasksRequest(str(model), tuple(map(str, words)), **options)
