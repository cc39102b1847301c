"""GPTQ files: versions, bits, group sizes, zero points and orders, against a plain decoder.

In: files written word by word from the layout. Out: exactly the weights they stand for, as codes
of a format where there is one and as floats where there is none.
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
    Grid,
    change_config,
    check_weights,
    gptq_arrays,
    random_grid,
    write_model,
)

from crumb.checkpoints.huggingface.reader import open_directory
from crumb.checkpoints.tensor_map import StoredCodes, StoredFloats
from crumb.errors import CheckpointError
from crumb.formats.grid import group_of_column

HIDDEN = 64

NO_FORMAT = (16, 48)
"""Group sizes that no format has."""


def settings(grid: Grid, **more: Any) -> dict[str, Any]:
    """What GPTQ tools write."""
    return {
        "quant_method": "gptq",
        "bits": grid.bits,
        "group_size": grid.group_size,
        "desc_act": False,
        "sym": grid.symmetric,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "meta": {"quantizer": ["some:1.0"]},
        **more,
    }


def write_one(path: Path, grid: Grid, version: int = 1, **more: Any) -> Path:
    """A model with one quantized layer, of as many inputs as the grid has."""
    config = settings(grid, checkpoint_format="gptq" if version == 1 else "gptq_v2") | more
    arrays = gptq_arrays(grid, version)
    return write_model(path, {MODULE: arrays}, config, feed_forward=grid.codes.shape[1])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1, 256, 96, *NO_FORMAT, 4096])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_setting_decodes_as_the_layout_says(
    bits: int, group_size: int, symmetric: bool, version: int, tmp_path: Path
) -> None:
    grid = random_grid(bits, (HIDDEN, 384), group_size, symmetric=symmetric)
    entry = check_weights(write_one(tmp_path, grid, version), grid)
    if group_size in NO_FORMAT:
        assert isinstance(entry, StoredFloats)
        return
    assert isinstance(entry, StoredCodes)
    assert entry.order is None
    names = {-1: "row", 4096: "row", 256: "g128", 96: "g32"}
    kind = "fixed" if symmetric else "variable"
    assert entry.format.name == f"int{bits}-{names.get(group_size, f'g{group_size}')}-{kind}"
    codes, parameters = entry.read_codes(slice(0, HIDDEN))
    np.testing.assert_array_equal(codes, grid.codes)
    group = group_of_column(entry.format, 384)
    assert parameters.scale[:, group].tobytes() == grid.scales[:, grid.groups].tobytes()


@pytest.mark.parametrize("columns", [32, 96, 160, 4096])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_ragged_last_group_is_a_smaller_group(bits: int, columns: int, tmp_path: Path) -> None:
    grid = random_grid(bits, (HIDDEN, columns), 128, symmetric=False)
    assert isinstance(check_weights(write_one(tmp_path, grid), grid), StoredCodes)


@pytest.mark.parametrize("columns", [60, 36])
def test_inputs_that_fill_no_whole_word_are_cut_off(columns: int, tmp_path: Path) -> None:
    grid = random_grid(4, (HIDDEN, columns), 32)
    check_weights(write_one(tmp_path, grid), grid)


@pytest.mark.parametrize("group_size", [32, 128, 256])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_shuffled_g_idx_becomes_an_order_of_columns(
    bits: int, group_size: int, tmp_path: Path
) -> None:
    grid = random_grid(bits, (HIDDEN, 512), group_size, symmetric=False, shuffled=True)
    entry = check_weights(write_one(tmp_path, grid, desc_act=True), grid)
    assert isinstance(entry, StoredCodes)
    assert entry.order is not None
    assert (np.diff(grid.groups[entry.order]) >= 0).all()
    codes, _ = entry.read_codes(slice(2, 4))
    np.testing.assert_array_equal(codes, grid.codes[2:4, entry.order])


def test_groups_of_unequal_sizes_are_decoded(tmp_path: Path) -> None:
    grid = random_grid(4, (HIDDEN, 128), 32, symmetric=False)
    grid.groups[5] = 3
    entry = check_weights(write_one(tmp_path, grid, desc_act=True), grid)
    assert isinstance(entry, StoredFloats)


def test_a_file_without_g_idx_has_groups_in_a_row(tmp_path: Path) -> None:
    grid = random_grid(3, (HIDDEN, 128), 32)
    arrays = gptq_arrays(grid)
    del arrays["g_idx"]
    write_model(tmp_path, {MODULE: arrays}, settings(grid), feed_forward=128)
    check_weights(tmp_path, grid)


def test_a_g_idx_of_zeros_means_no_order(tmp_path: Path) -> None:
    """Some writers leave it so; taken literally every input would have the first group's scale."""
    grid = random_grid(4, (64, 320), 64)
    arrays = gptq_arrays(grid)
    arrays["g_idx"] = np.zeros_like(arrays["g_idx"])
    write_model(tmp_path, {MODULE: arrays}, settings(grid), feed_forward=320)
    check_weights(tmp_path, grid)


def test_a_bias_of_zeros_beside_a_layer_that_has_none_is_passed_over(tmp_path: Path) -> None:
    """GPTQ's writers leave one beside every layer; a bias of anything else is refused."""
    grid = random_grid(4, (64, 320), 64)
    arrays = gptq_arrays(grid)
    for bias in (np.zeros(64, np.float16), np.ones(64, np.float16)):
        write_model(tmp_path, {MODULE: arrays | {"bias": bias}}, settings(grid), feed_forward=320)
        if bias.any():
            with pytest.raises(CheckpointError, match=f"{MODULE}.bias"):
                open_directory(tmp_path)
        else:
            check_weights(tmp_path, grid)


def test_the_words_of_a_symmetric_file_are_those_of_other_tools() -> None:
    """The words that GPTQ tools are known to write for the middle zero point less one."""
    words = {
        2: [0x55555555],
        4: [0x77777777],
        8: [0x7F7F7F7F],
        3: [0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D],
    }
    for bits, expected in words.items():
        found = gptq_arrays(random_grid(bits, (32, 32), 32))["qzeros"].view(np.uint32)
        assert found[0, : len(expected)].tolist() == expected


def test_three_bits_fill_three_words_as_other_tools_fill_them(tmp_path: Path) -> None:
    """One code of 7 at a time: its bits in each of the three words."""
    places = {0: (0, 0x7), 9: (0, 0x38000000), 11: (1, 0xE), 20: (1, 0x70000000)}
    for column, (word, bits) in (places | {22: (2, 0x1C), 31: (2, 0xE0000000)}).items():
        grid = random_grid(3, (HIDDEN, 32), 32)
        grid.codes[:] = 0
        grid.codes[:, column] = 7
        arrays = gptq_arrays(grid)
        expected = np.zeros((3, HIDDEN), np.uint32)
        expected[word] = bits
        np.testing.assert_array_equal(arrays["qweight"].view(np.uint32), expected)
    straddling = {10: [0xC0000000, 0x1, 0], 21: [0, 0x80000000, 0x3]}
    for column, expected_words in straddling.items():
        grid.codes[:] = 0
        grid.codes[:, column] = 7
        assert gptq_arrays(grid)["qweight"].view(np.uint32)[:, 0].tolist() == expected_words
        check_weights(write_one(tmp_path / str(column), grid), grid)


def test_a_zero_point_of_0_wraps_in_version_1(tmp_path: Path) -> None:
    grid = random_grid(4, (HIDDEN, 64), 32, symmetric=False)
    grid.zeros[:] = 0
    assert (gptq_arrays(grid)["qzeros"] == -1).all()
    check_weights(write_one(tmp_path, grid), grid)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32], ids=["bfloat16", "float32"])
def test_scales_that_fp16_holds_stay_codes_and_others_become_floats(
    dtype: Any, tmp_path: Path
) -> None:
    grid = random_grid(4, (HIDDEN, 64), 32)
    for value, kind in ((0.0078125, StoredCodes), (1e-7, StoredFloats)):
        grid.scales[0, 0] = 0.5
        scales = np.full(grid.scales.shape, 0.5).astype(dtype)
        scales[3, 1] = value
        other = Grid(4, 32, grid.codes, scales, grid.zeros, grid.groups)
        assert isinstance(check_weights(write_one(tmp_path / str(value), other), other), kind)


def test_modules_have_settings_of_their_own(tmp_path: Path) -> None:
    """dynamic: the first pattern that matches from a name's start decides."""
    up = "model.layers.1.mlp.up_proj"
    modules = {
        MODULE: random_grid(8, (HIDDEN, 96), -1),
        up: random_grid(4, (96, HIDDEN), 32, symmetric=False),
        "model.layers.2.mlp.up_proj": random_grid(3, (96, HIDDEN), 64),
    }
    dynamic: dict[str, Any] = {
        r"+:.*\.down_proj$": {"bits": 8, "group_size": -1},
        r"model\.layers\.1\.mlp\.up": {"bits": 4, "sym": False, "group_size": 32},
        r"-:.*\.self_attn\..*": {},
        r"+:.*up_proj": {"bits": 2},
        r"+:model\.layers\.2\.mlp\.up_proj$": {},
    }
    config = settings(modules["model.layers.2.mlp.up_proj"], dynamic=dynamic)
    arrays = {name: gptq_arrays(grid) for name, grid in modules.items()}
    write_model(tmp_path, arrays, config)
    with pytest.raises(CheckpointError, match=r"2\.mlp\.up_proj\.qweight"):
        open_directory(tmp_path)
    del dynamic[r"+:.*up_proj"]
    change_config(tmp_path, {"dynamic": dynamic})
    found = open_directory(tmp_path)
    for name, grid in modules.items():
        np.testing.assert_array_equal(found.tensors.read_float(f"{name}.weight"), grid.weights())


def test_a_layer_that_the_settings_leave_alone_must_not_be_quantized(tmp_path: Path) -> None:
    grid = random_grid(4, (HIDDEN, 96), 32)
    write_one(tmp_path, grid, dynamic={r"-:.*down": {}})
    with pytest.raises(CheckpointError, match=r"down_proj.*leave alone.*-:\.\*down"):
        open_directory(tmp_path)


def test_a_quantized_head_is_read(tmp_path: Path) -> None:
    grid = random_grid(4, (320, HIDDEN), 32)
    write_model(tmp_path, {"lm_head": gptq_arrays(grid)}, settings(grid, lm_head=True), tied=False)
    config = json.loads((tmp_path / "config.json").read_text()) | {"vocab_size": 320}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"embed_tokens.*\[320, 64\]"):
        open_directory(tmp_path)


def test_settings_that_say_nothing_are_the_default(tmp_path: Path) -> None:
    grid = random_grid(4, (HIDDEN, 128), 128)
    nothing = ("desc_act", "sym", "checkpoint_format", "pack_dtype", "dynamic", "lm_head")
    write_one(tmp_path, grid, **dict.fromkeys(nothing))
    check_weights(tmp_path, grid)


def test_settings_may_lie_beside_the_configuration(tmp_path: Path) -> None:
    """As the first tools wrote them, with the weights under a name of their own."""
    grid = random_grid(4, (HIDDEN, 128), 128, symmetric=False)
    write_model(tmp_path, {MODULE: gptq_arrays(grid)}, None, feed_forward=128)
    with pytest.raises(CheckpointError, match="quantize_config"):
        open_directory(tmp_path)
    legacy = {"bits": 4, "group_size": 128, "damp_percent": 0.01, "desc_act": False, "sym": False}
    (tmp_path / "quantize_config.json").write_text(json.dumps(legacy))
    check_weights(tmp_path, grid)
    (tmp_path / "model.safetensors").rename(tmp_path / "gptq_model-4bit-128g.safetensors")
    check_weights(tmp_path, grid)
