"""The native engine gives what the array executor gives, for every family and every format.

In: the tiny models, float and quantized. Out: logits of both executors, close by the tolerance that
two f32 runs have; with int8 activations close by what rounding them costs.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import LLAMA, VARIANTS, make_tokens, tolerance, write_model

from crumb.checkpoints.huggingface import open_checkpoint
from crumb.formats.catalog import CATALOG, GROUP_SIZES, ROW, Format, ZeroKind, group_name
from crumb.pipeline import QuantizeRequest, quantize
from crumb.run.engine import Engine, Part, Wanted
from crumb.run.memory_plan import ActivationKind, CacheKind, EngineSettings
from crumb.run.model import Model
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
        rows = [engine.step([Part(sequence, part.tolist(), Wanted.ALL)]) for part in parts]
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_executors_give_the_logits_of_every_family(variant: str, tmp_path: Path) -> None:
    model = Model(open_checkpoint(write_model(tmp_path, VARIANTS[variant])))
    tokens = make_tokens(VARIANTS[variant])
    expected = model.logits(tokens)
    engine = Engine(model.checkpoint, exact_settings(tokens))
    whole = native_logits(engine, tokens)
    np.testing.assert_allclose(whole, expected, rtol=0, atol=tolerance(model.plan, expected))
    chunked = native_logits(engine, tokens, (1, 16, 31, 32, 100, 149))
    np.testing.assert_array_equal(chunked, whole)


FORMATS = [
    Format(row, size, zero)
    for row in CATALOG.values()
    for zero, size in product(row.zeros, row.group_sizes)
]
"""Every row of the catalog with every zero kind and group size it lists."""


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


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
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
    error = np.linalg.norm(ran - expected) / np.linalg.norm(expected)
    # Errors of steps that follow each other add as independent ones do. Groups of 32 are rounded
    # finer, and a small sum of large products is hit harder: a factor of 3 either way.
    bound = INT8_ERROR * LINEAR_STEPS**0.5
    assert bound / 9 < error < 3 * bound


def test_the_formats_tried_are_all_there_are() -> None:
    names = {format.name for format in FORMATS}
    assert len(names) == sum(len(row.zeros) * len(row.group_sizes) for row in CATALOG.values())
    assert {f"int3-{group_name(size)}-{zero}" for size in GROUP_SIZES for zero in ZeroKind} <= names
    assert ROW in GROUP_SIZES
