"""GPTQ files that are broken or lie: arrays of other shapes and types, missing ones, bad settings.

In: a good tiny directory and one change to it. Out: one line that names the file or setting, what
was expected and what was found; nothing is allocated on a claimed size.
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_files import (
    MODULE,
    Arrays,
    Grid,
    awq_arrays,
    change_config,
    compressed_arrays,
    gptq_arrays,
    random_grid,
    write_model,
)

from crumb.checkpoints.huggingface.reader import open_directory
from crumb.errors import CheckpointError, CrumbError

ROWS, COLUMNS, GROUP = 64, 96, 32
CONFIG: dict[str, Any] = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": GROUP,
    "desc_act": False,
    "sym": True,
}


def grid() -> Grid:
    return random_grid(4, (ROWS, COLUMNS), GROUP, symmetric=False)


def write(path: Path, arrays: Arrays, **more: Any) -> Path:
    """A directory with one layer of these arrays."""
    return write_model(path, {MODULE: arrays}, CONFIG | more)


ARRAYS: list[tuple[str, Any, str]] = [
    ("qweight", None, "lacks a tensor.*down_proj"),
    ("qzeros", None, "lacks an array.*qzeros"),
    ("scales", None, "lacks an array.*scales"),
    ("qweight", np.zeros((12, ROWS), np.int64), "qweight.*expected int32"),
    ("qweight", np.zeros((12, ROWS), np.float16), "qweight.*expected int32.*found float16"),
    ("qweight", np.zeros((11, ROWS), np.int32), r"qweight.*\(12, any\), found int32 \(11, 64\)"),
    ("qweight", np.zeros((12 * ROWS,), np.int32), r"qweight.*found int32 \(768,\)"),
    ("qweight", np.zeros((12, ROWS, 1), np.int32), "qweight"),
    ("qweight", np.zeros((0, ROWS), np.int32), "qweight"),
    ("qweight", np.zeros((12, 0), np.int32), "qweight"),
    ("qweight", np.zeros((12, ROWS - 8), np.int32), r"scales.*\(3, 56\)"),
    ("qzeros", np.zeros((3, 7), np.int32), r"qzeros.*\(3, 8\), found int32 \(3, 7\)"),
    ("qzeros", np.zeros((2, 8), np.int32), "qzeros"),
    ("qzeros", np.zeros((3, 8), np.float16), "qzeros.*expected int32"),
    ("scales", np.zeros((3, ROWS), np.int32), "scales.*float16 or bfloat16 or float32"),
    ("scales", np.zeros((ROWS, 3), np.float16), r"scales.*\(3, 64\), found float16 \(64, 3\)"),
    ("scales", np.zeros((4, ROWS), np.float16), "scales"),
    ("g_idx", np.zeros(COLUMNS, np.float32), "g_idx.*int32 or int64"),
    ("g_idx", np.zeros((COLUMNS, 1), np.int32), "g_idx"),
    ("g_idx", np.zeros(0, np.int32), "g_idx"),
    ("g_idx", np.zeros(COLUMNS + 8, np.int32), r"qweight.*\(13, any\)"),
    ("g_idx", np.full(COLUMNS, 3, np.int32), "g_idx.*expected 0 to 2, found 3"),
    ("g_idx", np.full(COLUMNS, -1, np.int32), "g_idx.*found -1"),
    ("g_idx", np.full(COLUMNS, 2**31 - 1, np.int32), "g_idx.*found 2147483647"),
    ("g_idx", np.full(COLUMNS, -(2**63), np.int64), "g_idx.*found -9223372036854775808"),
    ("weight", np.zeros((ROWS, COLUMNS), np.float16), "both packed and plain"),
]


@pytest.mark.parametrize(("name", "array", "named"), ARRAYS, ids=range(len(ARRAYS)))
def test_arrays_that_cannot_be_are_refused_by_name(
    name: str, array: Any, named: str, tmp_path: Path
) -> None:
    arrays = gptq_arrays(grid())
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    with pytest.raises(CheckpointError, match=named) as caught:
        open_directory(write(tmp_path, arrays))
    assert "\n" not in str(caught.value)
    assert "down_proj" in str(caught.value)


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"bits": 5}, "bits.*one of 2, 3, 4, 8, found 5"),
    ({"bits": 0}, "bits.*found 0"),
    ({"bits": -4}, "bits"),
    ({"bits": 4.0}, "bits.*found 4.0"),
    ({"bits": True}, "bits"),
    ({"bits": "4"}, "bits"),
    ({"bits": None}, "bits"),
    ({"bits": 10**400}, "bits"),
    ({"bits": 3}, r"qweight.*\(9, any\)"),
    ({"group_size": 0}, "group_size.*found 0"),
    ({"group_size": -2}, "group_size.*found -2"),
    ({"group_size": 2**40}, "group_size"),
    ({"group_size": "32"}, "group_size"),
    ({"group_size": None}, "group_size"),
    ({"group_size": 64}, r"scales.*\(2, 64\), found float16 \(3, 64\)"),
    ({"desc_act": "yes"}, "desc_act.*true or false"),
    ({"sym": 1}, "sym.*true or false"),
    ({"lm_head": []}, "lm_head"),
    ({"pack_dtype": "int64"}, "pack_dtype.*int32.*int64"),
    ({"checkpoint_format": "marlin"}, "checkpoint_format.*gptq or gptq_v2.*marlin"),
    ({"checkpoint_format": ["gptq"]}, "checkpoint_format"),
    ({"format": "bitblas"}, "checkpoint_format.*bitblas"),
    ({"is_marlin_format": True}, "is_marlin_format"),
    ({"dynamic": ["x"]}, "dynamic.*an object"),
    ({"dynamic": {".*": 4}}, "dynamic.*an object.*found 4"),
    ({"dynamic": {".*": {"bits": 7}}}, "dynamic: bits.*found 7"),
    ({"dynamic": {".*": {"group_size": 0}}}, "dynamic: group_size"),
    ({"dynamic": {"+:(a": {}}}, r"dynamic: a pattern.*'\(a'"),
    ({"dynamic": {"+:(a+)+$": {}, "+:*": {}}}, r"dynamic: a pattern.*'\*'"),
    ({"dynamic": {"-:(?<=a)b": {}}}, "dynamic: a pattern"),
    ({"dynamic": {"x" * 5000: {}}}, "dynamic: a pattern.*at most 1000 characters"),
    ({"dynamic": {"-:.*down": {}}}, "leave alone"),
    ({"quant_method": "gptq_v3"}, "quant_method crumb or gptq"),
    ({"quant_method": ["gptq"]}, "quant_method"),
]


@pytest.mark.parametrize(("change", "named"), SETTINGS, ids=range(len(SETTINGS)))
def test_settings_that_cannot_be_are_refused_by_name(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    write(tmp_path, gptq_arrays(grid()))
    open_directory(tmp_path)
    change_config(tmp_path, change)
    with pytest.raises(CheckpointError, match=named) as caught:
        open_directory(tmp_path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("given", ["gptq", "awq", "compressed-tensors", 3, [], True])
def test_settings_that_are_no_object_are_refused(given: object, tmp_path: Path) -> None:
    write(tmp_path, gptq_arrays(grid()))
    config = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": given}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="quant"):
        open_directory(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"bits": 4, "group_size": {}}', "\x00"])
def test_broken_settings_beside_the_configuration_are_refused(text: str, tmp_path: Path) -> None:
    write_model(tmp_path, {MODULE: gptq_arrays(grid())}, None)
    (tmp_path / "quantize_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"group_size|quantize_config\.json"):
        open_directory(tmp_path)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(value, dtype) for dtype in (np.float16, np.float32) for value in (np.nan, np.inf, -np.inf)]
    + [(3e38, np.float32)],  # fits f32, but not times a code
)
def test_scales_that_are_not_finite_are_refused_when_read(
    dtype: Any, value: float, tmp_path: Path
) -> None:
    arrays = gptq_arrays(grid())
    arrays["scales"] = arrays["scales"].astype(dtype)
    arrays["scales"][1, 40] = value
    entry = open_directory(write(tmp_path, arrays)).tensors.entry(f"{MODULE}.weight")
    for read in (entry.read, entry.read_float):
        with pytest.raises(CheckpointError, match=r"down_proj: a scale is no number"):
            read()


@pytest.mark.parametrize("shape", [[2**40, 0], [0, 2**40], [2**62, 0, 2**62]])
def test_an_empty_array_of_a_huge_shape_allocates_nothing(shape: list[int], tmp_path: Path) -> None:
    """No byte is needed to store it, so only its shape can give it away."""
    arrays = gptq_arrays(grid())
    path = write(tmp_path, arrays) / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    begin, end = header[f"{MODULE}.qweight"]["data_offsets"]
    header[f"{MODULE}.qweight"] |= {"shape": shape, "data_offsets": [begin, begin]}
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [place - end + begin for place in entry["data_offsets"]]
    data = raw[8 + length :]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[:begin] + data[end:])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="qweight"):
            open_directory(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(raw) + 2**20
    finally:
        tracemalloc.stop()


MAKERS = {
    "gptq": (gptq_arrays, CONFIG),
    "awq": (awq_arrays, {"quant_method": "awq", "bits": 4, "group_size": GROUP}),
    "compressed-tensors": (
        compressed_arrays,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 4, "symmetric": False, "group_size": GROUP},
                }
            },
        },
    ),
}
"""What a fuzzer may change: a layer's arrays, and the settings."""


def some_value(generator: np.random.Generator) -> Any:
    values: list[Any] = [0, -1, 1, 2, 3, 5, 8, 2**31, -(2**63), 1.5, None, True, "", "gptq", [], {}]
    return values[generator.integers(len(values))]


def some_array(generator: np.random.Generator, array: Any) -> Any:
    """Another type, another shape, or other content."""
    kind = generator.integers(4)
    if kind == 0:
        dtypes = (np.int32, np.int64, np.float16, np.float32, np.uint8, np.int8)
        return array.astype(dtypes[generator.integers(len(dtypes))])
    if kind == 1:
        return array[: generator.integers(len(array) + 1)]
    if kind == 2:
        return array.reshape(-1) if generator.integers(2) else array[None]
    bits = np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy()
    bits[generator.integers(len(bits), size=3)] = generator.integers(256, size=3)
    return bits.view(array.dtype).reshape(array.shape)


def outcome(path: Path) -> Any:
    """The layer's weights, or what was said against them."""
    try:
        return open_directory(path).tensors.read_float(f"{MODULE}.weight")
    except CrumbError as error:
        return str(error)


@pytest.mark.parametrize("method", MAKERS)
def test_random_changes_are_read_or_refused_and_nothing_else(method: str, tmp_path: Path) -> None:
    """Two hundred directories, each with one array and one setting changed at random."""
    make, config = MAKERS[method]
    generator = np.random.default_rng(0)
    read = 0
    for number in range(200):
        arrays = make(grid())
        name = list(arrays)[generator.integers(len(arrays))]
        if generator.integers(2):
            with np.errstate(all="ignore"):
                arrays[name] = some_array(generator, arrays[name])
        settings = json.loads(json.dumps(config))
        target = settings
        if method == "compressed-tensors" and generator.integers(2):
            target = settings["config_groups"]["group_0"]["weights"]
        if generator.integers(2):
            target[list(target)[generator.integers(len(target))]] = some_value(generator)
        path = write_model(tmp_path / str(number), {MODULE: arrays}, settings, blocks=2)
        found = outcome(path)
        if isinstance(found, str):
            assert len(found) < 600
            continue
        assert found.shape == (ROWS, COLUMNS)
        assert np.isfinite(found).all()
        read += 1
    assert 20 < read < 180  # both ways are taken
