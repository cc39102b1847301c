"""The memory plan is what the engine takes, and buffers that share memory never live together.

In: plans of the tiny models and the embedded model, settings. Out: planned bytes beside allocated
ones, and the refusals of what does not fit.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from command_line import run_process
from hypothesis import given
from hypothesis import strategies as st
from random_matrices import random_matrix
from tiny_models import VARIANTS

from crumb.architectures.plan import Stage
from crumb.architectures.registry import plan_of
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.tensor_map import StoredCodes
from crumb.embedded import MODELS
from crumb.errors import DoesNotFit, UsageError
from crumb.formats.catalog import ZeroKind, make_format
from crumb.kernels.engine import NativeEngine
from crumb.operations.activation import Activation
from crumb.operations.add import Add
from crumb.operations.embed import Embed
from crumb.operations.linear import Linear
from crumb.operations.multiply import Multiply
from crumb.operations.operation import Operation
from crumb.run import memory_plan, program
from crumb.run.buffers import Place, place_buffers, place_stage
from crumb.run.engine import Engine
from crumb.run.load import load
from crumb.run.memory_plan import (
    ActivationKind,
    CacheKind,
    EngineSettings,
    plan_memory,
)
from crumb.run.program import plan_engine

NOVELLA = MODELS["novella-7m"]


def lives_of(stage: Stage, kept: set[str]) -> dict[str, tuple[int, int]]:
    """First and last operation that touches each buffer that is the stage's own."""
    lives: dict[str, tuple[int, int]] = {}
    for index, operation in enumerate(stage.operations):
        for name in (*operation.reads, *operation.writes):
            if name not in kept:
                lives[name] = (lives.get(name, (index, 0))[0], index)
    for name in set(stage.outputs) & lives.keys():
        lives[name] = (lives[name][0], len(stage.operations))
    return lives


def check_places(stage: Stage, places: dict[str, Place], lives: dict[str, tuple[int, int]]) -> None:
    """No two buffers that live together share a float."""
    assert lives.keys() <= places.keys()
    for one, other in combinations(lives, 2):
        together = lives[one][0] <= lives[other][1] and lives[other][0] <= lives[one][1]
        apart = places[one].end <= places[other].offset or places[other].end <= places[one].offset
        assert apart or not together, f"{stage.name}: {one} and {other}"


@st.composite
def stages(draw: st.DrawFn) -> Stage:
    """Random operations: each reads what exists and writes something new or old."""
    names, widths = ["hidden"], {"hidden": 24}
    operations: list[Operation] = []
    for index in range(draw(st.integers(1, 14))):
        read = draw(st.sampled_from(names))
        alike = [name for name in names if widths[name] == widths[read]]
        write = draw(st.sampled_from([f"own{index}", *alike]))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            write, width = f"own{index}", draw(st.integers(1, 60))
            operations.append(Linear(read, write, f"w{index}", None, widths[read], width))
        else:
            width = widths[read]
            other = draw(st.sampled_from(alike))
            operations.append(
                Activation(read, write, "silu")
                if kind == 1
                else (Add if kind == 2 else Multiply)(read, other, write)
            )
        widths[write] = width
        names += [write] if write not in names else []
    return Stage("block", tuple(operations), ("hidden",), ("hidden", names[-1]))


@given(stages(), st.integers(1, 5), st.integers(0, 3))
def test_buffers_that_live_together_never_share_memory(stage: Stage, rows: int, begin: int) -> None:
    places, end = place_stage(stage, {"hidden": 24}, rows, 16 * begin)
    check_places(stage, places, lives_of(stage, {"hidden"}))
    for place in places.values():
        assert 16 * begin <= place.offset
        assert place.end <= end
        assert place.offset % 16 == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_has_places_for_all_its_buffers(variant: str) -> None:
    plan = plan_of(VARIANTS[variant])
    by_stage, floats = place_buffers(plan, rows=7, head_rows=3)
    kept = {name for stage in plan.stages[:-1] for name in stage.outputs}
    for stage, places in zip(plan.stages, by_stage, strict=True):
        between = kept & places.keys()  # lives as long as the step
        whole = dict.fromkeys(between, (0, len(stage.operations)))
        check_places(stage, dict(places), lives_of(stage, {"tokens", "positions"}) | whole)
        assert max(place.end for place in places.values()) <= floats
    assert by_stage[-1]["logits"].rows == 3


class Recorder:
    """Stands before a NativeEngine and remembers the arrays that each of its methods is given."""

    def __init__(self, isa: str, threads: int, scratch: Any) -> None:
        self.real = REAL_ENGINE(isa, threads, scratch)
        self.given: dict[str, list[Any]] = {"scratch": [scratch]}

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            every = (*arguments, *named.values())
            arrays = [each for each in every if isinstance(each, np.ndarray)]
            self.given.setdefault(arguments[0] if name == "add" else name, []).extend(arrays)
            return getattr(self.real, name)(*arguments, **named)

        return call

    def bytes_of(self, *names: str) -> int:
        """Of all different arrays given to these methods."""
        arrays = {each.ctypes.data: each for name in names for each in self.given.get(name, [])}
        return sum(each.nbytes for each in arrays.values())


REAL_ENGINE = NativeEngine


@pytest.mark.parametrize("cache", CacheKind)
@pytest.mark.parametrize("activations", ActivationKind)
def test_the_plan_is_the_bytes_that_are_allocated(
    cache: CacheKind,
    activations: ActivationKind,
    quantized_tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(program, "NativeEngine", Recorder)
    settings = EngineSettings(
        context_tokens=100,
        sequences=3,
        step_tokens=20,
        logits_rows=5,
        cache=cache,
        activations=activations,
        threads=2,
    )
    built = Engine(open_checkpoint(quantized_tiny), settings)
    plan, native = built.memory, cast(Any, built._program.native)
    arena = native.given["add_buffer"]
    begin = min(each.ctypes.data for each in arena)
    assert max(each.ctypes.data + each.nbytes for each in arena) - begin == 4 * plan.arena_floats
    assert plan.buffer_bytes == 4 * plan.arena_floats + native.bytes_of("add_activations")
    assert plan.cache_bytes == native.bytes_of("attention")
    assert plan.scratch_bytes == native.bytes_of("scratch")
    assert plan.table_bytes == native.bytes_of("rotary")
    mapped = native.bytes_of("add_tiles", "add_floats")
    norms = native.bytes_of("norm")  # f16 in the file
    assert plan.weights_bytes == mapped + norms // 2
    parts = plan.cache_bytes + plan.buffer_bytes + plan.scratch_bytes + plan.table_bytes
    assert plan.total_bytes == plan.weights_bytes + parts
    assert (native.bytes_of("add_activations") > 0) == (activations is ActivationKind.INT8)


def test_codes_of_another_file_count_as_their_tiles_and_inputs_in_order_have_a_place(
    quantized_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two matrices of foreign codes, one in another order; floats where an order cannot be run."""
    monkeypatch.setattr(program, "NativeEngine", Recorder)
    checkpoint = open_checkpoint(quantized_tiny)
    linears = [op for stage in checkpoint.plan.stages for op in stage.operations]
    names = [op.weight for op in linears if isinstance(op, Linear)][:2]
    embedding = next(op.weight for op in linears if isinstance(op, Embed))
    entries = dict(checkpoint.tensors.entries)
    format = make_format(4, 32, ZeroKind.VARIABLE)
    for name, ordered in zip([*names, embedding], (False, True, True), strict=True):
        rows, columns = entries[name].shape
        order = np.arange(columns)[::-1] if ordered else None
        matrix = random_matrix(format, rows, columns)
        entries[name] = StoredCodes(
            format, (rows, columns), 1, "TEST", lambda rows, matrix=matrix: matrix, order
        )
    checkpoint = replace(checkpoint, tensors=replace(checkpoint.tensors, entries=entries))
    settings = EngineSettings(context_tokens=20, step_tokens=7, logits_rows=3, threads=1)
    built = Engine(checkpoint, settings)
    plan, native = built.memory, cast(Any, built._program.native)
    mapped = native.bytes_of("add_tiles", "add_floats")
    assert plan.weights_bytes == mapped + native.bytes_of("norm") // 2
    assert plan.table_bytes == native.bytes_of("rotary", "gather")
    assert native.bytes_of("gather") == 4 * entries[names[1]].shape[1]
    ((rows, width), place), *others = plan.gathered.items()
    assert (rows, width, others) == (7, entries[names[1]].shape[1], [])
    assert place.end == plan.arena_floats
    assert all(place.offset >= each.end for places in plan.places for each in places.values())
    without = plan_engine(open_checkpoint(quantized_tiny), settings)
    assert plan.buffer_bytes > without.buffer_bytes


MEASURED = """
import json, sys
from crumb.machine.memory import peak_memory_bytes
from crumb.run.load import load
with load(sys.argv[1], context_tokens=1024, cache="f32", sequences=4) as model:
    model.generate([" a" * 700, " b" * 700], max_tokens=2)
    print(json.dumps([model.memory.weights_bytes, model.memory.cache_bytes, peak_memory_bytes()]))
"""


def test_a_process_takes_the_file_the_cache_and_at_most_100_mib() -> None:
    finished = run_process(NOVELLA, program=MEASURED)
    assert finished.code == 0, finished.err
    weights, cache, peak = json.loads(finished.out)
    assert peak < weights + cache + (100 << 20)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context_tokens", 0),
        ("context_tokens", 1.5),
        ("sequences", -1),
        ("sequences", None),
        ("step_tokens", (1 << 24) + 1),
        ("logits_rows", "16"),
        ("threads", True),
        ("threads", 0),
        ("threads", 5000),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name}: an engine setting is out of range"):
        EngineSettings(**{name: value})


def test_a_context_beyond_the_models_positions_is_refused() -> None:
    plan = open_checkpoint(NOVELLA).plan
    assert EngineSettings(context_tokens=2048).context(plan) == 2048
    with pytest.raises(UsageError, match="at most 2048 tokens, found 2049"):
        EngineSettings(context_tokens=2049).context(plan)


def test_a_plan_that_reads_something_else_than_a_text_is_refused() -> None:
    plan = open_checkpoint(NOVELLA).plan
    with pytest.raises(UsageError, match=r"runs no such encoder.*found encoder_tokens"):
        plan_memory(replace(plan, inputs=("encoder_tokens",)), {}, 0, EngineSettings())


def test_what_does_not_fit_is_refused_with_exit_3_and_its_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_plan, "available_bytes", lambda: 20_000_000)
    load(NOVELLA, context_tokens=64).close()
    with pytest.raises(DoesNotFit, match=r"0\.02 GB available") as caught:
        load(NOVELLA, context_tokens=2048, cache="f32")
    assert caught.value.exit_code == 3
    assert "0.01 of weights" in str(caught.value)
    assert "--cache int8" in str(caught.value)
