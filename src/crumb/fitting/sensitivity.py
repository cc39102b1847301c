"""What each format of each matrix costs at the logits, from one pass over the calibration tokens.

In: a float checkpoint, calibration tokens, solver settings, a folder. Out: nats for each matrix and
format. To second order the divergence grows by half of the mean of (g . D x)^2, with D what a
format changes, x an input and g the loss's gradient at its output; D is solved for some rows.
What is done lies in the folder, so a killed pass goes on. Refuses what gradients do not go through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan, Stage
from crumb.calibrate.embedding import embedding_statistics
from crumb.calibrate.routed import RoutedTokens
from crumb.calibrate.statistics import LayerStatistics, accumulate
from crumb.calibrate.token_weights import GradientPass, TokenWeights, name_and_outputs
from crumb.calibrate.walk import ExpertGroup, Group, HeadGroup, LinearGroup, StageWalk, walk_model
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.files.atomic_file import write_json
from crumb.fitting.float_inputs import expert_context
from crumb.fitting.gradient_cost import gradient_work
from crumb.fitting.ladder import possible
from crumb.fitting.stage_cost import stage_work
from crumb.formats.catalog import Format
from crumb.formats.grid import decode_reference
from crumb.kernels.threads import parallel_map
from crumb.operations.embed import Embed
from crumb.operations.experts import gated_slopes, inner_of
from crumb.operations.operation import Context, TensorSpec
from crumb.solve.factored import Factored, factor
from crumb.solve.gptq import solve_gptq
from crumb.solve.problem import LayerProblem, SolveSettings
from crumb.solve.round import solve_round, weighted_square
from crumb.solve.tables import with_own_table

Floats = NDArray[np.float32]
Losses = dict[str, dict[str, float]]
"""Bundle -> name of a format -> nats for each token."""

Told = Callable[[Stage, float], None]
"""(a stage behind us, work in forward passes of it)."""

SAMPLED_ROWS, TABLE_ROWS = 64, 256
"""Rows of a layer and of an embedding that are solved."""

SAMPLED_PARTS = 8
"""Experts, or heads, that stand for all of a block."""

BLOCK_ROWS = 8
"""Neighbouring rows of a sample."""

REFITS = 1
"""Of the scales of these rows; more of them, and refinement, change all formats alike."""

WALK_WORK = 2.0
"""Of statistics and solving some rows, in forward passes of a stage."""

GRADIENTS, LOSSES = "gradients", "losses"


@dataclass(frozen=True)
class _Metric:
    """What a change D of some rows costs: the sum of d A d^T over them, times `scale`."""

    curvature: NDArray[np.float64]  # A, (in_features, in_features)
    scale: float
    row_weights: Floats | None = None  # (rows,) of the sample; None: all count alike

    def loss(self, change: Floats, rows: int) -> float:
        """Of all rows, from a sample of them."""
        if self.row_weights is not None:
            change = change * np.sqrt(self.row_weights)[:, None]
        return self.scale * weighted_square(change, self.curvature) * rows / len(change)


@dataclass(frozen=True)
class _Sampled:
    """Some rows of a matrix, and what solves and judges them."""

    name: str  # of the matrix
    rows: int  # of all of it
    weights: Floats  # (sampled rows, in_features)
    metrics: Sequence[_Metric]


@dataclass(frozen=True)
class _Counted:
    """How much the tokens of a group count."""

    weights: TokenWeights
    squares: Floats  # (tokens,), mean 1: of an error of the output
    for_solver: Floats | None  # likewise, as the solver weighs them
    scales: Mapping[str, float]  # by layer: of the loss by such an error

    @classmethod
    def of(cls, group: Group, weights: TokenWeights, settings: SolveSettings) -> _Counted:
        layers = group.layers
        for_solver = weights.of(layers) if settings.weighs_tokens else None
        names = [name_and_outputs(layer)[0] for layer in layers]
        scales = {name: 0.5 * float(weights.squares[name].mean()) for name in names}
        return cls(weights, replace(weights, power=1.0).of(layers), for_solver, scales)


@dataclass(frozen=True)
class SensitivityPass:
    """One pass: gradients, then the model's layers in order."""

    checkpoint: Checkpoint
    tokens: NDArray[np.int64]  # (texts, length)
    settings: SolveSettings
    folder: Path

    def run(self, told: Told = lambda stage, work: None) -> Losses:
        """What each format of each bundle costs. Raises: UsageError, DoesNotFit, SolveError."""
        (self.folder / LOSSES).mkdir(parents=True, exist_ok=True)
        weights = self.weights(told)
        losses: Losses = {}
        stages, behind = self.checkpoint.plan.stages, 0
        for walk, group in walk_model(self.checkpoint, self.tokens):
            while stages[behind] is not walk.stage:
                told(stages[behind], WALK_WORK)
                behind += 1
            path = self.folder / LOSSES / f"{walk.stage.name}.{group.first}.json"
            losses |= _stored(path, lambda: self._group(walk, group, weights))  # noqa: B023
        told(stages[-1], WALK_WORK)
        for spec in tables_of(self.checkpoint.plan).values():
            if spec.name not in losses:
                path = self.folder / LOSSES / f"{spec.name}.json"
                losses |= _stored(path, lambda: self._table(spec, weights))  # noqa: B023
        return losses

    def weights(self, told: Told = lambda stage, work: None) -> TokenWeights:
        """Those of the tokens: computed, or read."""
        gradients = GradientPass(self.checkpoint, self.tokens, self.folder / GRADIENTS)
        return gradients.run(self.settings.token_power, told)

    def _group(self, walk: StageWalk, group: Group, weights: TokenWeights) -> Losses:
        """The bundles of a group of layers."""
        counted = _Counted.of(group, weights, self.settings)
        if isinstance(group, ExpertGroup):
            rated = RoutedTokens(walk, group, counted.squares)
            solved = RoutedTokens(walk, group, counted.for_solver)
            return self._experts(rated, solved, counted.scales[group.experts.down])
        if isinstance(group, HeadGroup):
            return self._heads(walk, group, counted)
        return self._linears(walk, group, counted)

    def _linears(self, walk: StageWalk, group: LinearGroup, counted: _Counted) -> Losses:
        """Layers that share an input."""
        curvature = walk.statistics(group, counted.squares).hessian
        losses: Losses = {}
        factored = None
        for linear in group.linears:
            if linear.exact:
                continue
            spec = linear.tensors()[0]
            metric = _Metric(curvature, counted.scales[spec.name])
            if spec.name in tables_of(self.checkpoint.plan):
                losses |= self._table(spec, counted.weights, metric, walk.statistics(group))
                continue
            factored = factored or self._factored(walk.statistics(group, counted.for_solver))
            if spec.shape[0] == self.checkpoint.plan.vocabulary:
                rows = self._by_frequency(spec, (metric,))
            else:
                rows = self._sampled(spec, SAMPLED_ROWS, metric)
            losses[spec.name] = self._solved(rows, factored)
        return losses

    def _heads(self, walk: StageWalk, group: HeadGroup, counted: _Counted) -> Losses:
        """Some heads stand for all."""
        chosen = spread(group.heads.heads, SAMPLED_PARTS)
        scale = counted.scales[group.heads.weight] * group.heads.heads / len(chosen)
        total: dict[str, float] = {}
        for head in chosen:
            spec = group.heads.matrix(head)
            metric = _Metric(walk.head_statistics(group, head, counted.squares).hessian, scale)
            factored = self._factored(walk.head_statistics(group, head, counted.for_solver))
            rows = max(BLOCK_ROWS, SAMPLED_ROWS // len(chosen))
            _add(total, self._solved(self._sampled(spec, rows, metric), factored))
        return {group.heads.weight: total}

    def _experts(self, rated: RoutedTokens, solved: RoutedTokens, scale: float) -> Losses:
        """Some experts stand for all: evenly spread from the least used to the most."""
        op, uses = rated.experts, rated.uses()
        by_use = sorted(range(op.experts), key=lambda expert: (uses[expert], expert))
        chosen = [by_use[place] for place in spread(op.experts, SAMPLED_PARTS)]
        rows = max(BLOCK_ROWS, SAMPLED_ROWS // len(chosen))
        share = op.experts / len(chosen)
        losses: Losses = {name: {} for name in (op.gate, op.up, op.down)}
        for expert in chosen:
            gate, up, down = op.matrices(expert)
            context = expert_context(op, expert, self.checkpoint.tensors)
            metrics = expert_metrics(rated, expert, context, scale * share)
            read = self._factored(solved.read(expert))
            inner = self._factored(solved.inner(expert, context))
            of_roles = zip(losses, (gate, up, down), metrics, (read, read, inner), strict=True)
            for name, spec, metric, factored in of_roles:
                _add(losses[name], self._solved(self._sampled(spec, rows, metric), factored))
        return losses

    def _factored(self, statistics: LayerStatistics) -> Factored | None:
        return factor(statistics.hessian, statistics.tokens, self.settings)

    def _sampled(self, spec: TensorSpec, count: int, metric: _Metric) -> _Sampled:
        rows = sample(spec.shape[0], count)
        weights = self.checkpoint.tensors.read_float(spec.name)[rows]
        if metric.row_weights is not None:
            metric = replace(metric, row_weights=metric.row_weights[rows])
        return _Sampled(spec.name, spec.shape[0], weights, (metric,))

    def _table(
        self,
        spec: TensorSpec,
        weights: TokenWeights,
        as_head: _Metric | None = None,
        head_input: LayerStatistics | None = None,
    ) -> Losses:
        """An embedding: what its rows add to the stream, beside what they cost as a head."""
        of_stream = np.diag(weights.features[spec.name].astype(np.float64))
        metrics = [_Metric(of_stream, 0.5 / spec.shape[0])]  # each token reads one row
        if as_head is not None:
            metrics.append(as_head)
        statistics = embedding_statistics(self.checkpoint, spec, self.tokens, head_input)
        factored = None if statistics is None else self._factored(statistics)
        table = self._by_frequency(spec, metrics)
        return {spec.name: self._solved(table, factored, self.settings.solves_embedding)}

    def _by_frequency(self, spec: TensorSpec, metrics: Sequence[_Metric]) -> _Sampled:
        """Rows of a vocabulary, each drawn by how often its token comes.

        So often is a row read, and nearly so often does the loss answer to its logit.
        """
        shares = token_shares(self.tokens, spec.shape[0]).cumsum()
        places = (np.arange(TABLE_ROWS) + 0.5) / TABLE_ROWS * shares[-1]
        rows, drawn = np.unique(np.searchsorted(shares, places), return_counts=True)
        weights = (drawn / drawn.mean()).astype(np.float32)
        read = self.checkpoint.tensors.read_float
        sampled = np.concatenate([read(spec.name, slice(row, row + 1)) for row in rows.tolist()])
        counted = [replace(metric, row_weights=weights) for metric in metrics]
        return _Sampled(spec.name, spec.shape[0], sampled, counted)

    def _solved(
        self,
        sampled: _Sampled,
        factored: Factored | None,
        sweeps: Callable[[Format], bool] = lambda format: True,
    ) -> dict[str, float]:
        """The losses of each format, from some rows; what does not sweep is rounded."""
        refits = min(REFITS, self.settings.refits)
        settings = replace(self.settings, refits=refits, refinements=0)

        def loss(format: Format) -> float:
            hessian = factored if sweeps(format) else None
            problem = with_own_table(
                LayerProblem(
                    sampled.name, sampled.weights, hessian, self.tokens.size, format, settings
                )
            )
            solution = solve_round(problem) if hessian is None else solve_gptq(problem)
            decoded = decode_reference(solution.codes, solution.parameters, problem.format)
            change = sampled.weights - decoded
            return sum(metric.loss(change, sampled.rows) for metric in sampled.metrics)

        formats = list(possible(sampled.weights.shape[1], self.settings))
        values = parallel_map(loss, formats)
        return {format.name: value for format, value in zip(formats, values, strict=True)}


def expert_metrics(
    tokens: RoutedTokens, expert: int, context: Context, scale: float
) -> tuple[_Metric, _Metric, _Metric]:
    """Of gate, up and down, by the tokens that are routed to an expert.

    `scale`: of the loss by an error of the block's output, whose directions count alike. A row of
    gate or up reaches it through its column of down and the slope of the activation.
    """
    op = tokens.experts
    gate, up, down = op.matrices(expert)
    x, weights = tokens.own(expert)
    share = len(x) / tokens.count
    if not len(x) or not weights.any():
        nothing = [_Metric(np.zeros((each.shape[1],) * 2), 0.0) for each in (gate, up, down)]
        return nothing[0], nothing[1], nothing[2]
    passed_gate, passed_up, inner = inner_of(op, expert, x, context)
    slopes = gated_slopes(op, passed_gate, passed_up, np.ones_like(passed_gate))
    columns = np.square(context.weights[down.name]).sum(axis=0)
    mean = weights / weights.sum()
    of_rows = [columns * (mean @ np.square(slope)) for slope in slopes]
    read = accumulate([x], op.input, weights).hessian
    written = accumulate([inner], down.name, weights).hessian
    return (
        _Metric(read, scale * share, of_rows[0]),
        _Metric(read, scale * share, of_rows[1]),
        _Metric(written, scale * share),
    )


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    for name, loss in more.items():
        total[name] = total.get(name, 0.0) + loss


def tables_of(plan: Plan) -> dict[str, TensorSpec]:
    """The embeddings of a plan."""
    specs = (each.tensors()[0] for each in plan.stages[0].operations if isinstance(each, Embed))
    return {spec.name: spec for spec in specs}


def pass_work(plan: Plan, shape: tuple[int, int]) -> float:
    """Operations of a pass; shape is (texts, length)."""
    works = sum(stage_work(stage, shape[0] * shape[1], shape[1]) for stage in plan.stages)
    return gradient_work(plan, shape) + WALK_WORK * works


def token_shares(tokens: NDArray[np.int64], vocabulary: int) -> NDArray[np.float64]:
    """How often each token comes, (vocabulary,); those that did not, by Good and Turing.

    Together they come as often as those that came once (I. J. Good 1953, Biometrika 40).
    """
    counts = np.bincount(tokens.ravel(), minlength=vocabulary)[:vocabulary].astype(np.float64)
    unseen = counts == 0
    if unseen.any():
        counts[unseen] = max((counts == 1).sum(), 1) / unseen.sum()
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def spread(count: int, most: int) -> list[int]:
    """At most so many of a count, evenly spread."""
    taken = min(count, most)
    return [(2 * place + 1) * count // (2 * taken) for place in range(taken)]


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
