"""The native engine gives what the array executor gives, for every family and every format.

In: the tiny models, float and quantized. Out: logits of both executors, close by the tolerance that
two f32 runs have; with int8 activations close by what rounding them costs.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from exhaustive import EACH_FAMILY, covering, every, format_properties
from numpy.typing import NDArray
from random_matrices import Matrix, all_formats, random_matrix
from tiny_models import LLAMA, VARIANTS, make_tokens, tolerance, write_model

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.writer import write_crumb
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.tensor_map import StoredCodes
from crumb.formats.catalog import GROUP_SIZES, INTEGERS, ROW, Format, ZeroKind, group_name
from crumb.formats.grid import GroupParameters
from crumb.pipeline import QuantizeRequest, quantize
from crumb.run.engine import Engine, Rows, StepPart
from crumb.run.memory_plan import ActivationKind, CacheKind, EngineSettings, WeightsKind
from crumb.run.model import Model
from crumb.run.stored_matrices import weights_bytes
from crumb.solve.problem import Method, Scales, SolveSettings

Floats = NDArray[np.float32]

WIDE = LLAMA | {
    "hidden_size": 136,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 34,
    "intermediate_size": 200,
    "num_hidden_layers": 2,
}
"""Every input is wider than the widest group, and no width is a multiple of one."""

INT8_ERROR = 0.0065
"""Relative output error of int8 activations in blocks of 128, Gaussian inputs."""

LINEAR_STEPS = 4 * 2 + 1
"""Products that follow each other in WIDE: inputs of attention, its output, the MLP's two; head."""


def native_logits(
    engine: Engine, tokens: NDArray[np.int64], chunks: tuple[int, ...] = ()
) -> Floats:
    """Logits of both texts, each cut at these places."""
    texts = []
    for text in tokens:
        sequence = engine.begin(text.tolist(), reuse=False)
        parts = np.split(text, chunks)
        rows = [engine.run([StepPart(sequence, part.tolist(), Rows.ALL)]).copy() for part in parts]
        texts.append(np.concatenate(rows))
        engine.end(sequence)
    return np.stack(texts)


def exact_settings(tokens: NDArray[np.int64]) -> EngineSettings:
    """Room for a whole text at once, everything in f32."""
    length = tokens.shape[1]
    return EngineSettings(
        context_tokens=length,
        step_tokens=length,
        logits_rows=length,
        cache=CacheKind.F32,
        activations=ActivationKind.F32,
        threads=2,
    )


@pytest.mark.parametrize("variant", EACH_FAMILY)
def test_both_executors_give_the_logits_of_every_family(variant: str, tmp_path: Path) -> None:
    model = Model(open_checkpoint(write_model(tmp_path, VARIANTS[variant])))
    tokens = make_tokens(VARIANTS[variant])
    expected = model.logits(tokens)
    engine = Engine(model.checkpoint, exact_settings(tokens))
    whole = native_logits(engine, tokens)
    np.testing.assert_allclose(whole, expected, rtol=0, atol=tolerance(model.plan, expected))
    chunked = native_logits(engine, tokens, (1, 16, 31, 32, 100, 149))
    np.testing.assert_array_equal(chunked, whole)


FORMATS = [format for format in all_formats() if format.row.name in INTEGERS]
"""Every row of whole numbers with every zero kind and group size it lists."""


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here, and a busy disk is slow to sync."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float model that is quantized."""
    return write_model(tmp_path_factory.mktemp("wide"), WIDE)


@cache
def wide_tokens() -> NDArray[np.int64]:
    return make_tokens(WIDE)


@pytest.mark.parametrize(
    "format", covering(FORMATS, format_properties), ids=lambda format: format.name
)
def test_both_executors_give_the_logits_of_every_format(
    format: Format, wide: Path, tmp_path: Path
) -> None:
    quantize(
        QuantizeRequest(
            model=str(wide),
            out=tmp_path / "out",
            bits=format.bits,
            group_size=format.group_size,
            zero=format.zero,
            solve=SolveSettings(method=Method.ROUND, scales=Scales.MINMAX),
        )
    )
    model = Model(open_checkpoint(tmp_path / "out"))
    tokens = wide_tokens()
    expected = model.logits(tokens)
    settings = exact_settings(tokens)
    exact = native_logits(Engine(model.checkpoint, settings), tokens)
    np.testing.assert_allclose(exact, expected, rtol=0, atol=tolerance(model.plan, expected))
    ran = native_logits(
        Engine(model.checkpoint, replace(settings, activations=ActivationKind.INT8)),
        tokens,
    )
    within_rounding(ran, expected)


def within_rounding(ran: Floats, expected: Floats) -> None:
    """What int8 activations may cost.

    Errors of steps that follow each other add as independent ones do. Groups below 128 are rounded
    finer, and a small sum of large products is hit harder: a factor of 3 either way.
    """
    error = np.linalg.norm(ran - expected) / np.linalg.norm(expected)
    bound = INT8_ERROR * LINEAR_STEPS**0.5
    assert bound / 9 < error < 3 * bound


CODES = LLAMA | {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
}
"""Every input is whole super-blocks."""

FOREIGN = [format for format in all_formats() if format.row.name not in INTEGERS]
"""What crumb's own files do not hold: super-blocks and tables."""


def small_matrix(format: Format, rows: int, columns: int, seed: int) -> Matrix:
    """Any codes, with scales that make them weights of at most some hundredths around 0."""
    codes, random = random_matrix(format, rows, columns, seed)
    row = format.row
    most = max(map(abs, row.table)) if row.table else row.largest_code / 2
    finest = 1 if row.super_block is None else row.super_block.highest
    scale = np.full_like(random.scale, 0.05 / most / finest)
    if format.zero is ZeroKind.FIXED:  # else levels longer on one side have a mean
        scale = np.copysign(scale, random.scale)
    fields = {name: array for name, array in vars(random).items() if array is not None}
    if "minimum" in fields:
        fields["minimum"] = (scale * most).astype(np.float16)
    if "sub_minimum" in fields:
        fields["sub_minimum"] = fields["sub_scale"].view(np.uint8)
    return codes, GroupParameters(**(fields | {"scale": scale}))


def of_codes(checkpoint: Checkpoint, format: Format, ordered: bool = False) -> Checkpoint:
    """The checkpoint with other matrices: all foreign codes, their columns in any order."""
    entries = dict(checkpoint.tensors.entries)
    for seed, spec in enumerate(spec for spec in checkpoint.plan.tensors() if spec.matrix):
        matrix = small_matrix(format, *spec.shape, seed)
        order = np.random.default_rng(seed // 3).permutation(spec.shape[1]) if ordered else None
        size = matrix[0].size // 2
        entries[spec.name] = StoredCodes(
            format, spec.shape, size, "TEST", partial(some_rows, matrix), order
        )
    return replace(checkpoint, tensors=replace(checkpoint.tensors, entries=entries))


def some_rows(matrix: Matrix, rows: slice) -> Matrix:
    fields = {name: array for name, array in vars(matrix[1]).items() if array is not None}
    return matrix[0][rows], GroupParameters(**{name: fields[name][rows] for name in fields})


@pytest.fixture(scope="module")
def codes_model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_model(tmp_path_factory.mktemp("codes"), CODES))


@pytest.mark.parametrize(
    ("format", "ordered"),
    every(FOREIGN, [False, True]),
    ids=lambda value: getattr(value, "name", None),
)
def test_both_executors_give_the_logits_of_codes_of_other_files(
    format: Format, ordered: bool, codes_model: Checkpoint
) -> None:
    model = Model(of_codes(codes_model, format, ordered))
    tokens = make_tokens(CODES)
    expected = model.logits(tokens)
    settings = exact_settings(tokens)
    exact = native_logits(Engine(model.checkpoint, settings), tokens)
    np.testing.assert_allclose(exact, expected, rtol=0, atol=tolerance(model.plan, expected))
    rounding = Engine(model.checkpoint, replace(settings, activations=ActivationKind.INT8))
    ran = native_logits(rounding, tokens)
    within_rounding(ran, expected)
    chunked = native_logits(rounding, tokens, (1, 16, 31))
    np.testing.assert_array_equal(chunked, ran)


def test_columns_in_another_order_run_from_a_crumb_directory_as_from_their_file(
    codes_model: Checkpoint, tmp_path: Path
) -> None:
    """The embedding's order too, which cannot be run and is decoded."""
    foreign = of_codes(codes_model, FOREIGN[0], ordered=True)
    write_crumb(foreign, tmp_path / "out", lambda report: None)
    written = open_checkpoint(tmp_path / "out")
    assert weights_bytes(written) == weights_bytes(foreign)
    tokens = make_tokens(CODES)
    for weights in WeightsKind:
        settings = replace(exact_settings(tokens), weights=weights)
        ran, expected = (
            native_logits(Engine(each, settings), tokens) for each in (written, foreign)
        )
        np.testing.assert_array_equal(ran, expected)


def test_the_formats_tried_are_all_there_are() -> None:
    names = {format.name for format in FORMATS}
    assert len(names) == sum(len(row.zeros) * len(row.group_sizes) for row in INTEGERS.values())
    assert {f"int3-{group_name(size)}-{zero}" for size in GROUP_SIZES for zero in ZeroKind} <= names
    assert ROW in GROUP_SIZES
