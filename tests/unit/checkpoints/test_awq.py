"""AWQ files: digits in their odd order, true zero points, group sizes, against a plain decoder.

In: files written word by word from the layout. Out: exactly the weights they stand for.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from quantized_files import MODULE, awq_arrays, change_config, random_grid, write_model

from crumb.checkpoints.huggingface.reader import open_directory
from crumb.checkpoints.tensor_map import StoredCodes, StoredFloats
from crumb.errors import CheckpointError

WEIGHT = f"{MODULE}.weight"
CONFIG = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}


@pytest.mark.parametrize("group_size", [16, 32, 64, 128, -1, 256])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_every_group_size_decodes_as_the_layout_says(
    symmetric: bool, group_size: int, tmp_path: Path
) -> None:
    grid = random_grid(4, (64, 320), group_size, symmetric=symmetric)
    config = CONFIG | {"group_size": group_size, "modules_to_not_convert": ["lm_head"]}
    write_model(tmp_path, {MODULE: awq_arrays(grid)}, config, feed_forward=320)
    tensors = open_directory(tmp_path).tensors
    expected = grid.weights()
    np.testing.assert_array_equal(tensors.read_float(WEIGHT), expected)
    for rows in (slice(0, 8), slice(5, 6), slice(13, 50), slice(7, 9), slice(64, 64)):
        np.testing.assert_array_equal(tensors.read_float(WEIGHT, rows), expected[rows])
    entry = tensors.entry(WEIGHT)
    if group_size == 16:
        assert isinstance(entry, StoredFloats)
        return
    assert isinstance(entry, StoredCodes)
    size = {-1: "row", 256: "g128"}.get(group_size, f"g{group_size}")
    assert entry.format.name == f"int4-{size}-{'fixed' if symmetric else 'variable'}"


def test_a_word_holds_its_outputs_in_the_order_of_other_tools() -> None:
    """Codes 0 to 7 of eight outputs make the word that AutoAWQ packs of them."""
    grid = random_grid(4, (8, 32), 32)
    grid.codes[:] = np.arange(8)[:, None]
    assert awq_arrays(grid)["qweight"].view(np.uint32)[0, 0] == 0x75316420


def test_settings_may_have_their_first_names_beside_the_configuration(tmp_path: Path) -> None:
    grid = random_grid(4, (64, 128), 64, symmetric=False)
    write_model(tmp_path, {MODULE: awq_arrays(grid)}, None, feed_forward=128)
    legacy = {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}
    (tmp_path / "quant_config.json").write_text(json.dumps(legacy))
    found = open_directory(tmp_path).tensors.read_float(WEIGHT)
    np.testing.assert_array_equal(found, grid.weights())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bits": 8}, "bits.*expected 4, found 8"),
        ({"bits": True}, "bits.*found True"),
        ({"version": "gemv"}, "version.*expected 'gemm', found 'gemv'"),
        ({"version": ["gemm"]}, "version"),
        ({"zero_point": False}, "zero_point.*expected True, found False"),
        ({"zero_point": 1}, "zero_point.*expected True, found 1"),
        ({"group_size": 0}, "group_size.*at least 1"),
        ({"group_size": -2}, "group_size"),
        ({"group_size": "64"}, "group_size"),
        ({"group_size": 32}, r"down_proj\.scales.*\(4, 64\), found float16 \(2, 64\)"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_name(
    change: dict[str, object], named: str, tmp_path: Path
) -> None:
    grid = random_grid(4, (64, 128), 64, symmetric=False)
    config = CONFIG | {"group_size": 64}
    write_model(tmp_path, {MODULE: awq_arrays(grid)}, config, feed_forward=128)
    open_directory(tmp_path)
    change_config(tmp_path, change)
    with pytest.raises(CheckpointError, match=named):
        open_directory(tmp_path)
