"""Local paths however they are written: GGUF by its bytes, files inside a directory, no models.

In: a tiny model as a directory and as a GGUF file, under other names. Out: models, refusals.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf_file import tiny_model
from tiny_checkpoint import write_checkpoint

from crumb.checkpoints.huggingface.hub import locate
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import CrumbError

OUTPUT = "model.layers.0.self_attn.o_proj.weight"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "of" / "model.gguf"
    path.parent.mkdir()
    path.write_bytes(tiny_model().raw())
    return path


@pytest.mark.parametrize("name", ["MODEL.GGUF", "model.Gguf", "sha256-0123", "model.bin"])
def test_a_gguf_file_is_known_by_its_bytes_or_any_spelling(
    name: str, gguf: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    shutil.copy(gguf, path)
    assert locate(str(path)) == path
    expected = open_checkpoint(gguf).tensors.read_float(OUTPUT)
    assert np.array_equal(open_checkpoint(path).tensors.read_float(OUTPUT), expected)


@pytest.mark.parametrize("beside", [None, "config.json"])
def test_a_directory_of_one_gguf_file_is_that_model(
    beside: str | None, gguf: Path, tmp_path: Path
) -> None:
    """Some publish a config.json that says the model_type and no more."""
    shutil.copy(gguf, tmp_path / "A.GGUF")
    if beside is not None:
        (tmp_path / beside).write_text('{"model_type": "llama"}')
    assert open_checkpoint(tmp_path).path == tmp_path / "A.GGUF"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "model-00002-of-00002.safetensors"]
)
def test_a_file_of_a_directory_is_the_directory(name: str, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", shards=2 if "-of-" in name else 1)
    assert locate(str(model / name)) == model
    assert open_checkpoint(model / name).path == model


REFUSED = {
    "adapter.safetensors": r"not what its directory's model is made of.*model\.safetensors",
    "pytorch_model.bin": "pickle weights.*safetensors",
    "README.md": "this file is no model.*a GGUF file",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_of_a_directory_are_refused_by_name(name: str, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m")
    (model / name).write_bytes(b"something")
    for attempt in (locate, lambda path: open_checkpoint(Path(path))):
        with pytest.raises(CrumbError, match=REFUSED[name]):
            attempt(str(model / name))


def test_weights_without_their_configuration_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"something")
    with pytest.raises(CrumbError, match=r"alone is no model.*config\.json"):
        locate(str(tmp_path / "model.safetensors"))
