"""GGUF files that are truncated, lie about themselves, or hold what no model holds.

In: files cut at every byte, and headers written wrong on purpose. Out: one line that names the
file and the field; nothing is allocated on a claimed size.
"""

from __future__ import annotations

import math
import os
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import refusal
from gguf_file import (
    ARRAY,
    HIDDEN,
    STRING,
    VOCABULARY,
    File,
    Tensor,
    array,
    scalar,
    string,
    text,
    tiny_model,
    u32,
    u64,
    wide_model,
)

from crumb.checkpoints.gguf.container import read_gguf
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import CheckpointError, CrumbError

SLACK_BYTES = 1 << 20
"""Room for Python's own objects: the plan, messages, what is imported late."""

QUERY = "blk.0.attn_q.weight"


def said_of(raw: bytes, path: Path) -> str:
    """What opening these bytes is refused with: one short line that names the file."""
    path.write_bytes(raw)
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        open_all(path)
    seconds = time.process_time() - begin
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    line = str(caught.value)
    assert str(path) in line, line
    assert len(line) < 600, line
    assert len(line.splitlines()) == 1, line
    assert peak_bytes < 8 * len(raw) + SLACK_BYTES, f"{peak_bytes} bytes for {line}"
    assert seconds < 5, f"{seconds} s for {line}"  # thousands of times what an honest file takes
    return line


def open_all(path: Path) -> None:
    """Open a file and read every tensor of its plan."""
    checkpoint = open_checkpoint(path)
    for spec in checkpoint.plan.tensors():
        assert checkpoint.tensors.read_float(spec.name).shape == spec.shape


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("version", [2, 3])
def test_the_file_is_fine_before_it_is_broken(version: int, path: Path) -> None:
    path.write_bytes(replace(tiny_model(), version=version).raw())
    open_all(path)


def test_a_file_cut_at_any_byte_is_refused_by_name(path: Path) -> None:
    raw = tiny_model().raw()
    path.write_bytes(raw)
    for end in reversed(range(len(raw))):
        os.truncate(path, end)
        with pytest.raises(CheckpointError, match=r"model\.gguf") as caught:
            read_gguf(path)
        assert "copy or download it again" in str(caught.value)


def test_a_file_that_shrinks_while_it_is_read_is_refused(path: Path) -> None:
    path.write_bytes(tiny_model().raw())
    checkpoint = open_checkpoint(path)
    os.truncate(path, 700)
    with pytest.raises(CheckpointError, match="ends inside a tensor"):
        checkpoint.tensors.read_float("model.norm.weight")


HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
"""Where 32-bit, floating and 64-bit numbers end, signed or not."""

M = tiny_model()
NORM = "blk.0.attn_norm.weight"


def key(raw: bytes, name: str | bytes = "extra") -> File:
    """The tiny model with one more key, whose value is these bytes."""
    return replace(M, keys=M.keys | {name: raw})


CLAIMS: dict[str, Callable[[int], File]] = {
    "tensor count": lambda claim: replace(M, tensor_count=claim),
    "key count": lambda claim: replace(M, key_count=claim),
    "length of a key": lambda claim: replace(
        M, more_keys=string("extra", claim), key_count=len(M.keys) + 1
    ),
    "length of a text": lambda claim: key(u32(STRING) + string("a", claim)),
    "numbers of an array": lambda claim: key(array("u8", [1], claim)),
    "doubles of an array": lambda claim: key(array("f64", [1.0], claim)),
    "strings of an array": lambda claim: key(array("string", ["a"], claim)),
    "string of an array": lambda claim: key(u32(ARRAY) + u32(STRING) + u64(1) + string("", claim)),
    "first size": lambda claim: M.with_tensor(QUERY, sizes=(claim, HIDDEN)),
    "second size": lambda claim: M.with_tensor(QUERY, sizes=(HIDDEN, claim)),
    "both sizes": lambda claim: M.with_tensor(QUERY, sizes=(claim, claim)),
    "four sizes": lambda claim: M.with_tensor(QUERY, sizes=(claim,) * 4),
    "offset": lambda claim: M.with_tensor(QUERY, offset=claim),
    "alignment": lambda claim: M.with_keys(general__alignment=scalar("u64", claim)),
    "blocks": lambda claim: M.with_keys(llama__block_count=scalar("u64", claim)),
    "heads": lambda claim: M.with_keys(llama__attention__head_count=scalar("u64", claim)),
    "vocabulary": lambda claim: M.with_keys(llama__vocab_size=scalar("u64", claim)),
    "rotated": lambda claim: M.with_keys(llama__rope__dimension_count=scalar("u64", claim)),
    "parts": lambda claim: M.with_keys(split__count=scalar("u64", claim)),
}


@pytest.mark.parametrize("claim", HUGE)
@pytest.mark.parametrize("field", CLAIMS)
def test_a_claimed_size_is_refused_and_not_allocated(field: str, claim: int, path: Path) -> None:
    said_of(CLAIMS[field](claim).raw(), path)


def test_a_sparse_file_of_a_terabyte_is_refused_without_reading_it(path: Path) -> None:
    """Its claims lie within the file, which holds nothing but zeros there."""
    for field in ("length of a text", "numbers of an array", "strings of an array"):
        path.write_bytes(CLAIMS[field](2**38).raw())
        os.truncate(path, 2**40)
        with pytest.raises(CheckpointError, match=r"too large|cannot be"):
            read_gguf(path)


WRONG: dict[str, tuple[File, str]] = {
    "no magic": (replace(M, magic=b"GGML"), "no GGUF file"),
    "version 0": (replace(M, version=0), "found 0"),
    "version 1": (replace(M, version=1), "expected 2 or 3, found 1"),
    "version 99": (replace(M, version=99), "found 99"),
    "big-endian": (replace(M, version=3 << 24), "big-endian"),
    "one key more": (replace(M, key_count=len(M.keys) + 1), "byte"),
    "one key less": (replace(M, key_count=len(M.keys) - 1), "byte"),
    "one tensor more": (replace(M, tensor_count=len(M.tensors) + 1), "byte"),
    "no tensors": (replace(M, tensors=()), "lacks a tensor"),
    "empty key": (key(scalar("u32", 1), ""), "an empty key"),
    "key twice": (
        replace(
            M,
            more_keys=string("llama.block_count") + scalar("u32", 1),
            key_count=len(M.keys) + 1,
        ),
        "a key that comes twice",
    ),
    "long key": (key(scalar("u32", 1), "k" * 65536), "a key that is too long"),
    "key not UTF-8": (key(scalar("u32", 1), b"\xff\xfe"), "not UTF-8"),
    "text not UTF-8": (key(text(b"ab\xc3")), "not UTF-8"),
    "token not UTF-8": (key(u32(ARRAY) + u32(STRING) + u64(1) + string(b"\x80")), "not UTF-8"),
    "unknown type": (key(u32(13) + u64(0)), "unknown type"),
    "unknown type of array": (key(u32(ARRAY) + u32(77) + u64(1) + u64(0)), "unknown type"),
    "nested array": (key(u32(ARRAY) + u32(ARRAY) + u64(1) + array("u8", [1])), "array of arrays"),
    "flag of 2": (key(scalar("bool", 2)), "not a boolean"),
    "flags of 2": (key(array("bool", [0, 1, 2])), "not a boolean"),
    "alignment 0": (M.with_keys(general__alignment=scalar("u32", 0)), "alignment"),
    "alignment 24": (M.with_keys(general__alignment=scalar("u32", 24)), "power of two"),
    "alignment 2^31": (M.with_keys(general__alignment=scalar("u32", 1 << 31)), "alignment"),
    "alignment as u64": (M.with_keys(general__alignment=scalar("u64", 32)), "32 as u64"),
    "alignment as text": (M.with_keys(general__alignment=text("32")), "alignment"),
    "alignment as flag": (M.with_keys(general__alignment=scalar("bool", 1)), "alignment"),
    "another alignment": (M.with_keys(general__alignment=scalar("u32", 256)), "not aligned to 256"),
    "tensor without name": (M.with_tensor(QUERY, name=""), "impossible tensor name"),
    "tensor of 64 bytes": (M.with_tensor(QUERY, name="n" * 64), "impossible tensor name"),
    "tensor not UTF-8": (M.with_tensor(QUERY, name=b"\xff"), "not UTF-8"),
    "tensor twice": (M.with_tensor(QUERY, name=NORM), "comes twice"),
    "no sizes": (M.with_tensor(QUERY, sizes=()), "expected 1 to 4 sizes, found 0"),
    "five sizes": (M.with_tensor(QUERY, sizes=(1,) * 5), "expected 1 to 4 sizes, found 5"),
    "2^31 sizes": (M.with_tensor(QUERY, dimensions=1 << 31), "expected 1 to 4 sizes"),
    "a size of 0": (M.with_tensor(QUERY, sizes=(HIDDEN, 0)), "an impossible shape"),
    "a row too few": (M.with_tensor(QUERY, sizes=(HIDDEN, HIDDEN - 1)), "follows a hole"),
    "a row too many": (M.with_tensor(QUERY, sizes=(HIDDEN, HIDDEN + 1)), "overlaps another"),
    "product of 2^64": (M.with_tensor(QUERY, sizes=(2**32, 2**32)), "past the end"),
    "product of 2^64 in three": (M.with_tensor(QUERY, sizes=(2**32, 2**31, 2)), "past the end"),
    "bytes that wrap to 256": (M.with_tensor(QUERY, sizes=(HIDDEN, 2**59 + 8)), "impossible shape"),
    "another shape": (M.with_tensor(QUERY, sizes=(HIDDEN * HIDDEN,)), "does not have the shape"),
    "three sizes": (M.with_tensor(QUERY, sizes=(HIDDEN, 4, 2)), "does not have the shape"),
    "unaligned": (M.with_tensor(QUERY, offset=4), "not aligned to 32"),
    "overlapping": (M.with_tensor(QUERY, offset=0), "overlaps another"),
    "behind a hole": (M.with_tensor(QUERY, offset=32 * 40), "follows a hole"),
    "offset past the end": (M.with_tensor(QUERY, offset=2**40), "follows a hole"),
    "no such tensor type": (M.with_tensor(QUERY, type=200), "type 200, which has no name"),
    "removed tensor type": (M.with_tensor(QUERY, type=4), "does not read this tensor type"),
    "a type nothing reads": (M.with_tensor(QUERY, type=16), "IQ2_XXS"),
    "tensor type 2^32 - 1": (M.with_tensor(QUERY, type=2**32 - 1), "4294967295"),
    "row in no whole blocks": (M.with_tensor(QUERY, type=2), "whole blocks of Q4_0"),
    "unknown tensor": (M.with_tensor(QUERY, name="blk.0.attn_q_norm.weight"), "no llama model"),
    "one tensor too many": (
        replace(M, tensors=(*M.tensors, Tensor("blk.0.attn_q_norm.weight", (8,), bytes(32)))),
        "no llama model has",
    ),
    "a block too many": (
        replace(M, tensors=(*M.tensors, Tensor("blk.1.attn_norm.weight", (8,), bytes(32)))),
        "no llama model has",
    ),
    "half the biases": (
        replace(M, tensors=(*M.tensors, Tensor("blk.0.attn_q.bias", (8,), bytes(32)))),
        "lacks a tensor",
    ),
}


@pytest.mark.parametrize(("file", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_container_that_lies_is_refused_by_field(file: File, said: str, path: Path) -> None:
    assert said in said_of(file.raw(), path)


NAN, INFINITE = math.nan, math.inf
SETTINGS: dict[str, tuple[File, str]] = {
    "no architecture": (M.without("general__architecture"), "general.architecture"),
    "architecture is a number": (M.with_keys(general__architecture=scalar("u32", 1)), "a string"),
    "another architecture": (M.with_keys(general__architecture=text("mamba")), "llama4, qwen2"),
    "hostile architecture": (M.with_keys(general__architecture=text("\x1b[31m" * 99)), "not read"),
    "no blocks": (M.with_keys(llama__block_count=scalar("u32", 0)), "llama.block_count"),
    "many blocks": (M.with_keys(llama__block_count=scalar("u32", 1 << 24)), "1 to 1024"),
    "negative blocks": (M.with_keys(llama__block_count=scalar("i32", -1)), "found -1"),
    "no block count": (M.without("llama__block_count"), "no such key"),
    "blocks as text": (M.with_keys(llama__block_count=text("1")), "one integer"),
    "blocks as number": (M.with_keys(llama__block_count=scalar("f32", 1.0)), "one integer"),
    "blocks as flag": (M.with_keys(llama__block_count=scalar("bool", 1)), "one integer"),
    "no heads": (M.with_keys(llama__attention__head_count=scalar("u32", 0)), "head_count"),
    "negative heads": (M.with_keys(llama__attention__head_count=scalar("i32", -2)), "head_count"),
    "more heads than inputs": (
        M.with_keys(llama__attention__head_count=scalar("u32", 1000)),
        "rotate in pairs",
    ),
    "heads of every block": (
        M.with_keys(llama__attention__head_count=array("u32", [2])),
        "one integer",
    ),
    "no key-value heads": (M.with_keys(llama__attention__head_count_kv=scalar("u32", 0)), "_kv"),
    "three key-value heads": (
        M.with_keys(llama__attention__head_count_kv=scalar("u32", 3)),
        "heads do not divide",
    ),
    "experts": (M.with_keys(llama__expert_count=scalar("u32", 8)), "no mixtral model has"),
    "negative experts": (M.with_keys(llama__expert_count=scalar("i32", -8)), "expert_count"),
    "experts as array": (M.with_keys(llama__expert_count=array("u32", [0, 0])), "expert_count"),
    "long keys": (M.with_keys(llama__attention__key_length=scalar("u32", 5)), "key_length"),
    "long values": (M.with_keys(llama__attention__value_length=scalar("u32", 5)), "value_length"),
    "no epsilon": (M.without("llama__attention__layer_norm_rms_epsilon"), "epsilon"),
    "NaN epsilon": (
        M.with_keys(llama__attention__layer_norm_rms_epsilon=scalar("f32", NAN)),
        "finite",
    ),
    "negative epsilon": (
        M.with_keys(llama__attention__layer_norm_rms_epsilon=scalar("f32", -1.0)),
        "rms_norm_eps",
    ),
    "infinite theta": (M.with_keys(llama__rope__freq_base=scalar("f32", INFINITE)), "freq_base"),
    "theta 0": (M.with_keys(llama__rope__freq_base=scalar("f32", 0.0)), "freq_base"),
    "half the rotation": (M.with_keys(llama__rope__dimension_count=scalar("u32", 2)), "rope.dim"),
    "odd rotation": (M.with_keys(llama__rope__dimension_count=scalar("u32", 3)), "rope.dim"),
    "unknown scaling": (M.with_keys(llama__rope__scaling__type=text("longrope")), "longrope"),
    "NaN scaling": (M.with_keys(llama__rope__scaling__factor=scalar("f32", NAN)), "finite"),
    "negative scaling": (M.with_keys(llama__rope__scaling__factor=scalar("f32", -2)), "factor"),
    "no context": (M.with_keys(llama__context_length=scalar("u32", 0)), "context_length"),
    "no vocabulary": (M.without("llama__vocab_size"), "vocab_size"),
    "tokens as text": (M.with_keys(tokenizer__ggml__tokens=text("a")), "array of strings"),
    "tokens as numbers": (M.with_keys(tokenizer__ggml__tokens=array("u32", [1])), "of strings"),
    "no tokens": (M.with_keys(tokenizer__ggml__tokens=array("string", [])), "at least one token"),
    "more tokens": (
        M.with_keys(tokenizer__ggml__tokens=array("string", "abcdefghi")),
        "expected [9, 8], found [8, 8]",
    ),
    "token beyond": (
        M.with_keys(tokenizer__ggml__eos_token_id=scalar("u32", VOCABULARY)),
        "eos_token_id",
    ),
    "token -1": (M.with_keys(tokenizer__ggml__bos_token_id=scalar("i32", -1)), "bos_token_id"),
    "negative window": (
        M.with_keys(llama__attention__sliding_window=scalar("i32", -1)),
        "sliding_window",
    ),
    "not causal": (M.with_keys(llama__attention__causal=scalar("bool", 0)), "attention.causal"),
    "scaled logits": (M.with_keys(llama__logit_scale=scalar("f32", 2.0)), "logit_scale"),
    "parts of one": (M.with_keys(split__count=scalar("u16", 2)), "not named as one"),
}


@pytest.mark.parametrize(("file", "said"), SETTINGS.values(), ids=SETTINGS.keys())
def test_a_setting_that_cannot_be_is_refused_by_key(file: File, said: str, path: Path) -> None:
    assert said in said_of(file.raw(), path)


def factors(values: list[float], type: int = 0) -> File:
    data = np.array(values, "<f4" if type == 0 else "<f2").tobytes()
    return replace(M, tensors=(*M.tensors, Tensor("rope_freqs.weight", (len(values),), data, type)))


BAD_FACTORS: dict[str, File] = {
    "NaN": factors([NAN, 1.0]),
    "infinite": factors([1.0, INFINITE]),
    "zero": factors([0.0, 1.0]),
    "negative": factors([1.0, -8.0]),
    "below 1": factors([1.0, 0.5]),
    "largest first": factors([8.0, 1.0]),
    "too few": factors([1.0]),
    "too many": factors([1.0, 1.0, 8.0]),
    "halves": factors([1.0, 8.0], type=1),
    "beside a factor": factors([1.0, 8.0]).with_keys(llama__rope__scaling__factor=scalar("f32", 2)),
}


@pytest.mark.parametrize("file", BAD_FACTORS.values(), ids=BAD_FACTORS.keys())
def test_factors_of_frequencies_that_cannot_be_are_refused(file: File, path: Path) -> None:
    assert "rope_freqs" in said_of(file.raw(), path)


QUANTIZED = {"Q4_0": (2, 18), "Q4_1": (3, 20), "Q8_0": (8, 34), "IQ4_NL": (20, 18)}
BAD_HALVES = {"NaN": b"\x00\x7e", "infinity": b"\x00\x7c", "minus infinity": b"\x00\xfc"}


@pytest.mark.parametrize("half", BAD_HALVES.values(), ids=BAD_HALVES.keys())
@pytest.mark.parametrize("name", QUANTIZED)
def test_a_scale_that_is_not_finite_is_refused_by_tensor(
    name: str, half: bytes, path: Path
) -> None:
    type, block_bytes = QUANTIZED[name]
    for row in (0, VOCABULARY - 1):
        data = bytearray(block_bytes * VOCABULARY)
        data[row * block_bytes : row * block_bytes + 2] = half
        line = said_of(wide_model(type, block_bytes, bytes(data)).raw(), path)
        assert "token_embd.weight: a scale or a weight is not finite" in line


def test_a_minimum_that_is_not_finite_is_refused_by_tensor(path: Path) -> None:
    data = bytearray(20 * VOCABULARY)
    data[2:4] = BAD_HALVES["NaN"]
    assert "not finite" in said_of(wide_model(3, 20, bytes(data)).raw(), path)


def test_what_is_no_gguf_file_is_refused_at_the_command_line(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(b"PK\x03\x04" * 10)
    assert "no GGUF file" in refusal(capsys, 1, "show", path)
    path.unlink()
    path.mkdir()
    assert "config.json" in refusal(capsys, 4, "show", path)


def test_a_directory_of_several_models_lists_them(path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        path.with_name(name).write_bytes(tiny_model().raw())
    with pytest.raises(CrumbError, match=r"several GGUF files .* a\.gguf, b\.gguf.*Name one"):
        open_checkpoint(path.parent)


def part(number: int, count: int, file: File, **keys: bytes) -> File:
    return file.with_keys(
        split__no=scalar("u16", number), split__count=scalar("u16", count), **keys
    )


def split_model(tmp_path: Path, second: File | None = None) -> Path:
    """The tiny model in two files, the second of which may be another."""
    first = part(0, 2, replace(M, tensors=M.tensors[:4]))
    rest = part(1, 2, File({}, M.tensors[4:])) if second is None else second
    for number, file in ((1, first), (2, rest)):
        (tmp_path / f"tiny-{number:05}-of-00002.gguf").write_bytes(file.raw())
    return tmp_path / "tiny-00001-of-00002.gguf"


def test_a_split_file_is_one_model_and_its_parts_must_be_there(tmp_path: Path) -> None:
    path = split_model(tmp_path)
    assert len(open_checkpoint(path).weight_files) == 2
    open_all(tmp_path)
    path.with_name("tiny-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match="tiny-00002-of-00002"):
        open_checkpoint(path)


BAD_PARTS: dict[str, tuple[File, str]] = {
    "not a part": (File({}, M.tensors[4:]), "split.count"),
    "the same number": (part(0, 2, File({}, M.tensors[4:])), "split.no"),
    "of three": (part(1, 3, File({}, M.tensors[4:])), "split.count"),
    "number as text": (
        part(1, 2, File({}, M.tensors[4:])).with_keys(split__no=text("1")),
        "split.no",
    ),
    "a tensor again": (part(1, 2, File({}, M.tensors[3:])), "two parts hold the same tensor"),
    "a tensor short": (part(1, 2, File({}, M.tensors[5:])), "lacks a tensor"),
}


@pytest.mark.parametrize(("second", "said"), BAD_PARTS.values(), ids=BAD_PARTS.keys())
def test_parts_that_do_not_belong_together_are_refused(
    second: File, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(split_model(tmp_path, second))
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
