"""Random damage: whatever bytes change, only typed errors come out, and memory stays small.

In: the files of tiny checkpoints with bytes flipped, inserted or taken out. Out: a checkpoint that
opens and reads, or one CrumbError of one line.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from byte_edits import Edits, edited, edits, read_all, survives
from command_line import quantize_line
from hypothesis import given, settings
from hypothesis import strategies as st
from scaled_files import write_eight, write_mlx
from tiny_checkpoint import make_tensors, write_checkpoint

from crumb.checkpoints.crumb.manifest import read_manifest
from crumb.cli.main import main
from crumb.files.model_files import DirectoryFiles
from crumb.tokenizer.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one block in two shards, and a quantized one."""
    place = tmp_path_factory.mktemp("original")
    tensors = make_tensors(blocks=1)
    write_checkpoint(place / "single", tensors)
    write_checkpoint(place / "sharded", tensors, shards=2)
    scaled = {"quant_method": "fp8", "weight_block_size": [48, 40]}
    write_eight(place / "fp8", scaled, "weight_scale_inv", (48, 40), np.float32)
    write_mlx(place / "mlx", 4, 32)
    line = quantize_line(place / "single", place / "packed", method="round", zero="minimum")
    assert main(line) == 0
    return place


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory, original: Path) -> Path:
    """Copies of these directories, one of whose files is overwritten again and again."""
    place = tmp_path_factory.mktemp("scratch") / "copies"
    return Path(shutil.copytree(original, place))


HEADER_BYTES = 1700
"""About as long as the header of each of these files."""

FILES: dict[str, tuple[str, int]] = {
    "single/model.safetensors": ("single", HEADER_BYTES),
    "packed/model.safetensors": ("packed", 2 * HEADER_BYTES),
    "single/config.json": ("single", 360),
    "packed/config.json": ("packed", 480),
    "sharded/model.safetensors.index.json": ("sharded", 850),
    "fp8/model.safetensors": ("fp8", 2 * HEADER_BYTES),
    "fp8/config.json": ("fp8", 440),
    "mlx/model.safetensors": ("mlx", 2 * HEADER_BYTES),
    "mlx/config.json": ("mlx", 440),
}


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(max_examples=100)
def test_a_damaged_checkpoint_opens_or_says_why_not(
    name: str, original: Path, scratch: Path, data: st.DataObject
) -> None:
    directory, limit = FILES[name]
    changes = data.draw(edits(limit))
    raw = (original / name).read_bytes()
    assert limit <= len(raw)
    (scratch / name).write_bytes(edited(raw, changes))
    survives(scratch / directory, read_all)
    (scratch / name).write_bytes(raw)


@given(changes=edits(400))
@settings(max_examples=60)
def test_a_damaged_manifest_is_read_or_refused(
    changes: Edits, original: Path, scratch: Path
) -> None:
    raw = (original / "packed" / "manifest.json").read_bytes()
    (scratch / "packed" / "manifest.json").write_bytes(edited(raw, changes))
    survives(scratch / "packed", read_manifest)
    (scratch / "packed" / "manifest.json").write_bytes(raw)


@given(changes=edits(6000))
@settings(max_examples=60)
def test_a_damaged_tokenizer_is_read_or_refused(
    changes: Edits, original: Path, scratch: Path
) -> None:
    path = scratch / "single" / "tokenizer.json"
    raw = (original / "single" / "tokenizer.json").read_bytes()
    path.write_bytes(edited(raw, changes))
    survives(
        scratch / "single",
        lambda directory: load_tokenizer(DirectoryFiles(directory)).encode("a b"),
    )
    path.write_bytes(raw)


def test_the_damage_is_neither_always_nor_never_fatal(original: Path, scratch: Path) -> None:
    """A test that never reads, or never refuses, would show nothing."""
    path = scratch / "single" / "config.json"
    raw = (original / "single" / "config.json").read_bytes()
    fates = set()
    for place in range(0, 400, 7):
        path.write_bytes(edited(raw, [("flip", place, 0)]))
        fates.add(survives(scratch / "single", read_all))
    path.write_bytes(raw)
    assert fates == {True, False}
