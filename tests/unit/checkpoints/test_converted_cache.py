"""Tiles of other containers kept beside the model: made once, then mapped; never trusted.

In: tiny GPTQ directories. Out: what is read, which files are made when, warnings.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_files import MODULE, gptq_arrays, random_grid, write_model

import crumb
from crumb.checkpoints import converted_cache
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.converted_cache import cache_path, with_converted
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.tensor_map import StoredCodes, StoredPacked
from crumb.errors import CrumbWarning

WEIGHT = f"{MODULE}.weight"
SETTINGS = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}


def write_gptq(path: Path, seed: int = 0, shuffled: bool = False, **settings: Any) -> Path:
    """A model with one quantized layer."""
    grid = random_grid(4, (64, 96), 32, symmetric=False, seed=seed, shuffled=shuffled)
    return write_model(path, {MODULE: gptq_arrays(grid)}, SETTINGS | settings)


def is_cached(checkpoint: Checkpoint) -> bool:
    return isinstance(checkpoint.tensors.entry(WEIGHT), StoredPacked)


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_first_load_makes_the_file_and_the_next_reads_it(
    shuffled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_gptq(tmp_path / "m", shuffled=shuffled)
    plain = open_checkpoint(model)
    first = with_converted(plain)
    monkeypatch.setattr(StoredCodes, "read", None)  # nothing is converted again
    second = with_converted(open_checkpoint(model))
    for checkpoint in (first, second):
        entry, expected = checkpoint.tensors.entry(WEIGHT), plain.tensors.entry(WEIGHT)
        assert isinstance(entry, StoredPacked)
        assert isinstance(expected, StoredCodes)
        assert entry.format == expected.format
        for rows in (slice(None), slice(5, 40)):
            found = checkpoint.tensors.read_float(WEIGHT, rows)
            assert np.array_equal(found, plain.tensors.read_float(WEIGHT, rows))
    assert sorted(path.name for path in model.iterdir() if "crumb" in path.name) == [
        "model.crumb-tiles"
    ]


def test_a_model_gives_the_same_tokens_with_its_cache(tmp_path: Path) -> None:
    model = write_gptq(tmp_path / "m")
    texts = []
    for cached in (False, True, True):
        with crumb.load(model, context_tokens=32, cache_converted=cached) as loaded:
            texts.append(loaded.generate("a", max_tokens=12, ignore_end=True).tokens)
        assert cache_path(open_checkpoint(model)).exists() == cached
    assert texts[0] == texts[1] == texts[2]


def touched(model: Path) -> None:
    os.utime(model / "model.safetensors", ns=(1, 1))


def other_weights(model: Path) -> None:
    write_gptq(model, seed=1)


def other_settings(model: Path) -> None:
    """Version 2 stores zero points as they are: the same arrays mean other weights."""
    write_gptq(model, checkpoint_format="gptq_v2")
    touched(model)


def cut(model: Path) -> None:
    file = model / "model.crumb-tiles"
    file.write_bytes(file.read_bytes()[:-1])


def flipped(model: Path) -> None:
    file = model / "model.crumb-tiles"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def emptied(model: Path) -> None:
    (model / "model.crumb-tiles").write_bytes(b"")


@pytest.mark.parametrize("change", [touched, other_weights, other_settings, cut, flipped, emptied])
def test_a_file_that_does_not_fit_or_is_damaged_is_made_anew(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    model = write_gptq(tmp_path / "m")
    with_converted(open_checkpoint(model))
    path = cache_path(open_checkpoint(model))
    change(model)
    damaged = path.read_bytes()
    plain = open_checkpoint(model)
    cached = with_converted(plain)
    assert is_cached(cached)
    assert path.read_bytes() != damaged
    expected = plain.tensors.read_float(WEIGHT)
    assert np.array_equal(cached.tensors.read_float(WEIGHT), expected)


def test_every_flipped_byte_of_the_file_is_noticed(tmp_path: Path) -> None:
    model = write_gptq(tmp_path / "m")
    checkpoint = open_checkpoint(model)
    with_converted(checkpoint)
    path = cache_path(checkpoint)
    raw, expected = path.read_bytes(), checkpoint.tensors.read_float(WEIGHT)
    for place in range(0, len(raw), 41):
        changed = bytearray(raw)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        found = with_converted(checkpoint).tensors.read_float(WEIGHT)
        assert np.array_equal(found, expected), place


def test_another_version_of_the_conversion_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_gptq(tmp_path / "m")
    with_converted(open_checkpoint(model))
    before = cache_path(open_checkpoint(model)).read_bytes()
    monkeypatch.setattr(converted_cache, "CONVERSION_VERSION", 2)
    assert is_cached(with_converted(open_checkpoint(model)))
    assert cache_path(open_checkpoint(model)).read_bytes() != before


def test_where_nothing_can_be_written_the_model_loads_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_gptq(tmp_path / "m")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(converted_cache, "write_file", refuse)
    with pytest.warns(CrumbWarning, match="are not kept: Permission denied"):
        checkpoint = with_converted(open_checkpoint(model))
    assert not is_cached(checkpoint)


def test_another_process_at_work_is_left_alone(tmp_path: Path) -> None:
    model = write_gptq(tmp_path / "m")
    path = cache_path(open_checkpoint(model))
    path.with_name(path.name + ".tmp").write_bytes(b"half")
    with pytest.warns(CrumbWarning, match="another run is at work here"):
        assert not is_cached(with_converted(open_checkpoint(model)))
    assert path.with_name(path.name + ".tmp").read_bytes() == b"half"
    assert not path.exists()
