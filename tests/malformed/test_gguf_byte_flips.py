"""Random damage to GGUF files: only typed errors come out, and memory stays small.

In: tiny files with and without a tokenizer, plain and quantized, with bytes flipped, inserted or
taken out. Out: a model that opens and reads, or one CrumbError of one line.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from byte_edits import edited, edits, read_all, survives
from gguf_file import File, speaking_model, tiny_model, wide_model
from hypothesis import given, settings
from hypothesis import strategies as st

from crumb.checkpoints.opening import open_checkpoint
from crumb.tokenizer.tokenizer import load_tokenizer

FILES: dict[str, File] = {
    "plain": tiny_model(),
    "merged tokens": speaking_model("gpt2"),
    "scored tokens": speaking_model("llama"),
    "Q8_0": wide_model(8, 34),
    "MXFP4": wide_model(39, 17),
}


def read_everything(path: Path) -> None:
    """Weights, and the tokenizer if there is one."""
    read_all(path)
    checkpoint = open_checkpoint(path)
    if checkpoint.files.read("tokenizer.json") is not None:
        load_tokenizer(checkpoint.files).encode("abab b")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "model.gguf"


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(max_examples=40)
def test_a_damaged_file_opens_or_says_why_not(name: str, path: Path, data: st.DataObject) -> None:
    file = FILES[name]
    changes = data.draw(edits(len(file.header())))
    path.write_bytes(edited(file.raw(), changes))
    survives(path, read_everything)


@given(raw=st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_behind_the_magic_are_read_or_refused(raw: bytes, path: Path) -> None:
    path.write_bytes(b"GGUF\x03\0\0\0" + raw)
    survives(path, read_everything)


@pytest.mark.parametrize("name", FILES)
def test_the_damage_is_neither_always_nor_never_fatal(name: str, path: Path) -> None:
    """A test that never reads, or never refuses, would show nothing."""
    fates = set()
    for place in range(0, len(FILES[name].header()), 11):
        path.write_bytes(edited(FILES[name].raw(), [("flip", place, 0)]))
        fates.add(survives(path, read_everything))
    assert fates == {True, False}
