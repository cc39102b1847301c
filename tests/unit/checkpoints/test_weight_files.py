"""Which files of a directory are its weights: shards without an index, adapters, other names.

In: tiny model directories whose files were renamed or taken away. Out: models, refusals.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import make_tensors, write_checkpoint

from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import CheckpointError, ModelNotFound


def sharded(folder: Path, shards: int) -> Path:
    """A model of so many shards, without their index."""
    model = write_checkpoint(folder / "model", shards=shards)
    (model / "model.safetensors.index.json").unlink()
    return model


def test_shards_without_an_index_are_read_when_all_are_there(tmp_path: Path) -> None:
    tensors = open_checkpoint(sharded(tmp_path, 3)).tensors
    for name, values in make_tensors().items():
        assert np.array_equal(tensors.read_float(name), values)


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_missing_shard_is_named(missing: int, tmp_path: Path) -> None:
    model = sharded(tmp_path, 3)
    (model / f"model-{missing:05}-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"-{missing:05}-of-00003.*found 2 of 3.*Download"):
        open_checkpoint(model)


def test_a_count_that_no_directory_has_costs_nothing(tmp_path: Path) -> None:
    model = sharded(tmp_path, 2)
    (model / "model-00002-of-00002.safetensors").unlink()
    (model / "model-00001-of-00002.safetensors").rename(model / "m-00001-of-99999.safetensors")
    with pytest.raises(CheckpointError, match="m-00002-of-99999"):
        open_checkpoint(model)


def test_shards_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    model = sharded(tmp_path, 2)
    (model / "other-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="several models without an index"):
        open_checkpoint(model)


def test_an_adapter_is_refused_by_name(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter is no model.*Merge it"):
        open_checkpoint(model)


def test_a_single_file_of_another_name_is_named_with_what_to_do(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    (model / "model.safetensors").rename(model / "weights.safetensors")
    with pytest.raises(ModelNotFound, match=r"found weights\.safetensors.*name it model"):
        open_checkpoint(model)
