"""Matrices that GPT-2's files hold transposed: read by outputs, written as they were.

In: a tiny gpt2 whose attention output is square, so that no shape tells. Out: the same weights
through every container.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_models import VARIANTS, make_tokens, make_weights, write_model

from crumb.architectures.registry import plan_of
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.writer import write_crumb
from crumb.checkpoints.huggingface.writer import write_floats
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.tensor_map import TensorMap
from crumb.pipeline import QuantizeRequest, quantize
from crumb.run.model import Model
from crumb.solve.problem import Method, Scales, SolveSettings

GPT2 = VARIANTS["gpt2"]
SQUARE, WIDE = "transformer.h.1.attn.c_proj.weight", "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "source"
    folder.mkdir()
    return open_checkpoint(write_model(folder, GPT2))


@pytest.fixture
def quantized(source: Checkpoint, tmp_path: Path) -> Checkpoint:
    rounding = SolveSettings(method=Method.ROUND, scales=Scales.MINMAX)
    request = QuantizeRequest(
        model=str(source.path), out=tmp_path / "int8", bits=8, group_size=32, solve=rounding
    )
    quantize(request)
    return open_checkpoint(tmp_path / "int8")


@pytest.mark.parametrize("name", [SQUARE, WIDE])
def test_rows_are_outputs_whatever_part_of_them_is_read(name: str, source: Checkpoint) -> None:
    expected = make_weights(plan_of(GPT2))[name]
    raw = load_file(source.path / "model.safetensors")[name]
    np.testing.assert_array_equal(raw, expected.T)
    for rows in (slice(None), slice(3, 9), slice(30, None), slice(0, 0)):
        np.testing.assert_array_equal(source.tensors.read_float(name, rows), expected[rows])


def test_floats_are_written_as_they_were_read(source: Checkpoint, tmp_path: Path) -> None:
    write_floats(source, tmp_path / "again", np.dtype(np.float32), lambda report: None)
    again, before = (
        load_file(path / "model.safetensors") for path in (tmp_path / "again", source.path)
    )
    assert again.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(again[name], array)


def test_quantized_matrices_lie_by_outputs_and_their_floats_do_not(
    quantized: Checkpoint, tmp_path: Path
) -> None:
    weights = quantized.tensors.read_float(SQUARE)
    np.testing.assert_allclose(weights, make_weights(plan_of(GPT2))[SQUARE], atol=0.01)
    write_floats(quantized, tmp_path / "floats", np.dtype(np.float32), lambda report: None)
    raw = load_file(tmp_path / "floats" / "model.safetensors")
    np.testing.assert_array_equal(raw[SQUARE], weights.T)
    tokens = make_tokens(GPT2)
    logits = Model(open_checkpoint(tmp_path / "floats")).logits(tokens)
    np.testing.assert_array_equal(logits, Model(quantized).logits(tokens))


def test_a_directory_may_hold_some_matrices_as_floats(
    source: Checkpoint, quantized: Checkpoint, tmp_path: Path
) -> None:
    entries = {**quantized.tensors.entries, SQUARE: source.tensors.entry(SQUARE)}
    mixed = replace(quantized, tensors=TensorMap(quantized.path, entries))
    write_crumb(mixed, tmp_path / "mixed", lambda report: None)
    again = open_checkpoint(tmp_path / "mixed")
    for name in (SQUARE, WIDE):
        expected = mixed.tensors.read_float(name)
        np.testing.assert_array_equal(again.tensors.read_float(name), expected)
