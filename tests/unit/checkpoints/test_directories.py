"""Opening model directories: single file or shards, float types, hashes, quantized matrices.

In: tiny checkpoints. Out: Checkpoints, their tensors, what is read of them and how it is named.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import (
    EMBEDDING,
    QUERY,
    make_tensors,
    write_checkpoint,
    write_safetensors,
)

from crumb.checkpoints import directory_writer
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import StoredArray, read_header
from crumb.checkpoints.tensor_map import StoredPacked
from crumb.errors import CheckpointError
from crumb.formats.packed_tensor import PackedTensor
from crumb.kernels.decode import decode
from crumb.kernels.tile import unpack_tensor
from crumb.pipeline import QuantizeRequest, quantize
from crumb.solve.problem import Method, SolveSettings


def rounded(model: Path, out: Path, bits: int = 3) -> Path:
    """A quick quantization by rounding."""
    settings = SolveSettings(method=Method.ROUND)
    quantize(QuantizeRequest(str(model), out, bits=bits, group_size=32, solve=settings))
    return out


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_every_tensor_is_read_from_any_layout_and_type(
    shards: int, dtype: str, tmp_path: Path
) -> None:
    tensors = make_tensors(tied=False)
    checkpoint = open_checkpoint(
        write_checkpoint(tmp_path / "model", tensors, dtype=dtype, shards=shards)
    )
    assert len(checkpoint.weight_files) == shards
    assert {spec.name for spec in checkpoint.plan.tensors()} == set(tensors)
    for name, array in tensors.items():
        found = checkpoint.tensors.read_float(name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, array)
        np.testing.assert_array_equal(checkpoint.tensors.read_float(name, slice(1, 3)), array[1:3])


def test_a_single_file_wins_over_an_index(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", make_tensors(seed=1), shards=2)
    write_checkpoint(model, make_tensors(seed=2))
    found = open_checkpoint(model).tensors.read_float(QUERY)
    np.testing.assert_array_equal(found, make_tensors(seed=2)[QUERY])


def test_tensors_that_the_plan_does_not_need_are_ignored(tmp_path: Path) -> None:
    """Older checkpoints store rotary frequencies and position numbers."""
    tensors = make_tensors()
    model = write_checkpoint(tmp_path / "model", tensors)
    buffer = np.arange(8, dtype=np.float32)
    stored = {name: array.astype(np.float16) for name, array in tensors.items()}
    write_safetensors(
        model / "model.safetensors",
        stored | {"model.layers.0.self_attn.rotary_emb.inv_freq": buffer},
    )
    rounded(model, tmp_path / "out")
    assert "rotary" not in str(list(open_checkpoint(tmp_path / "out").tensors.entries))


def test_the_hash_follows_configuration_and_weights_alone(tmp_path: Path) -> None:
    first = open_checkpoint(write_checkpoint(tmp_path / "one")).sha256()
    assert open_checkpoint(write_checkpoint(tmp_path / "two")).sha256() == first
    (tmp_path / "two" / "README.md").write_text("of no weight")
    assert open_checkpoint(tmp_path / "two").sha256() == first
    other = write_checkpoint(tmp_path / "three", make_tensors(seed=1))
    assert open_checkpoint(other).sha256() != first
    other = write_checkpoint(tmp_path / "four", configuration={"rope_theta": 500.0})
    assert open_checkpoint(other).sha256() != first


def test_links_into_a_cache_are_followed(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "blobs", shards=2)
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in model.iterdir():
        (linked / path.name).symlink_to(path)
    assert open_checkpoint(linked).sha256() == open_checkpoint(model).sha256()
    assert open_checkpoint(linked).weight_bytes() == open_checkpoint(model).weight_bytes()


def test_a_quantized_directory_gives_packed_matrices_and_plain_norms(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    checkpoint = open_checkpoint(rounded(model, tmp_path / "out"))
    for spec in checkpoint.plan.tensors():
        entry = checkpoint.tensors.entry(spec.name)
        assert isinstance(entry, StoredPacked if spec.matrix else StoredArray)
        assert tuple(entry.shape) == spec.shape
    packed = checkpoint.tensors.entry(QUERY).read()
    assert isinstance(packed, PackedTensor)
    weights = checkpoint.tensors.read_float(QUERY)
    np.testing.assert_array_equal(weights, decode(packed))
    _, parameters = unpack_tensor(packed)
    # Rounding moves a weight by half a step of its group's scale at most, clipped ones aside.
    step = parameters.scale.astype(np.float32).max()
    assert np.abs(weights - make_tensors()[QUERY]).max() < 2 * step


@pytest.mark.parametrize(
    "rows",
    [slice(5, 9), slice(0, 16), slice(15, 17), slice(296, 999), slice(-3, None), slice(7, 7)],
    ids=str,
)
def test_some_rows_of_a_packed_matrix_read_only_their_tiles(
    rows: slice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding has 300 rows: 18 tiles and 12 rows of a last one."""
    checkpoint = open_checkpoint(rounded(write_checkpoint(tmp_path / "model"), tmp_path / "out"))
    whole = checkpoint.tensors.read_float(EMBEDDING)
    asked: list[slice | None] = []
    read = StoredArray.read

    def watched(array: StoredArray, part: slice | None = None) -> object:
        asked.append(part)
        return read(array, part)

    monkeypatch.setattr(StoredArray, "read", watched)
    np.testing.assert_array_equal(checkpoint.tensors.read_float(EMBEDDING, rows), whole[rows])
    begin, end, _ = rows.indices(300)
    assert asked == [slice(begin // 16, (end + 15) // 16)]


def test_a_mapped_matrix_is_the_one_that_is_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(rounded(write_checkpoint(tmp_path / "model"), tmp_path / "out"))
    for spec in checkpoint.plan.tensors():
        mapped, read = (
            checkpoint.tensors.entry(spec.name).map(),
            checkpoint.tensors.entry(spec.name).read(),
        )
        if isinstance(mapped, PackedTensor):
            assert isinstance(read, PackedTensor)
            assert not mapped.tiles.flags.owndata
            assert mapped.tiles.ctypes.data % 16 == 0  # every tile is a multiple of 16 bytes
            np.testing.assert_array_equal(decode(mapped), decode(read))
            mapped, read = mapped.tiles, read.tiles
        assert isinstance(read, np.ndarray)
        assert not mapped.flags.writeable
        assert mapped.tobytes() == read.tobytes()


def test_large_outputs_are_split_and_open_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix stays with its metadata, before the small tensors; the bytes are as in one file."""
    model = write_checkpoint(tmp_path / "model")
    whole = open_checkpoint(rounded(model, tmp_path / "whole"))
    monkeypatch.setattr(directory_writer, "SHARD_BYTES", 25_000)
    split = open_checkpoint(rounded(model, tmp_path / "split"))
    assert len(split.weight_files) > 2
    for path in split.weight_files:
        arrays, metadata = read_header(path)
        assert sum(array.size_bytes for array in arrays.values()) <= 25_000
        packed = [name.endswith(".tiles") for name in arrays]
        assert packed == sorted(packed, reverse=True)
        matrices = {name.removesuffix(".tiles") for name in arrays if name.endswith(".tiles")}
        assert metadata.keys() == matrices | {"format"}
        assert min(array.offset_bytes for array in arrays.values()) % 64 == 0
    assert split.tensors.size_bytes() == whole.tensors.size_bytes()
    for spec in whole.plan.tensors():
        np.testing.assert_array_equal(
            split.tensors.read_float(spec.name), whole.tensors.read_float(spec.name)
        )


def test_a_missing_name_lists_names_that_look_alike(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model"))
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.q_proj\.weight") as caught:
        checkpoint.tensors.entry("model.layers.9.self_attn.q_proj.weight")
    assert "expected model.layers.9.self_attn.q_proj.weight" in str(caught.value)
    with pytest.raises(CheckpointError, match="none alike"):
        checkpoint.tensors.entry("transformer.wte.kernel")


def test_an_f64_weight_beyond_f32_becomes_infinite_without_a_warning(tmp_path: Path) -> None:
    """So that the check for finite weights, which names its place, is what speaks."""
    from crumb.checkpoints.safetensors import ArrayToWrite, write_file
    from crumb.checkpoints.tensor_map import TensorMap

    array = np.array([1.0, 1e300])
    write_file(
        tmp_path / "x.safetensors", {"x": ArrayToWrite(array.dtype, (2,), lambda: array)}, {}
    )
    stored, _ = read_header(tmp_path / "x.safetensors")
    found = TensorMap(tmp_path, stored).read_float("x")
    np.testing.assert_array_equal(found, np.array([1.0, np.inf], np.float32))


def test_the_embedding_is_read_by_rows_without_the_rest(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model"))
    rows = checkpoint.tensors.read_float(EMBEDDING, slice(298, 310))
    np.testing.assert_array_equal(rows, make_tensors()[EMBEDDING][298:])
