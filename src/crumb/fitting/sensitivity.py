"""What each format of each matrix costs at the logits, from one pass over the calibration tokens.

In: a float checkpoint, calibration tokens, solver settings, a folder. Out: nats for each matrix and
format. To second order the divergence grows by half of the mean of (g . D x)^2, with D what a
format changes, x an input and g the loss's gradient at its output; D is solved for some rows.
What is done lies in the folder, so a killed pass goes on. Refuses what gradients do not go through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan, Stage
from crumb.calibrate.embedding import embedding_statistics
from crumb.calibrate.token_weights import GradientPass, TokenWeights
from crumb.calibrate.walk import LinearGroup, StageWalk, walk_model
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.errors import UsageError
from crumb.files.atomic_file import write_json
from crumb.fitting.gradient_cost import gradient_work
from crumb.fitting.stage_cost import stage_work
from crumb.formats.catalog import Format, ZeroKind, make_format
from crumb.formats.grid import decode_reference
from crumb.kernels.threads import parallel_map
from crumb.operations.embed import Embed
from crumb.operations.linear import Linear
from crumb.operations.operation import TensorSpec
from crumb.solve.factored import Factored, factor
from crumb.solve.gptq import solve_gptq
from crumb.solve.problem import LayerProblem, SolveSettings
from crumb.solve.round import solve_round, weighted_square

Floats = NDArray[np.float32]
Losses = dict[str, dict[str, float]]
"""Matrix -> name of a format -> nats for each token."""

Told = Callable[[Stage, float], None]
"""(a stage behind us, work in forward passes of it)."""

LADDER = tuple(
    make_format(bits, group_size, ZeroKind.FIXED)
    for bits, groups in (
        (2, (128, 64, 32)),
        (3, (128, 64, 32)),
        (4, (128, 64, 32)),
        (5, (128, 64)),
        (6, (128, 64)),
        (8, (128,)),
    )
    for group_size in groups
)
"""The formats that an allocation chooses from."""

SAMPLED_ROWS, TABLE_ROWS = 64, 256
"""Rows of a layer and of an embedding that are solved."""

BLOCK_ROWS = 8
"""Neighbouring rows of a sample."""

REFITS = 1
"""Of the scales of these rows; more of them change all formats alike."""

WALK_WORK = 2.0
"""Of statistics and solving some rows, in forward passes of a stage."""

GRADIENTS, LOSSES = "gradients", "losses"


@dataclass(frozen=True)
class _Metric:
    """What a change D of some rows costs: the sum of d A d^T over them, times `scale`."""

    curvature: NDArray[np.float64]  # A, (in_features, in_features)
    scale: float

    def loss(self, change: Floats, rows: int) -> float:
        """Of all rows, from a sample of them."""
        return self.scale * weighted_square(change, self.curvature) * rows / len(change)


@dataclass(frozen=True)
class SensitivityPass:
    """One pass: gradients, then the model's layers in order."""

    checkpoint: Checkpoint
    tokens: NDArray[np.int64]  # (texts, length)
    settings: SolveSettings
    folder: Path

    def run(self, told: Told = lambda stage, work: None) -> Losses:
        """What each format of each matrix costs. Raises: UsageError, DoesNotFit, SolveError."""
        (self.folder / LOSSES).mkdir(parents=True, exist_ok=True)
        gradients = GradientPass(self.checkpoint, self.tokens, self.folder / GRADIENTS)
        weights = gradients.run(self.settings.token_power, told)
        losses: Losses = {}
        stages, behind = self.checkpoint.plan.stages, 0
        for walk, group in walk_model(self.checkpoint, self.tokens):
            while stages[behind] is not walk.stage:
                told(stages[behind], WALK_WORK)
                behind += 1
            if not isinstance(group, LinearGroup):
                continue
            path = self.folder / LOSSES / f"{walk.stage.name}.{group.first}.json"
            losses |= _stored(path, lambda: self._group(walk, group, weights))  # noqa: B023
        told(stages[-1], WALK_WORK)
        for spec in self._tables():
            if spec.name not in losses:
                path = self.folder / LOSSES / f"{spec.name}.json"
                losses |= _stored(path, lambda: self._table(spec, weights, []))  # noqa: B023
        return losses

    def _tables(self) -> list[TensorSpec]:
        stage = self.checkpoint.plan.stages[0]
        return [each.tensors()[0] for each in stage.operations if isinstance(each, Embed)]

    def _group(self, walk: StageWalk, group: LinearGroup, weights: TokenWeights) -> Losses:
        """Layers that share an input."""
        squared = replace(weights, power=1.0).of(group.linears)
        curvature = walk.statistics(group, squared).hessian
        tables = {spec.name: spec for spec in self._tables()}
        losses: Losses = {}
        factored = None
        for linear in group.linears:
            if linear.exact:
                continue
            spec = linear.tensors()[0]
            metric = _Metric(curvature, 0.5 * float(weights.squares[spec.name].mean()))
            if spec.name in tables:
                losses |= self._table(spec, weights, [metric])
                continue
            if factored is None:
                statistics = walk.statistics(group, self._solver_weights(group, weights))
                factored = factor(statistics.hessian, statistics.tokens, self.settings)
            rows = sample(spec.shape[0], SAMPLED_ROWS)
            sampled = self.checkpoint.tensors.read_float(spec.name)[rows]
            losses[spec.name] = self._solved(spec, sampled, factored, [metric])
        return losses

    def _solver_weights(self, group: LinearGroup, weights: TokenWeights) -> Floats | None:
        return weights.of(group.linears) if self.settings.weighs_tokens else None

    def _table(self, spec: TensorSpec, weights: TokenWeights, metrics: list[_Metric]) -> Losses:
        """An embedding: what its rows add to the stream, beside what they cost as a head."""
        rows = spec.shape[0]
        of_stream = np.diag(weights.features[spec.name].astype(np.float64))
        metrics = [*metrics, _Metric(of_stream, 0.5 / rows)]  # each token reads one row
        statistics = embedding_statistics(self.checkpoint, spec, self.tokens)
        factored = None
        if statistics is not None:
            factored = factor(statistics.hessian, statistics.tokens, self.settings)
        sampled = np.concatenate(
            [
                self.checkpoint.tensors.read_float(spec.name, slice(each, each + BLOCK_ROWS))
                for each in sample(rows, TABLE_ROWS)[::BLOCK_ROWS]
            ]
        )
        return {spec.name: self._solved(spec, sampled, factored, metrics)}

    def _solved(
        self,
        spec: TensorSpec,
        sampled: Floats,
        factored: Factored | None,
        metrics: Sequence[_Metric],
    ) -> dict[str, float]:
        """The losses of each format, from some rows."""
        settings = replace(self.settings, refits=min(REFITS, self.settings.refits))
        table = spec.name in {each.name for each in self._tables()}

        def loss(format: Format) -> float:
            problem = LayerProblem(spec.name, sampled, None, self.tokens.size, format, settings)
            swept = factored is not None and not (table and not settings.solves_embedding(format))
            solution = solve_gptq(problem, factored) if swept else solve_round(problem)
            decoded = decode_reference(solution.codes, solution.parameters, format)
            change = sampled - decoded
            return sum(metric.loss(change, spec.shape[0]) for metric in metrics)

        formats = list(possible(spec))
        values = parallel_map(loss, formats)
        return {format.name: value for format, value in zip(formats, values, strict=True)}


def reached(plan: Plan) -> set[str]:
    """The matrices that a pass finds losses of."""
    operations = [each for stage in plan.stages for each in stage.operations]
    return {each.weight for each in operations if isinstance(each, Linear | Embed)}


def pass_work(plan: Plan, shape: tuple[int, int]) -> float:
    """Operations of a pass; shape is (texts, length)."""
    works = sum(stage_work(stage, shape[0] * shape[1], shape[1]) for stage in plan.stages)
    return gradient_work(plan, shape) + WALK_WORK * works


def possible(spec: TensorSpec) -> Iterator[Format]:
    """The formats of the ladder that a matrix can have."""
    for format in LADDER:
        try:
            format.check_width(spec.shape[1], spec.name)
        except UsageError:
            continue
        yield format


def sample(rows: int, count: int) -> list[int]:
    """Rows that stand for all, evenly spaced blocks of neighbours."""
    blocks = max(1, min(count, rows) // BLOCK_ROWS)
    begins = np.linspace(0, max(rows - BLOCK_ROWS, 0), blocks).astype(int)
    width = min(BLOCK_ROWS, rows)
    return [int(begin) + place for begin in begins for place in range(width)]


def _stored(path: Path, make: Callable[[], Losses]) -> Losses:
    """What an earlier run stored, or what is made and stored now."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Losses)
    except (OSError, msgspec.MsgspecError):
        losses = make()
        write_json(path, losses)
        return losses


def read_losses(path: Path, key: Mapping[str, object]) -> Losses | None:
    """The table of a pass with this key; None where there is none."""
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_Table)
    except (OSError, msgspec.MsgspecError):
        return None
    return content.losses if content.key == key else None


def write_losses(path: Path, key: Mapping[str, object], losses: Losses) -> None:
    """The table of a finished pass."""
    write_json(path, {"key": key, "losses": losses})


class _Table(msgspec.Struct, frozen=True):
    key: dict[str, object]
    losses: Losses
