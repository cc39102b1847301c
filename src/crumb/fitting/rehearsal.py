"""Mixes of formats that run before any of them is made: the KL of each, measured.

In: a float checkpoint, calibration tokens and their weights, solver settings, a folder, the pack of
a text. Out: of formats by tensor name, the KL of every window. Matrices are solved by GPTQ from the
float model's inputs, each in the formats that are asked of it, once; what is done lies in the
folder, so a killed rehearsal goes on. Refuses what the solvers and the engine refuse.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Stage
from crumb.calibrate.embedding import embedding_statistics
from crumb.calibrate.statistics import LayerStatistics
from crumb.calibrate.token_weights import TokenWeights
from crumb.calibrate.walk import walk_model
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.workspace import Workspace
from crumb.checkpoints.tensor_map import Entry
from crumb.errors import placed
from crumb.evaluation.execution import Execution
from crumb.evaluation.reference_pack import ReferencePack, score_on_pack
from crumb.files.atomic_file import write_json
from crumb.fitting.float_inputs import SharedInput, inputs_of
from crumb.fitting.quantize_cost import ROWS_AT_ONCE
from crumb.fitting.sensitivity import tables_of
from crumb.formats.catalog import Format, parse_format
from crumb.operations.operation import TensorSpec
from crumb.run.model import Model
from crumb.solve.factored import Factored, factor
from crumb.solve.gptq import solve_gptq
from crumb.solve.problem import LayerProblem, SolveSettings
from crumb.solve.round import solve_round
from crumb.solve.whole_matrix import solve_matrix

Formats = Mapping[str, str]
"""The format of each matrix, by their names; one that is in it is no float."""

Told = Callable[[Stage], None]
"""A stage is behind us."""

REFITS = 1
"""Of scales; more of them, and refinement, make all formats better alike."""

MEASURED = "measured"


@dataclass(frozen=True)
class MeasuredMix:
    """What a mix was measured to lose."""

    text_sha256: str  # of the windows
    formats: dict[str, str]
    windows: tuple[float, ...]  # mean KL of each, nats

    @property
    def kl(self) -> float:
        """Nats."""
        return float(np.mean(self.windows))

    def less_than(self, other: MeasuredMix) -> tuple[float, float]:
        """By how much it loses less, and the standard error of that, both over the windows."""
        difference = np.subtract(other.windows, self.windows)
        error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
        return float(difference.mean()), float(error)


@dataclass(frozen=True)
class Rehearsal:
    """Solved matrices of a model, and what mixes of them lose."""

    checkpoint: Checkpoint
    tokens: NDArray[np.int64]  # (texts, length)
    settings: SolveSettings
    weights: TokenWeights | None
    folder: Path
    pack: ReferencePack

    def solve(self, asked: Iterable[Formats], told: Told = lambda stage: None) -> None:
        """Every matrix in every format that is asked of it, in one walk through the model.

        Raises: SolveError, DoesNotFit, CheckpointError.
        """
        missing: dict[str, set[str]] = {}
        for formats in asked:
            for name, format in formats.items():
                if self._store.finished(f"{name} {format}") is None:
                    missing.setdefault(name, set()).add(format)
        tables = tables_of(self.checkpoint.plan)
        heads = {linear.weight for linear in self.checkpoint.plan.linears()}
        for name in missing.keys() & tables.keys() - heads:
            self._solve_table(tables[name], missing.pop(name), None)
        stages, behind = self.checkpoint.plan.stages, 0
        for walk, group in walk_model(self.checkpoint, self.tokens) if missing else ():
            while stages[behind] is not walk.stage:
                told(stages[behind])
                behind += 1
            weights = None if self.weights is None else self.weights.of(group.layers)
            for each in inputs_of(walk, group, weights, self.checkpoint.tensors):
                self._solve_input(each, missing, tables)
            if not missing:
                break

    def measure(self, formats: Formats) -> MeasuredMix:
        """The KL of a mix that is solved. Raises: CheckpointError, DoesNotFit."""
        content = msgspec.json.encode([self._text, dict(formats)], order="sorted")
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / MEASURED / f"{digest[:16]}.json"
        with suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode(path.read_bytes(), type=MeasuredMix)
        scores, _, _ = score_on_pack(Model(self.mix(formats)), self.pack, Execution())
        assert scores.divergence is not None, "a pack is a reference"
        windows = tuple(scores.divergence.mean(axis=1).tolist())
        measured = MeasuredMix(self._text, dict(formats), windows)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measured)
        return measured

    def measured(self) -> list[MeasuredMix]:
        """All that was measured on this text so far."""
        paths = sorted((self.folder / MEASURED).glob("*.json"))
        read = [msgspec.json.decode(path.read_bytes(), type=MeasuredMix) for path in paths]
        return [each for each in read if each.text_sha256 == self._text]

    def mix(self, formats: Formats) -> Checkpoint:
        """The model with its matrices in these formats."""
        entries: dict[str, Entry] = dict(self.checkpoint.tensors.entries)
        for name, format in formats.items():
            finished = self._store.finished(f"{name} {format}")
            assert finished is not None, "solved before"
            entries[name] = finished.entry
        tensors = replace(self.checkpoint.tensors, entries=entries)
        return replace(self.checkpoint, tensors=tensors)

    @cached_property
    def _text(self) -> str:
        return hashlib.sha256(self.pack.windows.tokens.astype("<i8").tobytes()).hexdigest()

    @cached_property
    def _store(self) -> Workspace:
        """Matrices by name and format."""
        (self.folder / "tensors").mkdir(parents=True, exist_ok=True)
        return Workspace(self.folder, self.folder, {})

    @cached_property
    def _few(self) -> SolveSettings:
        refits = min(REFITS, self.settings.refits)
        return replace(self.settings, refits=refits, refinements=0, training_steps=0)

    def _factored(self, statistics: LayerStatistics) -> Factored | None:
        return factor(statistics.hessian, statistics.tokens, self._few)

    def _solve_input(
        self, shared: SharedInput, missing: dict[str, set[str]], tables: Mapping[str, TensorSpec]
    ) -> None:
        """The matrices that are missing of an input."""
        specs = [spec for spec in shared.matrices if spec.name in missing]
        if not specs:
            return
        statistics = shared.statistics()
        factored = None
        for spec in specs:
            if spec.name in tables:
                self._solve_table(spec, missing.pop(spec.name), statistics)
                continue
            factored = factored or self._factored(statistics)
            self._solve_matrix(spec, missing.pop(spec.name), factored)

    def _solve_table(
        self, spec: TensorSpec, names: set[str], head_input: LayerStatistics | None
    ) -> None:
        """An embedding: formats of few bits by the curvature of the logits, others rounded."""
        solved = {name for name in names if self.settings.solves_embedding(parse_format(name))}
        statistics = None
        if solved:
            statistics = embedding_statistics(self.checkpoint, spec, self.tokens, head_input)
        factored = None if statistics is None else self._factored(statistics)
        self._solve_matrix(spec, solved, factored)
        self._solve_matrix(spec, names - solved, None)

    def _solve_matrix(self, spec: TensorSpec, names: set[str], factored: Factored | None) -> None:
        for format in map(parse_format, sorted(names)):
            slices = self.checkpoint.tensors.slices(spec.name, ROWS_AT_ONCE)
            problem = replace(self._problem(spec, format), hessian=factored)
            solve = solve_round if factored is None else solve_gptq
            with placed(spec.name):
                tensor, _ = solve_matrix(slices, problem, solve)
            self._store.store(f"{spec.name} {format.name}", tensor, {})

    def _problem(self, spec: TensorSpec, format: Format) -> LayerProblem:
        nothing = np.empty((0, spec.shape[1]), np.float32)
        return LayerProblem(spec.name, nothing, None, self.tokens.size, format, self._few)
