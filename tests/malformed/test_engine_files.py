"""Loading a model whose files are broken: a typed error that says where, never a crash.

In: a quantized tiny checkpoint with one thing changed. Out: errors of `crumb.load`.
A file that is cut while it is mapped is out of scope: the system then ends the process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import DOWN, QUERY, write_checkpoint

import crumb
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import read_header
from crumb.checkpoints.tensor_map import StoredPacked
from crumb.errors import CheckpointError
from crumb.pipeline import QuantizeRequest, quantize
from crumb.run.engine import Engine
from crumb.solve.problem import Method, Scales, SolveSettings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized model that works."""
    place = tmp_path_factory.mktemp("engine-files")
    rounding = SolveSettings(method=Method.ROUND, scales=Scales.MINMAX)
    tiny = write_checkpoint(place / "tiny")
    quantize(QuantizeRequest(str(tiny), place / "made", bits=3, group_size=32, solve=rounding))
    return place / "made"


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made, tmp_path / "model"))


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a header; the data behind it stays."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def test_the_model_works_before_it_is_broken(model: Path) -> None:
    with crumb.load(model, threads=1) as loaded:
        assert len(loaded.generate("abc", max_tokens=3, ignore_end=True).tokens) == 3


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, -1])
def test_a_truncated_file_is_refused(kept: float, model: Path) -> None:
    file = model / "model.safetensors"
    size = file.stat().st_size
    count = int(kept * size) if isinstance(kept, float) else kept % size
    file.write_bytes(file.read_bytes()[:count])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        crumb.load(model)


def test_a_file_that_is_cut_between_opening_and_mapping_is_refused(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4096])
    with pytest.raises(CheckpointError, match="the file ends inside a tensor"):
        Engine(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        {"layout_version": 2},
        {"layout": "strip"},
        {"quant_method": "other"},
        {"layout_version": "1"},
    ],
)
def test_another_layout_or_version_is_refused(change: dict[str, Any], model: Path) -> None:
    path = model / "config.json"
    configuration = json.loads(path.read_text())
    configuration["quantization_config"] |= change
    path.write_text(json.dumps(configuration))
    with pytest.raises(CheckpointError, match="expected quant_method crumb"):
        crumb.load(model)


@pytest.mark.parametrize(
    "metadata",
    [
        "int3-g32-fixed 64 96",
        "int3-g32-fixed 80 64",
        "int3-g32-variable 64 64",
        "int4-g32-fixed 64 64",
        "int3-g32-fixed 64 0",
        "int3-g32-fixed 64 999999999",
        "int3-g32-fixed -64 64",
        "int7-g32-fixed 64 64",
        "",
    ],
)
def test_metadata_that_does_not_fit_the_tiles_is_refused(metadata: str, model: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        assert header["__metadata__"][QUERY] == "int3-g32-fixed 64 64"
        header["__metadata__"][QUERY] = metadata

    rewrite_header(model / "model.safetensors", change)
    with pytest.raises(CheckpointError, match=QUERY):
        crumb.load(model)


@pytest.mark.parametrize("shape", [[8, 224], [448 * 4], [1, 1792], [2, 896], [4, 448, 1]])
def test_tiles_of_another_shape_are_refused(shape: list[int], model: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        tiles = header[f"{QUERY}.tiles"]
        assert tiles["shape"] != shape
        tiles["shape"] = shape

    rewrite_header(model / "model.safetensors", change)
    with pytest.raises(CheckpointError, match="q_proj"):
        crumb.load(model)


def test_tiles_of_another_type_are_refused(model: Path) -> None:
    rewrite_header(
        model / "model.safetensors", lambda header: header[f"{DOWN}.tiles"].update(dtype="I8")
    )
    with pytest.raises(CheckpointError, match="expected uint8"):
        crumb.load(model)


def test_tiles_that_are_missing_are_refused(model: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        header["other.tiles"] = header.pop(f"{QUERY}.tiles")

    rewrite_header(model / "model.safetensors", change)
    with pytest.raises(CheckpointError):
        crumb.load(model)


@pytest.mark.parametrize("seed", range(6))
def test_any_bytes_as_tiles_run_to_an_answer_or_a_typed_error(seed: int, model: Path) -> None:
    """Codes, scales and zero points of any bits index nothing: wrong numbers, no crash."""
    file = model / "model.safetensors"
    checkpoint = open_checkpoint(model)
    raw = bytearray(file.read_bytes())
    generator = np.random.default_rng(seed)
    for entry in checkpoint.tensors.entries.values():
        if isinstance(entry, StoredPacked) and generator.random() < 0.5:
            begin = entry.tiles.offset_bytes
            raw[begin : begin + entry.size_bytes] = generator.bytes(entry.size_bytes)
    file.write_bytes(raw)
    for activations in ("int8", "f32"):
        loaded = crumb.load(model, threads=2, activations=activations)
        with suppress(CheckpointError):  # logits that are not numbers
            assert len(loaded.generate("abc", max_tokens=3, ignore_end=True).tokens) == 3


def test_the_file_that_is_run_is_the_one_that_was_checked(model: Path) -> None:
    """The arrays of an engine lie where the header says, at any offset."""
    arrays, _ = read_header(model / "model.safetensors")
    offsets = [entry.offset_bytes for entry in arrays.values()]
    assert len(set(offsets)) == len(offsets)
    found = crumb.load(model, threads=1, activations="f32", cache="f32").logits([1, 2, 3])
    file = model / "model.safetensors"

    def pad(header: dict[str, Any]) -> None:
        header["__metadata__"]["note"] = "x"  # moves all data by an odd number of bytes

    rewrite_header(file, pad)
    moved = crumb.load(model, threads=1, activations="f32", cache="f32").logits([1, 2, 3])
    np.testing.assert_array_equal(moved, found)


@pytest.mark.parametrize("cache", ["f32", "f16", "int8"])
@pytest.mark.parametrize("activations", ["f32", "int8"])
@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj"])
def test_a_scale_that_is_no_number_shows_in_the_logits(
    name: str, activations: str, cache: str, model: Path
) -> None:
    """No maximum, softmax or rounding on the way may turn it into a number."""
    file = model / "model.safetensors"
    entries = open_checkpoint(model).tensors.entries
    (entry,) = [entries[each] for each in entries if "layers.0." in each and f".{name}." in each]
    assert isinstance(entry, StoredPacked)
    raw = bytearray(file.read_bytes())
    begin = entry.tiles.offset_bytes
    raw[begin : begin + 2] = np.float16(np.nan).tobytes()  # the first row's first scale
    file.write_bytes(raw)
    loaded = crumb.load(model, threads=1, activations=activations, cache=cache)
    assert np.isnan(loaded.logits([1, 2, 3])).all()
    with pytest.raises(CheckpointError, match="are not numbers"):
        loaded.generate("abc", max_tokens=2)
