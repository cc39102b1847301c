"""The whole flow, one short function per arrow: checkpoint -> calibrate -> solve -> pack -> store.

In: a QuantizeRequest. Out: a crumb directory and its manifest. Holds the embedding, one group of
layers and its statistics, whatever the depth; a killed run continues to the same bytes.
Refuses quantized sources, impossible formats, foreign output directories, full disks.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb import __version__
from crumb.architectures.plan import Plan, Stage
from crumb.calibrate.embedding import embedding_statistics
from crumb.calibrate.statistics import LayerStatistics
from crumb.calibrate.token_weights import GradientPass, TokenWeights
from crumb.calibrate.walk import LinearGroup, StageWalk
from crumb.checkpoints.crumb.reader import MANIFEST
from crumb.checkpoints.crumb.workspace import Workspace, open_workspace
from crumb.checkpoints.crumb.writer import assemble_directory
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import UsageError, placed
from crumb.evaluation.proof import prove
from crumb.files.free_space import check_free_space
from crumb.files.model_files import read_json
from crumb.fitting.quantize_cost import (
    ROWS_AT_ONCE,
    embedding_work,
    estimate,
    input_work,
    matrix_work,
    total_work,
)
from crumb.fitting.stage_cost import stage_work
from crumb.formats.catalog import Format
from crumb.formats.packed_tensor import PackedTensor, stack_rows
from crumb.kernels.tile import pack_tensor
from crumb.operations.embed import Embed
from crumb.operations.linear import Linear
from crumb.operations.operation import TensorSpec
from crumb.progress import CostListener, ProgressClock, ProgressListener, untold
from crumb.requests.quantize_request import (
    Calibration,
    Choice,
    QuantizeRequest,
    check_method,
    choose,
    needs_calibration,
)
from crumb.run.model import Model, open_model
from crumb.run.whole_texts import Batch, WholeTexts, cut_batches, plan_texts
from crumb.solve.factored import Factored, factor
from crumb.solve.gptq import solve_gptq
from crumb.solve.problem import (
    LayerProblem,
    SolveReport,
    check_finite,
    join_reports,
)
from crumb.solve.round import solve_round
from crumb.texts.mixture import CalibrationTokens, draw_calibration

__all__ = [
    "Calibration",
    "QuantizeRequest",
    "QuantizeResult",
    "choose_formats",
    "draw",
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
    choice = choose(model.plan, request)
    formats = choice.formats
    check_source(model, formats)
    check_method(model.plan, request)
    drawn = draw(model, request) if needs_calibration(request) else None
    key = job_key(model, request, drawn)
    with open_workspace(request.out, key, request.restart) as workspace:
        if workspace is None:
            return result_of(request.out, already_done=True)
        tokens = np.zeros((0, 1), np.int64) if drawn is None else drawn.tokens
        costs = estimate(model.checkpoint, formats, tokens.shape, request.settings)
        missing_bytes = costs.working_bytes - workspace.stored_bytes()
        check_free_space(request.out, missing_bytes, "the output and the work on it", ROOM)
        cost(costs)
        run = _Run(model, request, workspace, choice, tokens, progress)
        manifest = make_manifest(key, drawn, run.all_stages())
        assemble_directory(model.checkpoint, workspace, manifest)
        if request.pack:
            prove(model, workspace.partial / "model")
        workspace.publish()
    return result_of(request.out)


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


def draw(model: Model, request: QuantizeRequest) -> CalibrationTokens:
    """The calibration tokens. Raises: TextError, UsageError."""
    asked = request.calibration
    if asked.length_tokens > model.plan.max_positions:
        raise UsageError(
            "the calibration sequences are longer than the model's context",
            expected=f"at most {model.plan.max_positions} tokens",
            found=asked.length_tokens,
        )
    return draw_calibration(
        asked.spec,
        model.tokenizer.encode,
        sequences=asked.sequences,
        length=asked.length_tokens,
        seed=asked.seed,
    )


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
    key: dict[str, Any], drawn: CalibrationTokens | None, records: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Where the model came from and what was done to each tensor; no times, so bytes repeat."""
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
        "tensors": records,
    }


def result_of(out: Path, already_done: bool = False) -> QuantizeResult:
    """The result that lies in an output directory."""
    checkpoint = open_checkpoint(out)
    size = checkpoint.weight_bytes()
    bits_per_weight = 8 * size / checkpoint.plan.parameters()
    return QuantizeResult(out, read_json(out / MANIFEST), size, bits_per_weight, already_done)


@dataclass(frozen=True)
class LayerInput:
    """What is known of the input of a group of layers: its factored H, or H where that failed."""

    hessian: NDArray[np.float64] | None
    factored: Factored | None


def embedded(stage: Stage) -> list[TensorSpec]:
    """The tables a stage looks up."""
    return [op.tensors()[0] for op in stage.operations if isinstance(op, Embed)]


def linears(stage: Stage) -> list[Linear]:
    """The linear layers of a stage."""
    return [
        operation
        for operation in stage.operations
        if isinstance(operation, Linear) and not operation.exact
    ]


def make_record(tensor: PackedTensor, report: SolveReport, other: str | None) -> dict[str, Any]:
    """What the manifest says of one tensor; `other`: why its format is not what was asked for."""
    return {
        "format": tensor.format.name,
        "shape": [tensor.out_features, tensor.in_features],
        "bytes": tensor.size_bytes,
        "relative_error": report.relative_error,
        "zero_share": report.zero_share,
        "damping": report.damping,
        "fallback": "; ".join(filter(None, (other, report.fallback))) or None,
    }


class _Run:
    """One quantization at work: stages in order, each finished tensor stored at once."""

    def __init__(
        self,
        model: Model,
        request: QuantizeRequest,
        workspace: Workspace,
        choice: Choice,
        tokens: NDArray[np.int64],
        progress: ProgressListener,
    ) -> None:
        self.model, self.request, self.workspace = model, request, workspace
        self.entries = dict(
            model.checkpoint.tensors.entries
        )  # finished matrices in place of theirs
        self.formats, self.fallbacks = choice.formats, choice.fallbacks
        self.tokens, self.clock = tokens, ProgressClock(progress)
        self.tensors = model.checkpoint.tensors
        self.records: dict[str, dict[str, Any]] = {}
        self.token_weights: TokenWeights | None = None
        self.total = total_work(model.plan, self.formats, tokens.shape, request.settings)
        self.done = 0.0

    def all_stages(self) -> dict[str, dict[str, Any]]:
        """Quantize every matrix; returns the manifest's records by tensor name."""
        flowing = cut_batches(self.tokens)
        if self.request.settings.weighs_tokens:
            self.weigh_tokens()
        for index, stage in enumerate(self.model.plan.stages):
            for spec in embedded(stage):
                self.matrix(spec, self.embedding_input(spec))
            if not needs_calibration(self.request):
                for spec in (spec for spec in stage.tensors() if spec.matrix):
                    self.matrix(spec, None)
            else:
                flowing = self.calibrated_stage(index, flowing)
        return self.records

    def weigh_tokens(self) -> None:
        """How much each token counts for each layer, unless no layer is left to solve."""
        if not any(self.unfinished(linear.weight) for linear in self.model.plan.linears()):
            return
        self.check_weights()
        gradients = GradientPass(self.model.checkpoint, self.tokens, self.workspace.gradients)

        def told(stage: Stage, passes: float) -> None:
            work = stage_work(stage, self.tokens.size, self.tokens.shape[1])
            self.advance(passes * work, f"{stage.name}, gradients")

        self.token_weights = gradients.run(self.request.settings.token_power, told)

    def check_weights(self) -> None:
        """Refuse NaN before the longest part of the work, not in its midst. Raises: SolveError."""
        for spec in self.model.plan.tensors():
            for begin in range(0, spec.shape[0], ROWS_AT_ONCE):
                rows = slice(begin, min(begin + ROWS_AT_ONCE, spec.shape[0]))
                check_finite(self.tensors.read_float(spec.name, rows), spec.name, begin)

    def embedding_input(self, spec: TensorSpec) -> LayerInput | None:
        """The H that an embedding is solved by, factored; None where it is rounded."""
        format = self.formats.get(spec.name)
        if format is None or not self.request.settings.solves_embedding(format):
            return None
        self.advance(embedding_work(self.model.plan, spec, self.tokens.shape), spec.name)
        if not self.unfinished(spec.name):
            return None
        statistics = embedding_statistics(self.model.checkpoint, spec, self.tokens)
        return None if statistics is None else self.factored(statistics)

    def calibrated_stage(self, index: int, flowing: list[Batch]) -> list[Batch]:
        """Quantize a stage's linear layers and run the tokens through the result."""
        stage = self.model.plan.stages[index]
        last = stage is self.model.plan.stages[-1]
        if last and not any(self.unfinished(linear.weight) for linear in linears(stage)):
            return flowing
        walk = StageWalk(self.texts, index, flowing)
        for group in walk.groups():
            self.group(walk, group)
            if last:
                return flowing  # nothing needs the logits
        self.advance(stage_work(stage, self.tokens.size, self.tokens.shape[1]), stage.name)
        return walk.flowing

    def group(self, walk: StageWalk, group: LinearGroup) -> None:
        """Quantize the layers of one group, unless an earlier run did."""
        layer_input: LayerInput | None = None
        if any(self.unfinished(linear.weight) for linear in group.linears):
            layer_input = self.layer_input(walk, group)
        for linear in group.linears:
            self.matrix(linear.tensors()[0], layer_input)
        self.advance(input_work(group.linears[0].in_features, self.tokens.size), walk.stage.name)

    def layer_input(self, walk: StageWalk, group: LinearGroup) -> LayerInput:
        """The group's statistics, factored; H itself is let go where the factor exists."""
        weights = None if self.token_weights is None else self.token_weights.of(group.linears)
        return self.factored(walk.statistics(group, weights))

    def factored(self, statistics: LayerStatistics) -> LayerInput:
        factored = factor(statistics.hessian, statistics.tokens, self.request.settings)
        return LayerInput(statistics.hessian if factored is None else None, factored)

    def matrix(self, spec: TensorSpec, layer_input: LayerInput | None) -> None:
        """Quantize and store one matrix, or take it from an earlier run."""
        if spec.name in self.records:
            return  # tied
        if spec.name not in self.formats:
            if spec.name in self.fallbacks:
                self.records[spec.name] = self.float_record(spec)
            return
        finished = self.workspace.finished(spec.name)
        if finished is None:
            tensor, report = self.solve_rows(spec, layer_input)
            record = make_record(tensor, report, self.fallbacks.get(spec.name))
            self.workspace.store(spec.name, tensor, record)
            finished = self.workspace.finished(spec.name)
            assert finished is not None, "just stored"
        self.records[spec.name] = finished.record
        self.entries[spec.name] = finished.stored
        self.advance(matrix_work(spec, self.formats[spec.name], self.request.settings), spec.name)

    def solve_rows(
        self, spec: TensorSpec, layer_input: LayerInput | None
    ) -> tuple[PackedTensor, SolveReport]:
        """Solve a matrix some rows at a time; rows do not depend on each other."""
        parts, reports = [], []
        for begin in range(0, spec.shape[0], ROWS_AT_ONCE):
            rows = slice(begin, min(begin + ROWS_AT_ONCE, spec.shape[0]))
            problem = LayerProblem(
                name=spec.name,
                weights=self.tensors.read_float(spec.name, rows),
                hessian=None if layer_input is None else layer_input.hessian,
                tokens=self.tokens.size,
                format=self.formats[spec.name],
                settings=self.request.settings,
                first_row=begin,
            )
            with placed(spec.name):
                solution = (
                    solve_round(problem)
                    if layer_input is None
                    else solve_gptq(problem, layer_input.factored)
                )
            parts.append(pack_tensor(solution.codes, solution.parameters, problem.format))
            reports.append((solution.report, len(solution.codes)))
        return stack_rows(parts), join_reports(reports)

    def unfinished(self, name: str) -> bool:
        return name in self.formats and self.workspace.finished(name) is None

    @cached_property
    def texts(self) -> WholeTexts:
        """How the model runs the batches, each matrix as its users will see it."""
        checkpoint = self.model.checkpoint
        finished = replace(checkpoint.tensors, entries=self.entries)
        return plan_texts(replace(checkpoint, tensors=finished), cut_batches(self.tokens))

    def float_record(self, spec: TensorSpec) -> dict[str, Any]:
        """What the manifest says of a matrix that its target cannot hold quantized."""
        entry = self.tensors.entry(spec.name)
        return {
            "format": "float",
            "shape": list(spec.shape),
            "bytes": entry.size_bytes,
            "fallback": self.fallbacks[spec.name],
        }

    def advance(self, work: float, doing: str) -> None:
        self.done = min(self.done + work, self.total)
        self.clock(self.done / self.total, doing)
