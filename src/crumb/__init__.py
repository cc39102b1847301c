"""Crumb: run the largest language model your memory can hold, and prove what it cost.

load, quantize, evaluate, export and fit, the records they take and give, and the errors they raise.
`import crumb` itself loads the errors alone; every other name is looked up where it lives.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Unpack

from crumb.errors import (
    BodyTooLarge,
    CheckpointError,
    ContextExceeded,
    CrumbError,
    CrumbWarning,
    DoesNotFit,
    GateFailed,
    KeyRefused,
    ModelBusy,
    ModelNotFound,
    OriginRefused,
    OutputConflict,
    QueueFull,
    RequestCancelled,
    SolveError,
    TextError,
    TimeExceeded,
    UnknownFamily,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from crumb.evaluation.report import Evaluation
    from crumb.evaluation.tasks import TasksEvaluation
    from crumb.exporting import ExportResult
    from crumb.fitting.report import FitReport
    from crumb.pipeline import QuantizeResult
    from crumb.progress import Cost, Progress
    from crumb.requests.evaluate_request import EvaluateOptions, EvaluateRequest
    from crumb.requests.export_request import Container, ExportOptions, ExportRequest
    from crumb.requests.fit_request import FitOptions, FitRequest
    from crumb.requests.generate_request import GenerateRequest, Sampling
    from crumb.requests.quantize_options import QuantizeOptions
    from crumb.requests.quantize_request import Calibration, QuantizeRequest
    from crumb.requests.reading_request import EmbedRequest, ScoreRequest
    from crumb.requests.tasks_request import TasksOptions, TasksRequest
    from crumb.run.consumers import Embedding, Score
    from crumb.run.generation import FinishReason, Generation, TextPiece, Timings, TokenLogprob
    from crumb.run.handle import Handle
    from crumb.run.language_model import LanguageModel
    from crumb.run.load import load
    from crumb.solve.problem import SolveSettings
    from crumb.tokenizer.chat_template import Message

__version__ = "0.3.0"

__all__ = [
    "BodyTooLarge",
    "Calibration",
    "CheckpointError",
    "Container",
    "ContextExceeded",
    "Cost",
    "CrumbError",
    "CrumbWarning",
    "DoesNotFit",
    "EmbedRequest",
    "Embedding",
    "EvaluateRequest",
    "Evaluation",
    "ExportRequest",
    "ExportResult",
    "FinishReason",
    "FitReport",
    "FitRequest",
    "GateFailed",
    "GenerateRequest",
    "Generation",
    "Handle",
    "KeyRefused",
    "LanguageModel",
    "Message",
    "ModelBusy",
    "ModelNotFound",
    "OriginRefused",
    "OutputConflict",
    "Progress",
    "QuantizeRequest",
    "QuantizeResult",
    "QueueFull",
    "RequestCancelled",
    "Sampling",
    "Score",
    "ScoreRequest",
    "SolveError",
    "SolveSettings",
    "TasksEvaluation",
    "TasksRequest",
    "TextError",
    "TextPiece",
    "TimeExceeded",
    "Timings",
    "TokenLogprob",
    "UnknownFamily",
    "UsageError",
    "evaluate",
    "evaluate_tasks",
    "export",
    "fit",
    "load",
    "quantize",
]

_HOMES = {
    "crumb.evaluation.report": ("Evaluation",),
    "crumb.evaluation.tasks": ("TasksEvaluation",),
    "crumb.exporting": ("ExportResult",),
    "crumb.fitting.report": ("FitReport",),
    "crumb.pipeline": ("QuantizeResult",),
    "crumb.progress": ("Cost", "Progress"),
    "crumb.requests.evaluate_request": ("EvaluateRequest",),
    "crumb.requests.export_request": ("Container", "ExportRequest"),
    "crumb.requests.fit_request": ("FitRequest",),
    "crumb.requests.generate_request": ("GenerateRequest", "Sampling"),
    "crumb.requests.reading_request": ("EmbedRequest", "ScoreRequest"),
    "crumb.requests.quantize_request": ("Calibration", "QuantizeRequest"),
    "crumb.requests.tasks_request": ("TasksRequest",),
    "crumb.run.consumers": ("Embedding", "Score"),
    "crumb.run.generation": (
        "FinishReason",
        "Generation",
        "TextPiece",
        "Timings",
        "TokenLogprob",
    ),
    "crumb.run.handle": ("Handle",),
    "crumb.run.language_model": ("LanguageModel",),
    "crumb.run.load": ("load",),
    "crumb.solve.problem": ("SolveSettings",),
    "crumb.tokenizer.chat_template": ("Message",),
}
"""Module -> its public names that are looked up when they are first used."""

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def quantize(
    model: str | Path,
    *,
    out: str | Path,
    progress: Callable[[Progress], None] | None = None,
    cost: Callable[[Cost], None] | None = None,
    **options: Unpack[QuantizeOptions],
) -> QuantizeResult:
    """Quantize a checkpoint into a new directory; a target, such as gguf:q3_k, implies the bits.

    `cost` is told what it takes before it begins, `progress` of each part.
    Raises: UsageError, and what crumb.pipeline.quantize raises.
    """
    from crumb.pipeline import quantize as run
    from crumb.progress import untold
    from crumb.requests.quantize_options import make_quantize_request

    request = make_quantize_request(model, out, **options)
    return run(request, progress or untold, cost or untold)


def evaluate(
    model: str | Path,
    reference: str | Path | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    cost: Callable[[Cost], None] | None = None,
    **options: Unpack[EvaluateOptions],
) -> Evaluation:
    """Measure a model on a text, against a reference if given.

    `cost` is told what it takes before it begins, `progress` of each window.
    Raises: UsageError, and what crumb.evaluation.comparison.evaluate raises.
    """
    from crumb.evaluation.comparison import evaluate as run
    from crumb.fitting.evaluation_cost import estimating
    from crumb.progress import untold
    from crumb.requests.evaluate_request import make_evaluate_request

    request = make_evaluate_request(model, reference, **options)
    return run(request, progress or untold, estimating(cost or untold))


def evaluate_tasks(
    model: str | Path,
    tasks: Sequence[str] | str,
    *,
    progress: Callable[[Progress], None] | None = None,
    **options: Unpack[TasksOptions],
) -> TasksEvaluation:
    """Measure a model on tasks of lm-evaluation-harness, such as "arc_easy,hellaswag".

    Needs the extra `tasks`. Raises: UsageError, and what crumb.evaluation.tasks.evaluate_tasks
    raises.
    """
    from crumb.evaluation.tasks import evaluate_tasks as run
    from crumb.progress import untold
    from crumb.requests.tasks_request import make_tasks_request

    return run(make_tasks_request(model, tasks, **options), progress or untold)


def export(
    model: str | Path,
    out: str | Path,
    to: Container | str,
    *,
    progress: Callable[[Progress], None] | None = None,
    cost: Callable[[Cost], None] | None = None,
    **options: Unpack[ExportOptions],
) -> ExportResult:
    """Write a model in another container: gguf, gptq, compressed-tensors, safetensors or crumb.

    `cost` is told what it takes before it begins, `progress` of each tensor.
    Raises: UsageError, and what crumb.exporting.export raises.
    """
    from crumb.exporting import export as run
    from crumb.progress import untold
    from crumb.requests.export_request import make_export_request

    request = make_export_request(model, out, to, **options)
    return run(request, progress or untold, cost or untold)


def fit(
    *models: str | Path,
    progress: Callable[[Progress], None] | None = None,
    **options: Unpack[FitOptions],
) -> FitReport:
    """What of some models fits into memory, before any weight is downloaded; the best first.

    memory: bytes, or words such as 8GiB; by default what this process may still take.
    Raises: UsageError, and what crumb.fitting.fit.fit raises.
    """
    from crumb.fitting.fit import fit as run
    from crumb.progress import untold
    from crumb.requests.fit_request import make_fit_request

    request = make_fit_request(tuple(map(str, models)), **options)
    return run(request, progress or untold)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'crumb' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__", "__doc__"})
