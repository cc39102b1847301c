"""Safetensors files that are truncated, lie about themselves, or hold what no model holds.

In: files cut at every byte, and headers written wrong on purpose. Out: one line that names the
file and, where there is one, the tensor; nothing is allocated on a claimed size.
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import eval_line, refusal
from tiny_checkpoint import (
    EMBEDDING,
    NORM,
    QUERY,
    entry,
    make_tensors,
    write_checkpoint,
    write_raw,
    write_safetensors,
)

from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import read_header
from crumb.errors import CheckpointError, CrumbError

Capsys = pytest.CaptureFixture[str]
MODEL = "model.safetensors"


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """A file's header and the data behind it."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def rewrite(path: Path, header: object, data: bytes) -> None:
    """A file with another header over the same data."""
    write_raw(path, json.dumps(header).encode(), data)


def test_a_file_cut_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    """Every byte of the header's region, and a sample of the data."""
    whole = tmp_path / "whole.safetensors"
    tensors = {name: make_tensors()[name] for name in (NORM, QUERY, EMBEDDING)}
    write_safetensors(whole, tensors)
    raw = whole.read_bytes()
    data_start = 8 + int.from_bytes(raw[:8], "little")
    sample = np.random.default_rng(0).integers(data_start, len(raw), 200)
    path = tmp_path / "cut.safetensors"
    for end in (*range(data_start + 2), *sample, len(raw) - 1):
        path.write_bytes(raw[:end])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
            read_header(path)
    path.write_bytes(raw)
    assert read_header(path)[0].keys() == tensors.keys()


def test_a_truncated_model_is_one_line_that_says_so(
    tiny: Path, capsys: Capsys, refused: Any
) -> None:
    raw = (tiny / MODEL).read_bytes()
    for end in (0, 7, 8, 100, len(raw) // 2, len(raw) - 1):
        (tiny / MODEL).write_bytes(raw[:end])
        line = refused(1, tiny)
        assert MODEL in line
        assert "truncated" in line
        refusal(capsys, 1, "show", tiny)
        refusal(capsys, 1, *eval_line(tiny))


def test_bytes_behind_the_last_tensor_are_refused(tiny: Path, refused: Any) -> None:
    with (tiny / MODEL).open("ab") as file:
        file.write(b"\0")
    assert "does not end where its last tensor does" in refused(1, tiny)


def test_a_model_that_shrinks_while_it_is_read_is_refused(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    with (tiny / MODEL).open("r+b") as file:
        file.truncate(20_000)
    with pytest.raises(CheckpointError, match="ends inside a tensor"):
        checkpoint.tensors.read_float(QUERY)


@pytest.mark.parametrize("claimed", [0, 1, 2**20, 2**31, 2**32, 2**63, 2**64 - 1])
def test_a_header_of_another_length_is_refused_without_reading_it(
    claimed: int, tiny: Path, refused: Any
) -> None:
    header, data = header_of(tiny / MODEL)
    write_raw(tiny / MODEL, json.dumps(header).encode(), data, claimed_length=claimed)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(tiny / MODEL)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 * (tiny / MODEL).stat().st_size
    assert MODEL in refused(1, tiny)


WRONG_HEADERS = {
    "list": b"[]",
    "null": b"null",
    "cut": b'{"a": ',
    "deep": b'{"a":' * 100_000,
    "not utf-8": b'{"\xff": {}}',
    "entry is a list": b'{"a": []}',
    "entry is empty": b'{"a": {}}',
    "no shape": b'{"a": {"dtype": "F16", "data_offsets": [0, 2]}}',
    "shape is text": b'{"a": {"dtype": "F16", "shape": "1", "data_offsets": [0, 2]}}',
    "shape of floats": b'{"a": {"dtype": "F16", "shape": [1.5], "data_offsets": [0, 2]}}',
    "one offset": b'{"a": {"dtype": "F16", "shape": [1], "data_offsets": [0]}}',
    "three offsets": b'{"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2, 4]}}',
    "dtype is a number": b'{"a": {"dtype": 16, "shape": [1], "data_offsets": [0, 2]}}',
    "metadata of numbers": b'{"__metadata__": {"format": 1}}',
    "metadata is a list": b'{"__metadata__": []}',
    "huge integer": b'{"a": {"dtype": "F16", "shape": ['
    + b"9" * 5000
    + b'], "data_offsets": [0, 2]}}',
}


@pytest.mark.parametrize("header", WRONG_HEADERS.values(), ids=WRONG_HEADERS.keys())
def test_a_malformed_header_is_refused_by_file(header: bytes, tiny: Path, refused: Any) -> None:
    write_raw(tiny / MODEL, header, b"\0\0")
    line = refused(1, tiny)
    assert str(tiny / MODEL) in line
    assert len(line) < 400


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown dtype": ({"dtype": "F8_E9"}, "F8_E9"),
    "long dtype": ({"dtype": "F" * 9000}, "unknown dtype"),
    "no dtype": ({"dtype": ""}, "unknown dtype"),
    "half the offsets": ({"data_offsets": [0, 64]}, "offsets do not match the shape"),
    "swapped offsets": ({"data_offsets": [128, 0]}, "offsets do not match the shape"),
    "negative offsets": ({"data_offsets": [-128, 0]}, "offsets do not match the shape"),
    "past the end": ({"data_offsets": [2**40, 2**40 + 128]}, "reaches past the end"),
    "offsets near 2^63": ({"data_offsets": [2**63 - 64, 2**63 + 64]}, "past the end"),
    "offsets beyond 2^64": ({"data_offsets": [2**64, 2**64 + 128]}, "past the end"),
    "longer by one": ({"shape": [65]}, "offsets do not match the shape"),
    "negative shape": ({"shape": [-64]}, "impossible shape"),
    "two negative sizes": ({"shape": [-8, -8]}, "impossible shape"),
    "product of 2^64": ({"shape": [2**32, 2**32]}, "offsets do not match the shape"),
    "product of 2^64 in three": ({"shape": [2**62, 4, 1]}, "offsets do not match the shape"),
    "bytes that wrap to 128": ({"shape": [64, 2**57 + 1]}, "offsets do not match the shape"),
    "weights that wrap to 64": ({"shape": [64, 2**58 + 1]}, "offsets do not match the shape"),
    "a size of 2^62": ({"shape": [2**62]}, "offsets do not match the shape"),
    "many sizes": ({"shape": [1] * 9}, "impossible shape"),
    "another shape": ({"shape": [8, 8]}, "expected [64], found [8, 8]"),
}


@pytest.mark.parametrize(("lie", "said"), LIES.values(), ids=LIES.keys())
def test_an_entry_that_lies_is_refused_by_tensor(
    lie: dict[str, Any], said: str, tiny: Path, refused: Any
) -> None:
    header, data = header_of(tiny / MODEL)
    header[NORM] |= lie
    rewrite(tiny / MODEL, header, data)
    line = refused(1, tiny)
    assert said in line
    assert f": {NORM}: " in line
    assert len(line) < 500


def test_tensors_that_overlap_or_leave_a_hole_are_refused(tiny: Path, refused: Any) -> None:
    header, data = header_of(tiny / MODEL)
    begin, end = header[NORM]["data_offsets"]
    for shift in (-2, 2):
        moved = header | {NORM: entry("F16", [64], begin + shift, end + shift)}
        rewrite(tiny / MODEL, moved, data)
        line = refused(1, tiny)
        assert "overlaps another or follows a hole" in line
        assert f"{tiny}/{MODEL}: model.layers.1." in line


def test_two_names_for_the_same_bytes_are_refused(tiny: Path, refused: Any) -> None:
    header, data = header_of(tiny / MODEL)
    rewrite(tiny / MODEL, header | {"alias": header[NORM]}, data)
    assert "overlaps another" in refused(1, tiny)


def test_a_tensor_twice_in_one_header_is_refused(tiny: Path, refused: Any) -> None:
    """JSON lets a key come twice; the one that is read leaves the other's bytes as a hole."""
    header, data = header_of(tiny / MODEL)
    raw = json.dumps(header).encode()
    again = json.dumps({NORM: entry("F16", [64], len(data), len(data) + 128)}).encode()
    write_raw(tiny / MODEL, raw[:-1] + b"," + again[1:], data + bytes(128))
    assert MODEL in refused(1, tiny)


def test_an_integer_tensor_is_no_weight(tiny: Path, refused: Any) -> None:
    header, data = header_of(tiny / MODEL)
    header[NORM]["dtype"] = "I16"
    rewrite(tiny / MODEL, header, data)
    line = refused(1, tiny)
    assert NORM in line
    assert "int16" in line


def test_a_missing_tensor_is_named_with_those_that_look_alike(tmp_path: Path, refused: Any) -> None:
    tensors = make_tensors()
    del tensors[QUERY]
    model = write_checkpoint(tmp_path / "model", tensors, configuration={"num_hidden_layers": 3})
    line = refused(1, model)
    assert f"expected {QUERY}" in line
    assert "model.layers.0.self_attn.q_proj.weight" in line


def test_a_tensor_of_another_shape_is_named_with_both(tmp_path: Path, refused: Any) -> None:
    tensors = make_tensors()
    tensors[QUERY] = tensors[QUERY][:, :32]
    line = refused(1, write_checkpoint(tmp_path / "model", tensors))
    assert QUERY in line
    assert "expected [64, 64], found [64, 32]" in line


def test_a_tensor_without_weights_is_refused(tmp_path: Path, refused: Any) -> None:
    tensors = make_tensors()
    tensors[EMBEDDING] = tensors[EMBEDDING][:0]
    line = refused(1, write_checkpoint(tmp_path / "model", tensors))
    assert "found [0, 64]" in line


def test_a_weights_file_that_cannot_be_opened_is_refused(tiny: Path, refused: Any) -> None:
    (tiny / MODEL).unlink()
    (tiny / MODEL).mkdir()
    assert MODEL in refused(1, tiny)


def test_hostile_names_reach_only_the_message(tiny: Path, refused: Any) -> None:
    """A name is never a path, and a line break in it does not break the line."""
    header, data = header_of(tiny / MODEL)
    for name in ("../../escape", "a\nb", "\x1b[31m", "x" * 10_000, ""):
        renamed = dict(header)
        renamed[name] = renamed.pop(NORM)
        rewrite(tiny / MODEL, renamed, data)
        assert NORM in refused(1, tiny)
    with pytest.raises(CrumbError):
        open_checkpoint(tiny)
