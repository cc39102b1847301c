"""4-bit floats of compressed-tensors files, read and written.

In: files written byte by byte from the layout. Out: exactly the weights they stand for, and
written files whose arrays are those of the layout.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_files import (
    MODULE,
    NV_WEIGHTS,
    WEIGHT,
    change_config,
    check_weights,
    compressed_arrays,
    float_scheme,
    random_floats,
    random_grid,
    random_scaled_floats,
    write_model,
)

from crumb.checkpoints.compressed_tensors.writer import EXPORT_FORMAT, write_compressed_tensors
from crumb.checkpoints.export_report import TensorReport
from crumb.checkpoints.huggingface.reader import open_directory
from crumb.checkpoints.quantized_writer import ExportedLayer
from crumb.checkpoints.safetensors import read_header
from crumb.checkpoints.tensor_map import StoredCodes, StoredFloats
from crumb.errors import CheckpointError, UsageError
from crumb.formats.catalog import CATALOG
from crumb.formats.grid import GroupParameters
from crumb.pipeline import QuantizeRequest, quantize
from crumb.solve.problem import Method, SolveSettings

SHAPE = (64, 320)
MXFP4, NVFP4 = "mxfp4-pack-quantized", "nvfp4-pack-quantized"
NV_SCHEME = float_scheme(["Linear"], **NV_WEIGHTS) | {"format": NVFP4}


def settings(*groups: dict[str, Any], format: str = MXFP4) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {f"group_{place}": group for place, group in enumerate(groups)},
        "ignore": ["lm_head"],
    }


def write_one(path: Path, arrays: dict[str, Any], **more: Any) -> Path:
    config = settings(float_scheme(["Linear"]), **more)
    return write_model(path, {MODULE: arrays}, config, feed_forward=SHAPE[1], blocks=2)


@pytest.mark.parametrize("format", [MXFP4, "mixed-precision"])
def test_codes_are_those_of_the_catalogs_mxfp4(format: str, tmp_path: Path) -> None:
    grid = random_floats(SHAPE)
    assert set(np.unique(grid.exponents)) == set(range(104, 144))
    entry = check_weights(write_one(tmp_path, grid.arrays(), format=format), grid)
    assert isinstance(entry, StoredCodes)
    assert entry.format.name == "mxfp4-g32-fixed"
    np.testing.assert_array_equal(entry.read_codes(slice(0, 64))[0], grid.codes)


@pytest.mark.parametrize("exponent", [0, 103, 144, 252])
def test_a_scale_beyond_fp16_makes_the_matrix_floats(exponent: int, tmp_path: Path) -> None:
    grid = random_floats(SHAPE)
    grid.exponents[40, 3] = exponent
    entry = check_weights(write_one(tmp_path, grid.arrays()), grid)
    assert isinstance(entry, StoredFloats)
    assert entry.source == "MXFP4"


@pytest.mark.parametrize("exponent", [0, 103, 144, 254])
def test_a_group_of_zeros_may_have_any_scale(exponent: int, tmp_path: Path) -> None:
    grid = random_floats(SHAPE)
    grid.exponents[40, 3] = exponent
    grid.codes[40, 96:128] = np.resize([0, 8], 32)
    assert isinstance(check_weights(write_one(tmp_path, grid.arrays()), grid), StoredCodes)


@pytest.mark.parametrize(("exponent", "zero"), [(253, False), (255, False), (255, True)])
def test_a_scale_that_is_no_number_is_refused(exponent: int, zero: bool, tmp_path: Path) -> None:
    grid = random_floats(SHAPE)
    grid.exponents[40, 3] = exponent
    grid.codes[40, 96:128] = 0 if zero else 7
    tensors = open_directory(write_one(tmp_path, grid.arrays())).tensors
    tensors.read_float(WEIGHT, slice(0, 40))
    with pytest.raises(CheckpointError, match=rf"no number, or too large.*found {exponent}"):
        tensors.read_float(WEIGHT)


def test_what_is_said_of_activations_changes_no_weight(tmp_path: Path) -> None:
    grid = random_floats(SHAPE)
    write_one(tmp_path, grid.arrays() | {"input_global_scale": np.ones(1, np.float32)})
    group = float_scheme(["Linear"]) | {"input_activations": {"num_bits": 4, "type": "float"}}
    change_config(tmp_path, {"config_groups": {"group_0": group}})
    check_weights(tmp_path, grid)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_bits": 8}, "num_bits.*expected 4 of mxfp4-pack-quantized.*found 8"),
        ({"type": "int"}, "type.*expected float"),
        ({"group_size": 16}, "group_size.*expected 32.*found 16"),
        ({"strategy": "tensor_group"}, "strategy.*expected group"),
        ({"symmetric": False}, "symmetric.*expected True"),
        ({"symmetric": 1}, "symmetric.*expected True"),
    ],
    ids=str,
)
def test_settings_that_are_not_the_formats_own_are_refused(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    write_one(tmp_path, random_floats(SHAPE).arrays())
    change_config(tmp_path, {"config_groups": {"group_0": float_scheme(["Linear"], **change)}})
    with pytest.raises(CheckpointError, match=named):
        open_directory(tmp_path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("weight_scale", None),
        ("weight_scale", np.zeros((64, 9), np.uint8)),
        ("weight_scale", np.zeros((64, 10), np.int8)),
        ("weight_scale", np.zeros((640,), np.uint8)),
        ("weight_packed", np.zeros((64, 161), np.uint8)),
        ("weight_packed", np.zeros((63, 160), np.uint8)),
        ("weight_packed", np.zeros((64, 40), np.int32)),
    ],
    ids=str,
)
def test_arrays_that_cannot_be_are_refused_by_name(name: str, array: Any, tmp_path: Path) -> None:
    arrays = random_floats(SHAPE).arrays() | {name: array}
    if array is None:
        del arrays[name]
    with pytest.raises(CheckpointError, match=MODULE.replace(".", r"\.")):
        open_directory(write_one(tmp_path, arrays))


def write_nv(path: Path, arrays: dict[str, Any]) -> Path:
    config = settings(NV_SCHEME, format=NVFP4)
    return write_model(path, {MODULE: arrays}, config, feed_forward=SHAPE[1], blocks=2)


def test_nvfp4_is_read_as_floats(tmp_path: Path) -> None:
    grid = random_scaled_floats(SHAPE)
    more = {"input_global_scale": np.ones(1, np.float32)}
    entry = check_weights(write_nv(tmp_path, grid.arrays() | more), grid)
    assert isinstance(entry, StoredFloats)
    assert entry.source == "NVFP4"
    assert entry.size_bytes == sum(array.nbytes for array in grid.arrays().values())


def test_what_lies_in_nvfp4_can_be_quantized_as_8_bit_floats_can(tmp_path: Path) -> None:
    grid = random_scaled_floats(SHAPE)
    source = write_nv(tmp_path / "model", grid.arrays())
    solve = SolveSettings(method=Method.ROUND)
    request = QuantizeRequest(str(source), tmp_path / "out", bits=8, group_size=32, solve=solve)
    quantize(request)
    weights, expected = open_directory(tmp_path / "out").tensors.read_float(WEIGHT), grid.weights()
    assert np.linalg.norm(weights - expected) < 0.01 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_global_scale", 0),
        ("weight_global_scale", -2),
        ("weight_global_scale", np.nan),
        ("weight_global_scale", 1e-38),
        ("weight_scale", np.nan),
    ],
)
def test_scales_of_nvfp4_that_are_no_numbers_are_refused(
    name: str, value: float, tmp_path: Path
) -> None:
    arrays = random_scaled_floats(SHAPE).arrays()
    arrays[name] = arrays[name].copy()
    arrays[name][-1:] = value
    tensors = open_directory(write_nv(tmp_path, arrays)).tensors
    with pytest.raises(CheckpointError, match=r"no number, or too large.*global scale"):
        tensors.read_float(WEIGHT)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("weight_global_scale", None),
        ("weight_global_scale", np.ones((2,), np.float32)),
        ("weight_global_scale", np.ones((1,), np.float16)),
        ("weight_scale", np.zeros((64, 20), np.uint8)),
        ("weight_packed", np.zeros((64, 80), np.uint8)),
    ],
    ids=str,
)
def test_arrays_of_nvfp4_that_cannot_be_are_refused(name: str, array: Any, tmp_path: Path) -> None:
    arrays = random_scaled_floats(SHAPE).arrays() | {name: array}
    if array is None:
        del arrays[name]
    with pytest.raises(CheckpointError, match=rf"{name}"):
        open_directory(write_nv(tmp_path, arrays))


def written(source: Path, out: Path) -> tuple[dict[str, Any], list[TensorReport]]:
    """What config.json says of the quantization, and the reports."""
    reports: list[TensorReport] = []
    write_compressed_tensors(open_directory(source), out, reports.append)
    return json.loads((out / "config.json").read_text())["quantization_config"], reports


def test_what_is_read_is_written_again_byte_by_byte(tmp_path: Path) -> None:
    grid = random_floats(SHAPE)
    said, reports = written(write_one(tmp_path / "model", grid.arrays()), tmp_path / "out")
    stored, _ = read_header(tmp_path / "out" / "model.safetensors")
    for suffix, array in grid.arrays().items():
        found = stored[f"{MODULE}.{suffix}"].read()
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, array, suffix)
    assert not {f"{MODULE}.weight", f"{MODULE}.weight_shape"} & set(stored)
    assert all(report.exact for report in reports)
    assert said["format"] == MXFP4
    (group,) = said["config_groups"].values()
    assert group["format"] == MXFP4
    assert group["weights"].items() == float_scheme([])["weights"].items()
    check_weights(tmp_path / "out", grid)


def test_beside_layers_of_whole_numbers_each_group_names_its_format(tmp_path: Path) -> None:
    up = "model.layers.1.mlp.up_proj"
    floats, whole = random_floats((64, 96)), random_grid(4, (96, 64), 32)
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    groups = [
        float_scheme([MODULE]),
        {"targets": [up], "weights": weights, "format": "pack-quantized"},
    ]
    arrays = {MODULE: floats.arrays(), up: compressed_arrays(whole)}
    config = settings(*groups, format="mixed-precision")
    said, _ = written(write_model(tmp_path / "model", arrays, config), tmp_path / "out")
    assert said["format"] == "mixed-precision"
    formats = {group["format"] for group in said["config_groups"].values()}
    assert formats == {"pack-quantized", MXFP4}
    tensors = open_directory(tmp_path / "out").tensors
    np.testing.assert_array_equal(tensors.read_float(WEIGHT), floats.weights())
    np.testing.assert_array_equal(tensors.read_float(f"{up}.weight"), whole.weights())


@pytest.mark.parametrize("scale", [0.75, 0.0, -0.5])
def test_a_scale_that_is_no_power_of_two_is_refused(scale: float) -> None:
    format = CATALOG["mxfp4"].only_format()
    layer = ExportedLayer("a.layer", format, (1, 64), None)
    parameters = GroupParameters(np.array([[0.5, scale]], np.float16))
    codes = np.zeros((1, 64), np.uint8)
    with pytest.raises(UsageError, match=r"a\.layer.*powers of two"):
        EXPORT_FORMAT.arrays(layer, (codes, parameters))
    EXPORT_FORMAT.arrays(layer, (codes, replace(parameters, scale=np.abs(parameters.scale[:, :1]))))
