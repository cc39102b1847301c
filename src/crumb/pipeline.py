"""The whole flow, one short function per arrow: checkpoint -> calibrate -> solve -> pack -> store.

In: a QuantizeRequest. Out: a crumb directory and its manifest; `quantize_run.py` makes the tensors.
Refuses quantized sources, impossible formats, foreign output directories, full disks.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from crumb import __version__
from crumb.architectures.plan import Plan
from crumb.calibrate.drawing import check_draw, draw, mixture_of
from crumb.checkpoints.crumb.reader import MANIFEST
from crumb.checkpoints.crumb.workspace import open_workspace
from crumb.checkpoints.crumb.writer import assemble_directory
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import UsageError
from crumb.evaluation.proof import prove
from crumb.files.free_space import check_free_space
from crumb.files.model_files import read_json
from crumb.fitting.allocation import FormatPlan
from crumb.fitting.quantize_cost import estimate
from crumb.fitting.writing_cost import with_writing
from crumb.formats.catalog import Format
from crumb.planning import gradients_folder, plan_of, with_plan
from crumb.progress import Cost, CostListener, Progress, ProgressListener, untold
from crumb.quantize_run import QuantizeRun
from crumb.requests.quantize_request import (
    Calibration,
    QuantizeRequest,
    choose,
    needs_calibration,
    of_plan,
)
from crumb.run.devices import arrays_on
from crumb.run.model import Model, open_model
from crumb.solve.problem import (
    check_finite,
)
from crumb.texts.mixture import OWN, CalibrationTokens, shares_of

__all__ = [
    "Calibration",
    "QuantizeRequest",
    "QuantizeResult",
    "choose_formats",
    "quantize",
]


ROOM = "Free some space, or choose --out on another disk"


@dataclass(frozen=True)
class QuantizeResult:
    """What a run made."""

    out: Path
    manifest: dict[str, Any]
    file_bytes: int
    bits_per_weight: float
    already_done: bool = False


def quantize(
    request: QuantizeRequest, progress: ProgressListener = untold, cost: CostListener = untold
) -> QuantizeResult:
    """Quantize a checkpoint into request.out.

    `cost` is told before the work begins, `progress` of each part of it.
    Raises: ModelNotFound, CheckpointError, UsageError, TextError, SolveError, OutputConflict,
    DoesNotFit.
    """
    model = open_model(request.model)
    request = of_plan(model.plan, request)
    arrays_on(request.device)  # refused before the work begins
    allocation, gradients, drawing = None, None, cache(lambda: draw(model, request.calibration))
    if request.is_planned:
        check_source(model, {})
        allocation = plan_of(model, request, drawing, progress, cost)
        gradients = gradients_folder(model, request)
        request = with_plan(model.plan, request, allocation)
    choice = choose(model.plan, request)
    formats = choice.formats
    check_source(model, formats)
    asked = request.calibration if needs_calibration(request) else None
    costs = cost_of(model, formats, request)
    cost(costs)
    progress(Progress(0.0, "calibration text", None))
    drawn = None if asked is None else drawing()
    key = job_key(model, request, drawn)
    with open_workspace(request.out, key, request.restart) as workspace:
        if workspace is None:
            return result_of(request.out, already_done=True)
        tokens = np.zeros((0, 1), np.int64) if drawn is None else drawn.rows
        missing_bytes = costs.working_bytes - workspace.stored_bytes()
        check_free_space(request.out, missing_bytes, "the output and the work on it", ROOM)
        folder = gradients or workspace.gradients
        run = QuantizeRun(model, request, workspace, choice, tokens, folder, progress)
        manifest = make_manifest(key, drawn, run.all_stages(), allocation)
        assemble_directory(model.checkpoint, workspace, manifest)
        if request.pack:
            prove(model, workspace.partial / "model")
        workspace.publish()
    return result_of(request.out)


def plan(
    request: QuantizeRequest, progress: ProgressListener = untold, cost: CostListener = untold
) -> FormatPlan:
    """The formats that a budget comes to, written beside the output; nothing is quantized.

    Raises: what `quantize` raises.
    """
    model = open_model(request.model)
    check_source(model, {})
    drawing = cache(lambda: draw(model, request.calibration))
    return plan_of(model, request, drawing, progress, cost)


def cost_of(model: Model, formats: Mapping[str, Format], request: QuantizeRequest) -> Cost:
    """What a quantization takes, the text that the model writes for it included."""
    if not needs_calibration(request):
        return estimate(model.checkpoint, formats, (0, 1), request.settings)
    asked = request.calibration
    check_draw(model, asked)
    shape = (asked.sequences, asked.length_tokens)
    costs = estimate(model.checkpoint, formats, shape, request.settings)
    written = dict(shares_of(mixture_of(model, asked), asked.sequences)).get(OWN, 0)
    return with_writing(costs, model.checkpoint, written, asked.length_tokens)


def choose_formats(plan: Plan, request: QuantizeRequest) -> Mapping[str, Format]:
    """The format of every matrix that is quantized; the others stay float. Raises: UsageError."""
    return choose(plan, request).formats


def check_source(model: Model, formats: Mapping[str, Format]) -> None:
    """Refuse a checkpoint that is quantized already, or broken where no solver looks.

    What is quantized is checked when its turn comes. Raises: UsageError, SolveError.
    """
    for spec in model.plan.tensors():
        if not model.checkpoint.tensors.entry(spec.name).lies_as_floats:
            raise UsageError(
                "this model is quantized already",
                where=model.checkpoint.path,
                do="Quantize the float checkpoint it was made from",
            )
        if spec.name not in formats:
            check_finite(model.checkpoint.tensors.read_float(spec.name), spec.name)


def job_key(
    model: Model, request: QuantizeRequest, drawn: CalibrationTokens | None
) -> dict[str, Any]:
    """What must be equal for two runs to make the same bytes; the manifest's "job"."""
    calibration = drawn and asdict(request.calibration) | {"sha256": drawn.sha256()}
    return {
        "crumb": __version__,
        "source_sha256": model.checkpoint.sha256(),
        **request.key(),
        "calibration": calibration,
    }


def make_manifest(
    key: dict[str, Any],
    drawn: CalibrationTokens | None,
    records: dict[str, dict[str, Any]],
    allocation: FormatPlan | None,
) -> dict[str, Any]:
    """Where the model came from and what was done to each tensor; no times, so bytes repeat."""
    chosen = {} if allocation is None else {"allocation": allocation.record()}
    return {
        "manifest_version": 1,
        "job": key,
        "calibration_sources": [asdict(source) for source in drawn.sources] if drawn else [],
        "versions": {
            "crumb": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "fallbacks": sorted(name for name, record in records.items() if record["fallback"]),
        **chosen,
        "tensors": records,
    }


def result_of(out: Path, already_done: bool = False) -> QuantizeResult:
    """The result that lies in an output directory."""
    checkpoint = open_checkpoint(out)
    size = checkpoint.weight_bytes()
    bits_per_weight = 8 * size / checkpoint.plan.parameters()
    return QuantizeResult(out, read_json(out / MANIFEST), size, bits_per_weight, already_done)
