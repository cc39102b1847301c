"""compressed-tensors files: all bits, groups and zero points, read and written.

In: files written word by word from the layout, and tiny models with random codes. Out: exactly
the weights they stand for; written files whose arrays are those of the layout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from quantized_files import (
    MODULE,
    WEIGHT,
    Arrays,
    Grid,
    change_config,
    check_weights,
    compressed_arrays,
    random_grid,
    write_model,
)

from crumb.checkpoints.compressed_tensors.writer import write_compressed_tensors
from crumb.checkpoints.export_report import TensorReport
from crumb.checkpoints.huggingface.reader import open_directory
from crumb.checkpoints.safetensors import read_header
from crumb.checkpoints.tensor_map import StoredCodes, StoredFloats
from crumb.errors import CheckpointError

BITS = range(1, 9)


def scheme(grid: Grid, targets: list[str]) -> dict[str, Any]:
    """One group of config_groups."""
    whole = grid.group_size == -1
    weights = {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": grid.symmetric,
        "strategy": "channel" if whole else "group",
        "group_size": None if whole else grid.group_size,
        "dynamic": False,
        "observer": "minmax",
    }
    return {"targets": targets, "weights": weights, "input_activations": None}


def settings(groups: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What llm-compressor writes."""
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {f"group_{place}": group for place, group in enumerate(groups)},
        "ignore": ["lm_head"],
        **more,
    }


def write_one(path: Path, grid: Grid, arrays: Arrays | None = None, **more: Any) -> Path:
    """A model with one quantized layer, of as many inputs as the grid has."""
    chosen = compressed_arrays(grid) if arrays is None else arrays
    config = settings([scheme(grid, ["Linear"])], **more)
    return write_model(path, {MODULE: chosen}, config, feed_forward=grid.codes.shape[1], blocks=2)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [16, 32, 64, 128, -1, 256])
@pytest.mark.parametrize("bits", BITS)
def test_every_setting_decodes_as_the_layout_says(
    bits: int, group_size: int, symmetric: bool, tmp_path: Path
) -> None:
    """1 and 7 bits have no row of their own: they are codes of 2 and 8 bits."""
    grid = random_grid(bits, (64, 320), group_size, symmetric=symmetric)
    entry = check_weights(write_one(tmp_path, grid), grid)
    if group_size == 16:
        assert isinstance(entry, StoredFloats)
        return
    assert isinstance(entry, StoredCodes)
    size = {-1: "row", 256: "g128"}.get(group_size, f"g{group_size}")
    kind = "fixed" if grid.symmetric else "variable"
    assert entry.format.name == f"int{ {1: 2, 7: 8}.get(bits, bits) }-{size}-{kind}"


@pytest.mark.parametrize("columns", [60, 33, 32, 4096])
@pytest.mark.parametrize("bits", BITS)
def test_inputs_that_fill_no_whole_word_are_cut_off(
    bits: int, columns: int, tmp_path: Path
) -> None:
    grid = random_grid(bits, (64, columns), -1, symmetric=False)
    assert isinstance(check_weights(write_one(tmp_path, grid), grid), StoredCodes)


def test_scales_in_bfloat16_stay_codes_where_fp16_holds_them(tmp_path: Path) -> None:
    """Eight significant bits: fp16 has them all down to 2^-17."""
    grid = random_grid(4, (64, 320), 64)
    for smallest, kind in ((2.0**-17, StoredCodes), (1.9921875 * 2.0**-19, StoredFloats)):
        scales = grid.scales.astype(ml_dtypes.bfloat16)
        scales[np.abs(scales.astype(np.float32)) < smallest] = smallest
        scales[5, 2] = smallest
        other = Grid(4, 64, grid.codes, scales, grid.zeros, grid.groups)
        entry = check_weights(write_one(tmp_path / kind.__name__, other), other)
        assert isinstance(entry, kind)


def test_zero_points_that_are_not_packed_are_read_too(tmp_path: Path) -> None:
    """As earlier versions wrote them: signed bytes."""
    grid = random_grid(4, (64, 320), 64, symmetric=False)
    arrays = compressed_arrays(grid) | {"weight_zero_point": (grid.zeros - 8).astype(np.int8)}
    check_weights(write_one(tmp_path, grid, arrays), grid)


def test_settings_under_their_older_key_are_read(tmp_path: Path) -> None:
    grid = random_grid(4, (64, 320), 64)
    file = write_one(tmp_path, grid) / "config.json"
    configuration = json.loads(file.read_text())
    older = configuration.pop("quantization_config")
    del older["quant_method"]
    file.write_text(json.dumps(configuration | {"compression_config": older}))
    check_weights(tmp_path, grid)
    assert "compression_config" not in open_directory(tmp_path).configuration


def test_an_order_of_inputs_is_followed(tmp_path: Path) -> None:
    grid = random_grid(4, (64, 320), 64, symmetric=False, shuffled=True)
    arrays = compressed_arrays(grid) | {"weight_g_idx": grid.groups}
    entry = check_weights(write_one(tmp_path, grid, arrays), grid)
    assert isinstance(entry, StoredCodes)
    assert entry.order is not None


def test_a_name_goes_before_a_pattern_and_a_pattern_before_the_class(tmp_path: Path) -> None:
    up, gate = "model.layers.1.mlp.up_proj", "model.layers.2.mlp.gate_proj"
    grids = {
        MODULE: random_grid(8, (64, 96), -1),
        up: random_grid(3, (96, 64), 32, symmetric=False),
        gate: random_grid(4, (96, 64), 64),
    }
    groups = [
        scheme(grids[gate], ["Linear"]),
        scheme(grids[up], [r"re:.*layers\.1\..*"]),
        scheme(grids[MODULE], [MODULE]),
    ]
    arrays = {name: compressed_arrays(grid) for name, grid in grids.items()}
    write_model(tmp_path, arrays, settings(groups))
    tensors = open_directory(tmp_path).tensors
    for name, grid in grids.items():
        np.testing.assert_array_equal(tensors.read_float(f"{name}.weight"), grid.weights())
    change_config(tmp_path, {"ignore": ["re:.*gate"]})
    with pytest.raises(CheckpointError, match=rf"{gate}.*ignore"):
        open_directory(tmp_path)


def test_settings_that_change_no_weight_are_passed_over(tmp_path: Path) -> None:
    grid = random_grid(4, (64, 320), 64, symmetric=False)
    group = scheme(grid, ["Linear"]) | {"format": "pack-quantized"}
    write_one(
        tmp_path,
        grid,
        format="mixed-precision",
        config_groups={"group_0": group},
        sparsity_config={"format": "dense", "global_sparsity": 0.17, "targets": []},
        transform_config={},
        kv_cache_scheme={"num_bits": 8},
    )
    check_weights(tmp_path, grid)


def changed(key: str, value: object) -> dict[str, Any]:
    """config_groups with one setting of the weights changed."""
    group = scheme(random_grid(4, (64, 320), 64, symmetric=False), ["Linear"])
    group["weights"][key] = value
    return {"config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "marlin-24"}, "format.*expected pack-quantized.*found 'marlin-24'.*16-bit"),
        ({"format": "mixed-precision"}, "group_0.format.*pack-quantized"),
        ({"transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
        ({"transform_config": [1]}, "transform_config"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ({"config_groups": [1]}, "config_groups.*an object"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "config_groups.W4A16.*targets and weights"),
        ({"config_groups": {}}, "no target"),
        ({"ignore": "lm_head"}, "ignore.*a list of names"),
        ({"ignore": ["re:(a"]}, "ignore.*closing"),
        (changed("type", "float"), "type.*int"),
        (changed("strategy", "tensor"), "strategy.*group or channel"),
        (changed("num_bits", 9), "num_bits.*1 to 8"),
        (changed("num_bits", 5), r"weight_packed.*int32 \(64, 50\), found int32 \(64, 40\)"),
        (changed("group_size", 0), "group_size"),
        (changed("group_size", 32), r"weight_scale.*\(64, 10\), found float16 \(64, 5\)"),
        (changed("symmetric", "no"), "symmetric.*true or false"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_name(
    change: dict[str, object], named: str, tmp_path: Path
) -> None:
    grid = random_grid(4, (64, 320), 64, symmetric=False)
    open_directory(write_one(tmp_path, grid))
    change_config(tmp_path, change)
    with pytest.raises(CheckpointError, match=named):
        open_directory(tmp_path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("weight_shape", np.array([64, -1])),
        ("weight_shape", np.array([2**40, 2**40])),
        ("weight_shape", np.array([64, 320, 1])),
        ("weight_zero_point", np.zeros((64, 5), np.int32)),
        ("weight_zero_point", np.zeros((5, 64), np.int8)),
        ("weight_scale", np.zeros((64, 5), np.int32)),
        ("weight_g_idx", np.full(320, 5, np.int32)),
        ("weight_zero_point", None),
        ("weight_scale", None),
        ("weight_shape", None),
    ],
    ids=str,
)
def test_arrays_that_cannot_be_are_refused_by_name(name: str, array: Any, tmp_path: Path) -> None:
    grid = random_grid(4, (64, 320), 64, symmetric=False)
    arrays = compressed_arrays(grid)
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    with pytest.raises(CheckpointError, match=MODULE.replace(".", r"\.")):
        open_directory(write_one(tmp_path, grid, arrays))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_what_is_read_is_written_again_array_by_array(
    bits: int, group_size: int, symmetric: bool, tmp_path: Path
) -> None:
    grid = random_grid(bits, (64, 320), group_size, symmetric=symmetric)
    source = open_directory(write_one(tmp_path / "model", grid))
    reports: list[TensorReport] = []
    write_compressed_tensors(source, tmp_path / "out", reports.append)
    stored, _ = read_header(tmp_path / "out" / "model.safetensors")
    for suffix, array in compressed_arrays(grid).items():
        found = stored[f"{MODULE}.{suffix}"].read()
        assert found.dtype == array.dtype, suffix
        np.testing.assert_array_equal(found, array, suffix)
    assert f"{MODULE}.weight" not in stored
    assert all(report.exact for report in reports)
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    expected = scheme(grid, ["Linear"])
    for key in ("num_bits", "symmetric", "strategy", "group_size"):
        assert said["config_groups"]["group_0"]["weights"][key] == expected["weights"][key]
    assert "lm_head" in said["ignore"]
    assert MODULE not in said["ignore"]
    check_weights(tmp_path / "out", grid)


def test_what_it_does_not_hold_becomes_float16(tmp_path: Path) -> None:
    """Another order of inputs, and a last group that is not whole."""
    up = "model.layers.1.mlp.up_proj"
    query, key = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
    grids = {
        MODULE: random_grid(4, (64, 96), 32, shuffled=True),
        up: random_grid(4, (96, 64), 64),
        query: random_grid(3, (64, 64), 32, symmetric=False),
        key: random_grid(4, (32, 64), 64),
    }
    arrays = {name: compressed_arrays(grid) for name, grid in grids.items()}
    arrays[MODULE]["weight_g_idx"] = grids[MODULE].groups
    groups = [scheme(grids[name], [name]) for name in (MODULE, up, query, key)]
    source = open_directory(write_model(tmp_path / "model", arrays, settings(groups)))
    reports: dict[str, TensorReport] = {}
    write_compressed_tensors(
        source, tmp_path / "out", lambda report: reports.update({report.name: report})
    )
    assert not reports[WEIGHT].exact
    assert "no other order of inputs" in reports[WEIGHT].note
    tensors = open_directory(tmp_path / "out").tensors
    for name in (up, query, key):
        assert reports[f"{name}.weight"].exact
        np.testing.assert_array_equal(tensors.read_float(f"{name}.weight"), grids[name].weights())
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert said["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert said["config_groups"]["group_1"]["targets"] == [query]
    assert MODULE in said["ignore"]
