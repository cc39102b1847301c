"""Writing GPTQ directories: every format it holds comes back bit for bit, the rest is reported.

In: tiny models with random codes in each format, written by hand or quantized here. Out: files
whose arrays decode to the same weights; `dynamic`; reports; refusals.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exhaustive import every
from quantized_files import MODULE, Grid, gptq_arrays, random_grid, write_model
from random_matrices import Matrix, assert_same_matrix, random_matrix
from tiny_checkpoint import EMBEDDING, NORM, make_tensors, write_checkpoint

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.compressed_tensors.writer import write_compressed_tensors
from crumb.checkpoints.export_report import TensorReport
from crumb.checkpoints.gptq.writer import write_gptq
from crumb.checkpoints.huggingface.reader import open_directory
from crumb.checkpoints.safetensors import read_header
from crumb.checkpoints.tensor_map import StoredCodes, TensorMap
from crumb.errors import OutputConflict, SolveError, UsageError
from crumb.formats.catalog import CATALOG, Format, ZeroKind, parse_format
from crumb.formats.grid import GroupParameters, decode_reference

WEIGHT = f"{MODULE}.weight"
VERSIONS = ["gptq", "gptq_v2"]
CODES = [
    f"int{bits}-{group}-{zero}"
    for bits in (2, 3, 4, 8)
    for group in ("g32", "g64", "g128", "row")
    for zero in ("fixed", "variable")
]


def fitting(format: Format, rows: int, columns: int, seed: int = 0) -> Matrix:
    """A random matrix whose zero points both versions can store."""
    codes, parameters = random_matrix(format, rows, columns, seed)
    if parameters.zero_point is not None:
        largest = format.row.largest_code
        points = (1 + parameters.zero_point % largest).astype(np.uint8)
        parameters = replace(parameters, zero_point=points)
    return codes, parameters


def model_with(
    path: Path, matrices: dict[str, tuple[Format, Matrix]], order: Any = None, **more: Any
) -> Checkpoint:
    """A float model with some matrices in these formats instead."""
    opened = open_directory(write_checkpoint(path, make_tensors(**more)))
    entries = dict(opened.tensors.entries)
    for name, (format, (codes, parameters)) in matrices.items():

        def read(rows: slice, codes: Any = codes, parameters: Any = parameters) -> Matrix:
            named = {key: array for key, array in vars(parameters).items() if array is not None}
            return codes[rows], GroupParameters(**{k: array[rows] for k, array in named.items()})

        entries[name] = StoredCodes(format, codes.shape, codes.size, format.name, read, order)
    return replace(opened, tensors=TensorMap(path, entries))


def written(checkpoint: Checkpoint, out: Path, version: str = "gptq") -> tuple[Checkpoint, Any]:
    """The written directory, opened, and its reports by tensor."""
    reports: dict[str, TensorReport] = {}
    write_gptq(checkpoint, out, version, lambda report: reports.update({report.name: report}))
    opened = open_directory(out)
    assert reports.keys() == {spec.name for spec in opened.plan.tensors()}
    assert not list(out.parent.glob("*.partial"))
    return opened, reports


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CODES)
def test_every_format_it_holds_comes_back_bit_for_bit(
    name: str, version: str, tmp_path: Path
) -> None:
    format = parse_format(name)
    matrix = fitting(format, 64, 352)
    source = model_with(tmp_path / "model", {WEIGHT: (format, matrix)}, feed_forward=352, blocks=2)
    opened, reports = written(source, tmp_path / "out", version)
    entry = opened.tensors.entry(WEIGHT)
    assert isinstance(entry, StoredCodes)
    assert entry.format.name == name
    assert entry.order is None
    assert_same_matrix(entry.read_codes(slice(0, 64)), matrix)
    assert reports[WEIGHT] == TensorReport(WEIGHT, name, f"gptq {name}", exact=True)
    for tensor, report in reports.items():
        assert report.exact, tensor
        found = opened.tensors.read_float(tensor)
        np.testing.assert_array_equal(found, source.tensors.read_float(tensor))


@pytest.mark.parametrize(
    ("bits", "columns", "shuffled", "symmetric", "version"),
    every([2, 3, 4, 8], [32, 128, 160, 4096], [True, False], [True, False], [1, 2], together=2),
)
def test_a_file_of_another_tool_is_written_again_array_by_array(
    bits: int, columns: int, shuffled: bool, symmetric: bool, version: int, tmp_path: Path
) -> None:
    if shuffled and columns % 64:
        columns = 192  # groups of unequal size have no order
    grid = random_grid(bits, (64, columns), 64, symmetric=symmetric, shuffled=shuffled)
    arrays = gptq_arrays(grid, version)
    names = VERSIONS[version - 1]
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": 64,
        "desc_act": shuffled,
        "sym": symmetric,
        "checkpoint_format": names,
    }
    source = write_model(
        tmp_path / "model", {MODULE: arrays}, config, feed_forward=columns, blocks=2
    )
    write_gptq(open_directory(source), tmp_path / "out", names)
    stored, _ = read_header(tmp_path / "out" / "model.safetensors")
    for suffix, array in arrays.items():
        found = stored[f"{MODULE}.{suffix}"].read()
        assert found.dtype == array.dtype, suffix
        np.testing.assert_array_equal(found, array, suffix)
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    kept = {key: said[key] for key in config}
    assert kept == config | {"group_size": -1 if columns == 32 else 64}


@pytest.mark.parametrize("name", ["int5-g64-variable", "int6-g32-fixed", "iq4_nl-g32-fixed"])
def test_codes_of_other_widths_are_written_in_eight_bits(name: str, tmp_path: Path) -> None:
    format = parse_format(name)
    codes, parameters = fitting(format, 64, 96)
    source = model_with(tmp_path / "model", {WEIGHT: (format, (codes, parameters))})
    opened, reports = written(source, tmp_path / "out")
    entry = opened.tensors.entry(WEIGHT)
    assert isinstance(entry, StoredCodes)
    assert entry.format.bits == 8
    assert reports[WEIGHT].exact
    assert reports[WEIGHT].note == "in codes of 8 bits"
    expected = decode_reference(codes, parameters, format)
    np.testing.assert_array_equal(opened.tensors.read_float(WEIGHT), expected)


def test_what_gptq_does_not_hold_becomes_float16(tmp_path: Path) -> None:
    """A minimum, an embedding, and inputs that fill no whole words; each says why."""
    up, down = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
    kept = "model.layers.1.self_attn.q_proj.weight"
    matrices: dict[str, tuple[Format, Matrix]] = {}
    for name, format, rows, columns in (
        (up, "int4-g32-minimum", 72, 64),
        (down, "int4-g32-fixed", 64, 72),
        (EMBEDDING, "int8-g32-fixed", 300, 64),
        (kept, "int4-g32-fixed", 64, 64),
    ):
        chosen = parse_format(format)
        matrices[name] = chosen, fitting(chosen, rows, columns)
    source = model_with(tmp_path / "model", matrices, feed_forward=72)
    opened, reports = written(source, tmp_path / "out")
    for name, why in (
        (up, "gptq has no format for int4-g32-minimum"),
        (down, "gptq needs inputs and outputs in multiples of 32"),
        (EMBEDDING, "embedding and head are floats"),
    ):
        report = reports[name]
        assert report.note == f"{why}: decoded, rounded to float16"
        assert not report.exact
        assert report.target == "float16"
        before = source.tensors.read_float(name).astype(np.float64)
        after = opened.tensors.read_float(name).astype(np.float64)
        moved = np.sqrt(((after - before) ** 2).sum() / (before**2).sum())
        # Rounding to float16 moves a weight by at most 2^-11 of itself.
        assert 0 < moved < 2**-11
        np.testing.assert_allclose(report.change, moved, rtol=1e-12)
    assert reports[kept].exact
    assert reports[NORM] == TensorReport(NORM, "float16", "float16", exact=True)
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert r"-:model\.layers\.0\.mlp\.up_proj$" in said["dynamic"]
    assert r"-:model\.layers\.1\.self_attn\.q_proj$" not in said["dynamic"]


def test_layers_of_other_bits_are_named_in_dynamic(tmp_path: Path) -> None:
    formats = {
        "model.layers.0.self_attn.q_proj.weight": "int3-g64-variable",
        "model.layers.1.self_attn.q_proj.weight": "int4-g32-fixed",
        "model.layers.2.self_attn.q_proj.weight": "int4-g32-fixed",
    }
    chosen = {name: parse_format(format) for name, format in formats.items()}
    matrices = {name: (format, fitting(format, 64, 64)) for name, format in chosen.items()}
    source = model_with(tmp_path / "model", matrices)
    opened, _ = written(source, tmp_path / "out")
    for name, (_, matrix) in matrices.items():
        entry = opened.tensors.entry(name)
        assert isinstance(entry, StoredCodes)
        assert_same_matrix(entry.read_codes(slice(0, 64)), matrix)
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (said["bits"], said["group_size"], said["sym"]) == (4, 32, True)
    odd = r"+:model\.layers\.0\.self_attn\.q_proj$"
    assert said["dynamic"][odd] == {"bits": 3, "group_size": 64, "sym": False}
    assert len(said["dynamic"]) == 1 + 3 * 7 - 3


@pytest.mark.parametrize(("version", "zero"), [("gptq", 0), ("gptq", 8), ("gptq_v2", 9)])
def test_zero_points_beyond_the_version_are_refused(
    version: str, zero: int, tmp_path: Path
) -> None:
    format = Format(CATALOG["int3"], 32, ZeroKind.VARIABLE)
    codes, parameters = fitting(format, 64, 96)
    assert parameters.zero_point is not None
    parameters.zero_point[5, 1] = zero
    source = model_with(tmp_path / "model", {WEIGHT: (format, (codes, parameters))})
    with pytest.raises(UsageError, match=rf"{MODULE}.*found {zero}.*--target gptq"):
        write_gptq(source, tmp_path / "out", version)
    assert not list(tmp_path.glob("out*"))
    if zero == 0:
        opened, _ = written(source, tmp_path / "out", "gptq_v2")
        entry = opened.tensors.entry(WEIGHT)
        assert isinstance(entry, StoredCodes)
        assert_same_matrix(entry.read_codes(slice(0, 64)), (codes, parameters))


def test_a_scale_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    format = Format(CATALOG["int4"], 32, ZeroKind.FIXED)
    codes, parameters = fitting(format, 64, 96)
    parameters.scale[5, 1] = np.nan
    source = model_with(tmp_path / "model", {WEIGHT: (format, (codes, parameters))})
    for write in (write_gptq, write_compressed_tensors):
        with pytest.raises(SolveError, match=f"{WEIGHT}: a scale is not finite"):
            write(source, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_model_without_a_layer_that_fits_is_refused(tmp_path: Path) -> None:
    source = open_directory(write_checkpoint(tmp_path / "model"))
    with pytest.raises(UsageError, match=r"gptq would hold no layer.*no format for float16"):
        write_gptq(source, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_an_output_that_exists_is_not_replaced(tmp_path: Path) -> None:
    format = parse_format("int4-g32-fixed")
    source = model_with(tmp_path / "model", {WEIGHT: (format, fitting(format, 64, 96))})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OutputConflict):
        write_gptq(source, tmp_path / "out")
    with pytest.raises(UsageError, match="gptq_v3"):
        write_gptq(source, tmp_path / "other", "gptq_v3")


def test_floats_decoded_from_odd_groups_become_float16(tmp_path: Path) -> None:
    """Groups of 16 have no format here: they are read as f32, and written as float16."""
    grids = {
        MODULE: random_grid(4, (64, 96), 16),
        MODULE.replace("1", "2"): random_grid(4, (64, 96), 32),
    }
    config: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    config["dynamic"] = {r".*\.1\..*": {"group_size": 16}}
    arrays = {module: gptq_arrays(grid) for module, grid in grids.items()}
    source = open_directory(write_model(tmp_path / "model", arrays, config))
    _, reports = written(source, tmp_path / "out")
    assert reports[WEIGHT].source == "GPTQ of 4 bits"
    assert reports[WEIGHT].target == "float16"
    assert not reports[WEIGHT].exact


def test_grids_are_what_the_layout_says_they_are() -> None:
    """The plain decoder: one weight worked out by hand."""
    grid = random_grid(4, (2, 64), 32, symmetric=False, shuffled=True)
    assert isinstance(grid, Grid)
    group = int(grid.groups[7])
    expected = np.float32(grid.scales[1, group]) * (grid.codes[1, 7] - grid.zeros[1, group])
    assert grid.weights()[1, 7] == expected.astype(np.float32)
