"""Directories in MLX's layout: codes along the inputs, scales and biases by group.

In: matrices packed here number by number, as MLX's description of its layout says. Out: the
weights that are read, against scale * code + bias; refusals.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scaled_files import write_mlx
from tiny_checkpoint import QUERY, write_checkpoint

from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.tensor_map import StoredCodes, StoredFloats
from crumb.errors import CheckpointError
from crumb.formats.catalog import ZeroKind


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64])
def test_every_weight_is_scale_times_code_plus_bias(bits: int, group: int, tmp_path: Path) -> None:
    weights = write_mlx(tmp_path, bits, group)
    tensors = open_checkpoint(tmp_path).tensors
    for name, expected in weights.items():
        entry = tensors.entry(name)
        assert isinstance(entry, StoredCodes)
        assert entry.format.zero is ZeroKind.MINIMUM
        assert entry.format.group_width(entry.shape[1]) == group or entry.shape[1] == group
        assert np.array_equal(tensors.read_float(name), expected), name
        assert np.array_equal(tensors.read_float(name, slice(5, 9)), expected[5:9]), name


def test_scales_beyond_fp16_are_read_as_floats(tmp_path: Path) -> None:
    weights = write_mlx(tmp_path, 4, 32, np.float32)
    tensors = open_checkpoint(tmp_path).tensors
    assert isinstance(tensors.entry(QUERY), StoredFloats)
    assert np.array_equal(tensors.read_float(QUERY), weights[QUERY])


def test_bfloat16_scales_within_fp16_keep_their_codes(tmp_path: Path) -> None:
    weights = write_mlx(tmp_path, 4, 64, ml_dtypes.bfloat16)
    tensors = open_checkpoint(tmp_path).tensors
    for name, expected in weights.items():
        assert np.array_equal(tensors.read_float(name), expected), name


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mode": "mxfp4"}, "quantization.mode.*affine.*found 'mxfp4'"),
        ({"bits": 7}, "quantization.bits"),
        ({"group_size": 48}, "whole groups"),
        ({QUERY.removesuffix(".weight"): {"bits": 8}}, "scales"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(
    settings: dict[str, Any], named: str, tmp_path: Path
) -> None:
    write_mlx(tmp_path, 4, 32)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization"] |= settings
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("settings", [{"quant_method": "mlx"}, {"quant_method": "mlx", "bits": 4}])
def test_a_method_called_mlx_without_its_settings_is_refused(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, configuration={"quantization_config": settings})
    with pytest.raises(CheckpointError, match=r"quantization.*an object"):
        open_checkpoint(tmp_path)
