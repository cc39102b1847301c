"""Models of 8-bit floats: quant_method fp8 and compressed-tensors' plain formats.

In: tiny models whose matrices are quantized here the plain way, from the layouts alone. Out: the
weights that are read, against stored float * scale in f64; refusals.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scaled_files import write_eight
from tiny_checkpoint import DOWN, QUERY, write_checkpoint

from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.tensor_map import StoredCodes, StoredFloats
from crumb.errors import CheckpointError
from crumb.pipeline import QuantizeRequest, quantize
from crumb.solve.problem import Method, SolveSettings

BLOCK = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [48, 40]}
WHOLE = {"quant_method": "fp8", "activation_scheme": "static"}
ROWS = {"quant_method": "fbgemm_fp8"}


def compressed(kind: str, format: str, strategy: str, **more: Any) -> dict[str, Any]:
    """Settings of compressed-tensors."""
    weights = {"num_bits": 8, "type": kind, "strategy": strategy, "symmetric": True} | more
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": groups}


CASES: dict[str, tuple[dict[str, Any], str, tuple[int, int] | None, Any]] = {
    # settings, name of the scales, rows and columns of a scale (0: all), their type
    "blocks": (BLOCK, "weight_scale_inv", (48, 40), np.float32),
    "whole": (WHOLE, "weight_scale", None, np.float32),
    "rows": (ROWS, "weight_scale", (1, 0), ml_dtypes.bfloat16),
    "ct rows": (compressed("float", "float-quantized", "channel"), "weight_scale", (1, 0), "f4"),
    "ct whole": (compressed("float", "naive-quantized", "tensor"), "weight_scale", None, "f4"),
    "ct blocks": (
        compressed("float", "float-quantized", "block", block_structure=[48, 40]),
        "weight_scale",
        (48, 40),
        "f4",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_eight_bit_floats_are_read_with_every_kind_of_scale(case: str, tmp_path: Path) -> None:
    weights = write_eight(tmp_path, *CASES[case])
    tensors = open_checkpoint(tmp_path).tensors
    for name, expected in weights.items():
        assert np.array_equal(tensors.read_float(name), expected.astype(np.float32)), name
        part = tensors.read_float(name, slice(3, 21))
        assert np.array_equal(part, expected[3:21].astype(np.float32)), name
        assert tensors.entry(name).lies_as_floats


def test_signed_bytes_keep_their_codes(tmp_path: Path) -> None:
    settings = compressed("int", "int-quantized", "channel")
    weights = write_eight(tmp_path, settings, "weight_scale", (1, 0), np.float16, np.dtype(np.int8))
    tensors = open_checkpoint(tmp_path).tensors
    entry = tensors.entry(QUERY)
    assert isinstance(entry, StoredCodes)
    assert entry.format.name == "int8-row-fixed"
    for name, expected in weights.items():
        assert np.array_equal(tensors.read_float(name), expected.astype(np.float32)), name


def test_a_model_of_eight_bit_floats_can_be_quantized(tmp_path: Path) -> None:
    write_eight(tmp_path / "eight", *CASES["blocks"])
    settings = SolveSettings(method=Method.ROUND)
    out = tmp_path / "out"
    quantize(QuantizeRequest(str(tmp_path / "eight"), out, bits=4, group_size=32, solve=settings))
    told = json.loads((out / "config.json").read_text())["quantization_config"]
    assert told["quant_method"] == "crumb"


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    write_eight(tmp_path, *CASES["whole"])
    raw = bytearray((tmp_path / "model.safetensors").read_bytes())
    entry = open_checkpoint(tmp_path).tensors.entry(DOWN)
    assert isinstance(entry, StoredFloats)
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    begin = header[DOWN.replace("weight", "weight_scale")]["data_offsets"][0]
    at = 8 + int.from_bytes(raw[:8], "little") + begin
    raw[at : at + 4] = np.float32(np.nan).tobytes()
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match="scale is not finite"):
        open_checkpoint(tmp_path).tensors.read_float(DOWN)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight_block_size": [64]}, "weight_block_size.*two numbers"),
        ({"weight_block_size": [48, 41]}, r"scales that do not fit.*\[2, 2\]"),
        ({"weight_block_size": [0, 8]}, "weight_block_size"),
    ],
)
def test_settings_that_do_not_fit_the_scales_are_refused(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    write_eight(tmp_path, BLOCK | change, "weight_scale_inv", (48, 20), np.float32)
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(tmp_path)


def test_the_method_is_looked_at_before_the_files(tmp_path: Path) -> None:
    """So that a layout of unknown types is refused by its name."""
    write_checkpoint(tmp_path, configuration={"quantization_config": {"quant_method": "hqq"}})
    (tmp_path / "model.safetensors").write_bytes(b"no safetensors file")
    with pytest.raises(CheckpointError, match=r"'hqq'.*16-bit release"):
        open_checkpoint(tmp_path)
