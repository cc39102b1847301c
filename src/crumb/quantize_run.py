"""One quantization at work: stage after stage, each finished tensor stored at once.

In: a Model, a request, a format for each matrix, calibration tokens, a workspace. Out: the
manifest's records. Holds one group of layers and its statistics, whatever the depth; a killed run
goes on where it was. Refuses weights that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Stage
from crumb.calibrate.block_trainer import BlockTrainer, TrainingSettings, trained_linears
from crumb.calibrate.embedding import embedding_statistics
from crumb.calibrate.float_stream import Correction, FloatStream
from crumb.calibrate.model_trainer import ModelTrainer, TogetherSettings
from crumb.calibrate.routed import Routed, RoutedTokens
from crumb.calibrate.statistics import LayerStatistics
from crumb.calibrate.token_weights import GradientPass, TokenWeights
from crumb.calibrate.walk import ExpertGroup, Group, HeadGroup, StageWalk, batches_of
from crumb.checkpoints.crumb.workspace import Workspace
from crumb.checkpoints.safetensors import StoredArray
from crumb.errors import placed
from crumb.fitting.quantize_cost import (
    ROWS_AT_ONCE,
    correction_work,
    embedding_work,
    expert_work,
    input_work,
    matrix_work,
    total_work,
)
from crumb.fitting.stage_cost import stage_work
from crumb.fitting.training_cost import together_work, training_work, trains_together
from crumb.formats.packed_tensor import PackedTensor, stack_rows
from crumb.kernels.products import multiply
from crumb.kernels.tile import pack_tensor
from crumb.operations.embed import Embed
from crumb.operations.operation import Context, TensorSpec
from crumb.progress import ProgressClock, ProgressListener
from crumb.quantize_record import LayerInput, count_columns, make_record
from crumb.requests.quantize_request import (
    Choice,
    QuantizeRequest,
    needs_calibration,
)
from crumb.run.model import Model
from crumb.run.whole_texts import Batch, WholeTexts, behind_stage, of_stage, plan_texts
from crumb.solve.factored import factor
from crumb.solve.gptq import solve_gptq
from crumb.solve.on_grid import codes_on_grid
from crumb.solve.problem import (
    LayerProblem,
    SolveReport,
    check_finite,
    join_reports,
)
from crumb.solve.round import solve_round, zero_share
from crumb.solve.whole_matrix import solve_matrix
from crumb.texts.pairs import PairTokens


def embedded(stage: Stage) -> list[TensorSpec]:
    """The tables a stage looks up."""
    return [op.tensors()[0] for op in stage.operations if isinstance(op, Embed)]


class QuantizeRun:
    """One quantization at work: stages in order, each finished tensor stored at once.

    Raises: SolveError for weights or inputs that are not finite.
    """

    def __init__(
        self,
        model: Model,
        request: QuantizeRequest,
        workspace: Workspace,
        choice: Choice,
        tokens: NDArray[np.int64] | PairTokens,
        gradients: Path,
        progress: ProgressListener,
    ) -> None:
        self.model, self.request, self.workspace = model, request, workspace
        self.gradients = gradients  # the folder of the pass that weighs tokens
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
        stages = model.plan.stages
        self.tables = {spec.name for stage in stages for spec in embedded(stage)}

    def all_stages(self) -> dict[str, dict[str, Any]]:
        """Quantize every matrix; returns the manifest's records by tensor name."""
        flowing = batches_of(self.tokens)
        self.take_codes()
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
        if trains_together(self.model.plan, self.formats, self.request.settings):
            self.train_together()
        return self.records

    def take_codes(self) -> None:
        """Matrices that lie on their format's grid already: their codes as they are."""
        for spec in self.model.plan.tensors():
            if not spec.matrix or not self.unfinished(spec.name):
                continue
            taken = self.on_grid(spec)
            if taken is not None:
                record = make_record(*taken, self.fallbacks.get(spec.name), None)
                self.workspace.store(spec.name, taken[0], record | {"on_grid": True})
                self.advance(0.0, f"{spec.name}, on its grid already")

    def on_grid(self, spec: TensorSpec) -> tuple[PackedTensor, SolveReport] | None:
        """A matrix in codes that decode to the very weights, or None."""
        format, entry = self.formats[spec.name], self.tensors.entry(spec.name)
        if not isinstance(entry, StoredArray):
            return None
        parts, reports = [], []
        for _, weights in self.slices(spec):
            taken = codes_on_grid(weights, format, entry.dtype)
            if taken is None:
                return None
            parts.append(pack_tensor(*taken, format))
            reports.append((SolveReport(None, None, zero_share(weights)), len(weights)))
        return stack_rows(parts), join_reports(reports)

    def weigh_tokens(self) -> None:
        """How much each token counts for each layer, unless no layer is left to solve."""
        if not self.unfinished_stages(0):
            return
        for spec in self.model.plan.tensors():  # NaN is refused before this, the longest part
            for begin, weights in self.slices(spec):
                check_finite(weights, spec.name, begin)
        gradients = GradientPass(self.model.checkpoint, self.tokens, self.gradients)

        def told(stage: Stage, passes: float) -> None:
            work = stage_work(stage, self.tokens.size, self.tokens.shape[1])
            self.advance(passes * work, f"{stage.name}, gradients")

        self.token_weights = gradients.run(self.request.settings.token_power, told)

    @property
    def plain_tokens(self) -> NDArray[np.int64]:
        """Those of texts; what is trained, and embeddings that are solved, never read pairs."""
        assert not isinstance(self.tokens, PairTokens), "quantize_request.of_plan refuses it"
        return self.tokens

    def embedding_input(self, spec: TensorSpec) -> LayerInput | None:
        """The H that an embedding is solved by, factored; None where it is rounded."""
        format = self.formats.get(spec.name)
        if format is None or not self.request.settings.solves_embedding(format):
            return None
        self.advance(embedding_work(self.model.plan, spec, self.tokens.shape), spec.name)
        if not self.unfinished(spec.name):
            return None
        statistics = embedding_statistics(self.model.checkpoint, spec, self.plain_tokens)
        return None if statistics is None else self.factored(statistics)

    def calibrated_stage(self, index: int, flowing: list[Batch]) -> list[Batch]:
        """Quantize a stage's linear layers and run the tokens through the result."""
        stage = self.model.plan.stages[index]
        last = stage is self.model.plan.stages[-1]
        if not self.unfinished_stages(index):
            for spec in stage.tensors():
                if spec.matrix:
                    self.matrix(spec, None)
            return flowing
        trainer = self.trainer
        if trainer is not None:
            trainer.enter(index, self.texts, flowing)
        walk = StageWalk(self.texts, index, of_stage(stage, flowing))
        for group in walk.groups():
            self.group(walk, group)
            if last:
                return flowing  # nothing needs the logits
        streams = 1 if self.float_stream is None else 2
        work = streams * stage_work(stage, self.tokens.size, self.tokens.shape[1])
        self.advance(work, stage.name)
        if trainer is None:
            return behind_stage(self.model.plan, index, flowing, walk.flowing)
        return self.trained(trainer, walk)

    @cached_property
    def trainer(self) -> BlockTrainer | None:
        """What trains the blocks, if they are to be."""
        if not self.request.settings.trains:
            return None
        steps = self.request.settings.training_steps
        settings = TrainingSettings(steps, self.request.calibration.seed, self.request.device)
        return BlockTrainer(self.model.checkpoint, self.plain_tokens, self.workspace, settings)

    def trained(self, trainer: BlockTrainer, walk: StageWalk) -> list[Batch]:
        """Train the block that the walk went through, and run the tokens through the result."""
        length = self.tokens.shape[1]
        work = training_work(walk.stage, self.formats, self.request.settings, length)
        told = partial(self.share, work, f"{walk.stage.name}, training")
        tensors = self.texts.checkpoint.tensors
        rounded = trainer.train(self.formats, tensors, self.token_weights, told)
        for name, tensor in rounded.items():
            self.records[name], self.entries[name] = tensor.record, tensor.entry
        return trainer.leave(self.texts) if rounded else walk.flowing

    def train_together(self) -> None:
        """Train the codes of all blocks against the float model's distributions."""
        request, steps = self.request, self.request.settings.model_steps
        work = together_work(self.model.plan, self.formats, request.settings, self.tokens.shape[1])
        settings = TogetherSettings(steps, request.calibration.seed, request.device)
        trainer = ModelTrainer(self.model.checkpoint, self.entries, self.workspace, settings)
        told = partial(self.share, work / steps, "all blocks, training")
        for name, tensor in trainer.train(self.formats, self.plain_tokens, told).items():
            self.records[name], self.entries[name] = tensor.record, tensor.entry

    @cached_property
    def float_stream(self) -> FloatStream | None:
        """The float model, walked beside."""
        if not self.request.settings.corrects:
            return None
        return FloatStream(self.model.checkpoint, self.tokens)

    def group(self, walk: StageWalk, group: Group) -> None:
        """Quantize the layers of one group."""
        beside = self.float_stream
        if beside is not None:
            beside.advance()
        weights = None if self.token_weights is None else self.token_weights.of(group.layers)
        if isinstance(group, ExpertGroup):
            self.experts(RoutedTokens(walk, group, weights))
            return
        if isinstance(group, HeadGroup):
            for head in range(group.heads.heads):
                spec = group.heads.matrix(head)
                self.solved((spec,), partial(walk.head_statistics, group, head, weights))
                self.advance(input_work(spec.shape[1], self.tokens.size), spec.name)
            return
        specs = [linear.tensors()[0] for linear in group.linears]
        correct = None if beside is None else partial(beside.correction, walk, group, weights)
        self.solved(specs, lambda: walk.statistics(group, weights), correct=correct)
        width, tokens = specs[0].shape[1], self.tokens.size
        work = input_work(width, tokens) + (correction_work(width, tokens) if correct else 0.0)
        self.advance(work, walk.stage.name)

    def experts(self, tokens: RoutedTokens) -> None:
        """Quantize a block's experts, one after the other."""
        op = tokens.experts
        for expert in range(op.experts):
            gate, up, down = op.matrices(expert)
            self.solved((gate, up), partial(tokens.read, expert), tokens.routed(expert, gate))
            self.solved((down,), partial(self.inner, tokens, expert), tokens.routed(expert, down))
            work = expert_work(op, self.tokens.size) / op.experts
            self.advance(work, gate.name)

    def inner(self, tokens: RoutedTokens, expert: int) -> LayerStatistics:
        """Of what an expert's down reads behind its finished gate and up."""
        read, specs = self.texts.checkpoint.tensors.read_float, tokens.experts.of_expert(expert)
        weights = {spec.name: read(spec.name) for spec in specs}
        return tokens.inner(expert, Context(weights, multiply=multiply))

    def solved(
        self,
        specs: Sequence[TensorSpec],
        statistics: Callable[[], LayerStatistics],
        routed: Routed | None = None,
        correct: Callable[[], Correction | None] | None = None,
    ) -> None:
        """Quantize matrices of one input, unless an earlier run did."""
        layer_input: LayerInput | None = None
        if any(self.unfinished(spec.name) for spec in specs):
            correction = None if correct is None else correct()  # before H is there
            layer_input = replace(self.factored(statistics()), routed=routed, correction=correction)
        for spec in specs:
            self.matrix(spec, layer_input)

    def slices(self, spec: TensorSpec) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, weights) of some rows at a time."""
        return self.tensors.slices(spec.name, ROWS_AT_ONCE)

    def factored(self, statistics: LayerStatistics) -> LayerInput:
        """Statistics ready for the sweep; H itself is let go where the factor exists."""
        factored = factor(statistics.hessian, statistics.tokens, self.request.settings)
        return LayerInput(statistics.hessian if factored is None else factored)

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
            record = make_record(tensor, report, self.fallbacks.get(spec.name), layer_input)
            if self.request.settings.keep_columns:
                record["float_columns"] = count_columns(tensor)
            self.workspace.store(spec.name, tensor, record)
            finished = self.workspace.finished(spec.name)
            assert finished is not None, "just stored"
        self.records[spec.name] = finished.record
        self.entries[spec.name] = finished.entry
        self.advance(matrix_work(spec, self.formats[spec.name], self.request.settings), spec.name)

    def solve_rows(
        self, spec: TensorSpec, layer_input: LayerInput | None
    ) -> tuple[PackedTensor, SolveReport]:
        """Solve a matrix some rows at a time; rows do not depend on each other."""
        settings = self.request.settings
        if spec.name in self.tables:
            settings = replace(settings, keep_columns=0.0)
        problem = LayerProblem(
            name=spec.name,
            weights=np.empty((0, spec.shape[1]), np.float32),
            hessian=None if layer_input is None else layer_input.hessian,
            tokens=self.tokens.size,
            format=self.formats[spec.name],
            settings=settings,
        )
        with placed(spec.name):
            solve = solve_round if problem.hessian is None else solve_gptq
            return solve_matrix(self.targets(spec, layer_input), problem, solve)

    def targets(
        self, spec: TensorSpec, layer_input: LayerInput | None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """What codes are chosen for: the weights, corrected by what earlier layers lost."""
        correction = None if layer_input is None else layer_input.correction
        for begin, weights in self.slices(spec):
            yield begin, weights if correction is None else correction.of(weights)

    def unfinished_stages(self, index: int) -> bool:
        """Whether a stage from this one on has something left to solve or to train."""
        stages = self.model.plan.stages[index:]
        if self.trainer is None:
            return self.unsolved(stages)
        names = [
            each.weight for stage in stages[:-1] for each in trained_linears(stage, self.formats)
        ]
        return self.unsolved(stages) or self.trainer.untrained(names)

    def unsolved(self, stages: Sequence[Stage]) -> bool:
        """Whether statistics are still needed for a matrix of these stages."""
        looked_up = {spec.name for stage in stages for spec in embedded(stage)}
        names = {spec.name for stage in stages for spec in stage.tensors()} - looked_up
        return any(map(self.unfinished, names))

    def unfinished(self, name: str) -> bool:
        return name in self.formats and self.workspace.finished(name) is None

    @cached_property
    def texts(self) -> WholeTexts:
        """How the model runs the batches, each matrix as its users will see it."""
        checkpoint = self.model.checkpoint
        finished = replace(checkpoint.tensors, entries=self.entries)
        return plan_texts(replace(checkpoint, tensors=finished), batches_of(self.tokens))

    def float_record(self, spec: TensorSpec) -> dict[str, Any]:
        """What the manifest says of a matrix that its target cannot hold quantized."""
        entry = self.tensors.entry(spec.name)
        return {
            "format": "float",
            "shape": list(spec.shape),
            "bytes": entry.size_bytes,
            "fallback": self.fallbacks[spec.name],
        }

    def share(self, work: float, doing: str, share: float) -> None:
        self.advance(work * share, doing)

    def advance(self, work: float, doing: str) -> None:
        self.done = min(self.done + work, self.total)
        self.clock(self.done / self.total, doing)
