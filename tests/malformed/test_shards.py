"""Weights that are dealt out wrongly, or stored as code: the index, its shards, pickle.

In: directories with an index that names what it should not. Out: one line that names the file.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from command_line import quantize_line, succeed
from tiny_checkpoint import NORM, QUERY, make_tensors, write_checkpoint, write_safetensors

INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00003.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint in three shards."""
    return write_checkpoint(tmp_path / "sharded", shards=3)


def change_index(model: Path, **changes: object) -> None:
    index = json.loads((model / INDEX).read_text())
    (model / INDEX).write_text(json.dumps(index | changes))


def test_a_missing_shard_is_named(sharded: Path, refused: Any) -> None:
    (sharded / SECOND).unlink()
    line = refused(1, sharded)
    assert f"{sharded}/{INDEX}" in line
    assert SECOND in line
    assert "Download the missing shard" in line


OUTSIDE = ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "a\0b"]


@pytest.mark.parametrize("name", [*OUTSIDE, "x" * 5000, "\ud800"])
def test_a_shard_that_is_no_file_beside_the_index_is_refused(
    name: str, sharded: Path, refused: Any
) -> None:
    """Not even where that file is there and holds what is asked for."""
    write_safetensors(sharded.parent / "secret.safetensors", {NORM: make_tensors()[NORM]})
    (sharded / "sub").mkdir()
    write_safetensors(sharded / "sub" / "x.safetensors", {NORM: make_tensors()[NORM]})
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][NORM] = name
    (sharded / INDEX).write_text(json.dumps(index))
    line = refused(1, sharded)
    assert INDEX in line
    assert len(line) < 400


@pytest.mark.parametrize("weight_map", [None, [], {}, "model.safetensors", 3], ids=str)
def test_an_index_without_a_map_is_refused(weight_map: object, sharded: Path, refused: Any) -> None:
    change_index(sharded, weight_map=weight_map)
    assert "weight_map" in refused(1, sharded)


@pytest.mark.parametrize("shard", [None, 7, ["a"], {"a": "b"}], ids=str)
def test_a_shard_that_is_no_name_is_refused(shard: object, sharded: Path, refused: Any) -> None:
    change_index(sharded, weight_map={NORM: shard})
    assert INDEX in refused(1, sharded)


def test_an_index_that_is_no_json_is_refused(sharded: Path, refused: Any) -> None:
    (sharded / INDEX).write_bytes(b'{"weight_map": {')
    assert f"{sharded}/{INDEX}" in refused(1, sharded)


def test_the_same_tensor_in_two_shards_is_refused_by_name(sharded: Path, refused: Any) -> None:
    tensors = make_tensors()
    names = list(tensors)[1::3]
    again = {name: tensors[name] for name in (*names, QUERY)}
    assert QUERY not in names
    write_safetensors(sharded / SECOND, again)
    line = refused(1, sharded)
    assert "two shards hold the same tensor" in line
    assert QUERY in line


def test_an_index_that_leaves_a_shard_out_lacks_its_tensors(sharded: Path, refused: Any) -> None:
    index = json.loads((sharded / INDEX).read_text())
    kept = {name: shard for name, shard in index["weight_map"].items() if shard != SECOND}
    change_index(sharded, weight_map=kept)
    line = refused(1, sharded)
    assert "the checkpoint lacks a tensor" in line


def test_one_damaged_shard_of_three_is_named(sharded: Path, refused: Any) -> None:
    raw = (sharded / SECOND).read_bytes()
    (sharded / SECOND).write_bytes(raw[: len(raw) // 2])
    assert SECOND in refused(1, sharded)


class Trap:
    """What a pickle can do to whoever opens it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "x.ckpt"])
def test_pickle_weights_are_refused_unopened(name: str, tiny: Path, refused: Any) -> None:
    (tiny / "model.safetensors").unlink()
    (tiny / name).write_bytes(pickle.dumps(Trap()))
    line = refused(1, tiny)
    assert name in line
    assert "can run code" in line
    assert "save_pretrained writes model.safetensors" in line


def test_safetensors_beside_pickle_are_used(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    succeed(capsys, *quantize_line(tiny, tmp_path / "out"))
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()


def test_a_directory_without_weights_is_exit_4(tiny: Path, refused: Any) -> None:
    (tiny / "model.safetensors").unlink()
    line = refused(4, tiny)
    assert "model.safetensors" in line
    assert INDEX in line
