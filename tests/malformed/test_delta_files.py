"""Deltas that are truncated, damaged or made to harm: one typed error, little memory, no output.

In: the delta of a tiny model with bytes or pieces replaced. Out: a refusal that leaves nothing, or,
where the damage touched nothing, the exact model.
"""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard
from command_line import digest, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoint import QUERY, write_checkpoint

from crumb.checkpoints.delta.apply import apply_delta
from crumb.checkpoints.delta.make import make_delta
from crumb.checkpoints.delta.record import read_delta
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import ArrayToWrite, read_header, write_file
from crumb.errors import CrumbError
from crumb.pipeline import QuantizeRequest, quantize
from crumb.solve.problem import Method, SolveSettings

Capsys = pytest.CaptureFixture[str]

SLACK_BYTES = 24 << 20
"""A window of 8 MiB, a piece of 1 MiB, the working arrays of 20,000 weights, the base's plan."""

BOMB_BYTES = 1 << 30


@dataclass(frozen=True)
class Made:
    """A base, what was quantized of it, and the delta."""

    base: Path
    quantized: Path
    delta: Path

    def pieces(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The delta taken apart: pieces and the record."""
        arrays, metadata = read_header(self.delta)
        content = {name: array.read().tobytes() for name, array in arrays.items()}
        return content, msgspec.json.decode(metadata["record"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("delta")
    base = write_checkpoint(place / "base")
    settings = SolveSettings(method=Method.ROUND)
    quantize(QuantizeRequest(str(base), place / "out", bits=3, group_size=32, solve=settings))
    make_delta(open_checkpoint(base), open_checkpoint(place / "out"), place / "x.delta")
    return Made(base, place / "out", place / "x.delta")


def written(
    path: Path, pieces: Mapping[str, bytes], record: Any, format: str = "crumb-delta"
) -> Path:
    """A delta from its parts, true or not."""
    arrays = {}
    for name, content in pieces.items():
        array = np.frombuffer(content, np.uint8)
        arrays[name] = ArrayToWrite(array.dtype, array.shape, lambda array=array: array)
    metadata = {"format": format, "record": msgspec.json.encode(record).decode()}
    write_file(path, arrays, metadata)
    return path


def frame_of(parts: Iterable[bytes], **parameters: int) -> bytes:
    """One frame as deltas have them."""
    chosen = zstandard.ZstdCompressionParameters.from_level(
        3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=0, **parameters
    )
    coder = zstandard.ZstdCompressor(compression_params=chosen).compressobj()
    return b"".join([*map(coder.compress, parts), coder.flush()])


def zeros_frame(count: int) -> bytes:
    """So many zeros, a few ten thousandths as large."""
    return frame_of(itertools.repeat(bytes(1 << 20), count >> 20))


Pieces = dict[str, bytes]
Change = Callable[[Pieces, dict[str, Any]], None]


def _without(name: str) -> Change:
    return lambda pieces, record: pieces.pop(name) and None


def _piece(name: str, content: Callable[[], bytes]) -> Change:
    return lambda pieces, record: pieces.update({name: content()})


def _file(name: str, **fields: Any) -> Change:
    known = {"bytes": 1, "sha256": "0" * 64, "source": "delta"}
    return lambda pieces, record: record["files"].update(
        {name: known | record["files"].get(name, {}) | fields}
    )


def _record(**fields: Any) -> Change:
    return lambda pieces, record: record.update(fields)


def _frame(content: bytes) -> bytes:
    return frame_of([content])


def _large_window() -> bytes:
    """A frame whose header asks for a window of 128 MiB."""
    return frame_of([bytes(100)], window_log=27)


def _header(text: bytes) -> bytes:
    return _frame(len(text).to_bytes(8, "little") + text)


def _narrower(pieces: Pieces, _: dict[str, Any]) -> None:
    """The embedding with a row less, which takes as many tiles."""
    decoder = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    header = decoder.decompressobj().decompress(pieces[HEADER])
    changed = header.replace(b"int8-g32-fixed 300 64", b"int8-g32-fixed 299 64")
    assert changed != header
    pieces[HEADER] = _frame(changed)


CODES = f"codes/{QUERY}/0"
HEADER = "header/model.safetensors"
HARM: dict[str, tuple[Change, str]] = {
    "no codes": (_without(CODES), "the delta lacks a piece"),
    "no header": (_without(HEADER), "the delta lacks a piece"),
    "no config": (_without("file/config.json"), "the delta lacks a piece"),
    "no frame": (_piece(CODES, lambda: b"\xff" * 50), "cannot be decompressed"),
    "an empty frame": (_piece(CODES, lambda: _frame(b"")), "ends inside"),
    "codes bomb": (_piece(CODES, lambda: zeros_frame(BOMB_BYTES)), "holds more than"),
    "header bomb": (_piece(HEADER, lambda: zeros_frame(BOMB_BYTES)), "holds more than"),
    "file bomb": (_piece("file/config.json", lambda: zeros_frame(BOMB_BYTES)), "holds more than"),
    "a large window": (_piece(CODES, _large_window), "cannot be decompressed"),
    "random codes": (
        _piece(CODES, lambda: _frame(np.random.default_rng(0).bytes(9000))),
        "does not fit its width|holds more than|ends inside|is not what was quantized",
    ),
    "a huge header": (
        _piece(HEADER, lambda: _frame((1 << 40).to_bytes(8, "little"))),
        "the header of a restored file is too large",
    ),
    "a header of noise": (_piece(HEADER, lambda: _header(b"{]")), "the header is malformed"),
    "a tensor of another shape": (_narrower, "does not have the base's shape"),
    "a long file": (_file("model.safetensors", bytes=1 << 45), "cannot have this size"),
    "a file of the wrong size": (_file("model.safetensors", bytes=20_000), "past the end"),
    "a short file": (_file("model.safetensors", bytes=10), "cannot have this size"),
    "an impossible file": (_file("model.safetensors", bytes=-1), "record is malformed"),
    "own files too large": (_file("x.bin", bytes=1 << 40), "own files are too large"),
    "a file that leaves": (_file("../x"), "may not be written"),
    "an absolute file": (_file("/tmp/x"), "may not be written"),
    "a hidden file": (_file(".x"), "may not be written"),
    "no name": (_file(""), "may not be written"),
    "the base's missing file": (_file("x", source="base"), "the base lacks a file"),
    "a source of no kind": (_file("x", source="net"), "record is malformed"),
    "another hash": (_file("config.json", sha256="1" * 64), "is not what was quantized"),
    "a hash of no kind": (_file("config.json", sha256="1"), "record is malformed"),
    "another model": (_record(quantized_sha256="1" * 64), "not the model that the delta records"),
    "version 2": (_record(version=2), "of another version"),
    "version x": (_record(version="x"), "record is malformed"),
    "files of no kind": (_record(files=[]), "record is malformed"),
    "more fields": (_record(more=1), "record is malformed"),
    "nothing": (lambda pieces, record: record.clear(), "record is malformed"),
}


@pytest.mark.parametrize("name", HARM)
def test_harm_is_refused_with_little_memory_and_leaves_nothing(
    name: str, made: Made, tmp_path: Path, capsys: Capsys
) -> None:
    pieces, record = made.pieces()
    change, said = HARM[name]
    change(pieces, record)
    path = written(tmp_path / "bad.delta", pieces, record)
    del pieces
    out = tmp_path / "back"
    base = open_checkpoint(made.base)
    tracemalloc.start()
    try:
        with pytest.raises(CrumbError, match=said) as caught:
            apply_delta(base, read_delta(path), out)
        assert tracemalloc.get_traced_memory()[1] < SLACK_BYTES
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == ["bad.delta"]
    line = refusal(capsys, caught.value.exit_code, "delta", "apply", made.base, path, "--out", out)
    assert str(caught.value) in line


@pytest.mark.parametrize("other", ["model.safetensors", "config.json"])
def test_a_file_of_another_kind_is_no_delta(
    other: str, made: Made, tmp_path: Path, capsys: Capsys
) -> None:
    line = refusal(
        capsys, 1, "delta", "apply", made.base, made.base / other, "--out", tmp_path / "x"
    )
    assert "not a delta file" in line or "the header reaches past the end" in line


def applied(made: Made, path: Path, out: Path) -> CrumbError | None:
    """The refusal, or None where the model came back exactly."""
    try:
        apply_delta(open_checkpoint(made.base), read_delta(path), out)
    except CrumbError as error:
        return error
    assert digest(out) == digest(made.quantized)
    return None


def test_a_delta_cut_anywhere_is_refused(made: Made, tmp_path: Path) -> None:
    raw = made.delta.read_bytes()
    for length in [*range(0, 200, 7), *range(200, len(raw), len(raw) // 60), len(raw) - 1]:
        (tmp_path / "cut").write_bytes(raw[:length])
        assert applied(made, tmp_path / "cut", tmp_path / "back") is not None
        assert not (tmp_path / "back").exists()


@settings(max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_nothing(
    made: Made, tmp_path_factory: pytest.TempPathFactory, place: float, value: int
) -> None:
    raw = bytearray(made.delta.read_bytes())
    raw[int(place * len(raw))] ^= value
    folder = tmp_path_factory.mktemp("changed")
    (folder / "x").write_bytes(raw)
    if applied(made, folder / "x", folder / "back") is not None:
        assert [found.name for found in folder.iterdir()] == ["x"]
