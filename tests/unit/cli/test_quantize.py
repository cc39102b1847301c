"""`crumb quantize` for a target: what its options mean, what contradicts, where the result goes.

In: command lines on a tiny checkpoint. Out: formats in the result, or one line of a refusal.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import quantize_line, refusal, succeed
from tiny_checkpoint import EMBEDDING, QUERY, make_tensors, write_checkpoint

from crumb.cli.quantize import bits_or_name, default_out, parse_tensor
from crumb.errors import UsageError
from crumb.formats.catalog import ZeroKind

Capsys = pytest.CaptureFixture[str]
ROUNDED: dict[str, object] = {"bits": None, "group_size": None, "method": "round"}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = make_tensors(hidden=256, blocks=2)
    return write_checkpoint(tmp_path_factory.mktemp("verb") / "wide", tensors)


def formats_of(capsys: Capsys, out: Path) -> dict[str, str]:
    shown = json.loads(succeed(capsys, "show", out, "--json"))
    return {row["name"]: row["format"] for row in shown["tensors"]}


def test_a_target_says_bits_groups_and_zeros_by_itself(
    wide: Path, tmp_path: Path, capsys: Capsys
) -> None:
    line = quantize_line(wide, tmp_path / "out", **ROUNDED, embedding="q6_k")
    result = json.loads(succeed(capsys, *line, "--target", "gguf:q2_k", "--json"))
    assert len(result["fallbacks"]) == 4  # the inputs of 64 and 96
    formats = formats_of(capsys, tmp_path / "out")
    assert formats[QUERY] == "q2_k-g16-minimum"
    assert formats[EMBEDDING] == "q6_k-g16-fixed"


def test_fallbacks_are_printed_with_their_reason(
    wide: Path, tmp_path: Path, capsys: Capsys
) -> None:
    line = quantize_line(wide, tmp_path / "out", **ROUNDED)
    text = succeed(capsys, *line, "--target", "gguf:q4_k")
    reason = "q5_0: 96 inputs are not in whole blocks of q4_k"
    assert f"fallback: {reason}: " in text
    assert "model.layers.0.mlp.down_proj.weight" in text


def test_tensors_may_differ_with_and_without_a_target(
    wide: Path, tmp_path: Path, capsys: Capsys
) -> None:
    line = quantize_line(wide, tmp_path / "out", method="round")
    succeed(capsys, *line, "--tensor", "proj=q4_1", "--tensor", "*.1.*.q_proj.*=float")
    formats = formats_of(capsys, tmp_path / "out")
    assert formats[QUERY] == "float16"
    assert formats[QUERY.replace("q_proj", "k_proj")] == "int4-g32-minimum"
    assert formats[EMBEDDING] == "int8-g32-fixed"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "blocks: nothing says how many bits"),
        (["--target", "gguf:q3_k", "--bits", "4"], "the bits contradict the target"),
        (["--target", "gguf:q3_k", "--group-size", "32"], "target: the target already says"),
        (["--target", "gguf:q3_k", "--zero", "fixed"], "target: the target already says"),
        (["--target", "gguf:q7"], "target: not a target"),
        (["--target", "gguf:q3_k", "--as-published"], "the groups of a super-block cannot"),
        (["--target", "gptq", "--bits", "6"], "GPTQ files cannot hold this format"),
        (["--target", "gptq", "--bits", "4", "--head", "8"], "a GPTQ file keeps the head float"),
        (["--target", "GPTQ", "--bits", "4", "--head", "8"], "a GPTQ file keeps the head float"),
        (["--bits", "4", "--embedding", "9"], "embedding: no format has this many bits"),
        (["--bits", "4", "--embedding", "q9"], "embedding: neither a GGUF type"),
        (["--bits", "3", "--codes", "nf4"], "no format has this many bits of nf4"),
        (["--bits", "4", "--codes", "nf4", "--zero", "minimum"], "no format has this zero kind"),
        (["--target", "gguf:q3_k", "--codes", "lut"], "the target already says what codes"),
        (
            ["--bits", "3", "--codes", "super", "--group-size", "64"],
            "group_size: groups of super3 have",
        ),
        (["--bits", "3", "--codes", "mxfp4"], "no format has this many bits of mxfp4"),
        (["--bits", "4", "--codes", "mxfp4", "--group-size", "64"], "groups of mxfp4 have one"),
        (["--bits", "5", "--codes", "super"], "no format has this many bits of super"),
        (["--bits", "4", "--tensor", "q_proj"], "--tensor: not a pattern and a format"),
        (["--bits", "4", "--tensor", "xx_proj=q4_0"], "xx_proj: no matrix has such a name"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_contradictions_are_refused_in_one_line(
    options: list[str], said: str, wide: Path, tmp_path: Path, capsys: Capsys
) -> None:
    line = ["quantize", str(wide), "--out", str(tmp_path / "out"), *options]
    assert said in refusal(capsys, 2, *line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "bits", "expected"),
    [
        ("gguf:q3_k", None, "name-q3_k"),
        ("gguf:Q3_K", None, "name-q3_k"),
        ("gptq", 4, "name-gptq-int4-g32-fixed"),
        (None, 4, "name-int4-g32-fixed"),
    ],
)
def test_the_default_output_is_named_after_the_target(
    target: str | None, bits: int | None, expected: str
) -> None:
    assert default_out("org/name@main", bits, "32", ZeroKind.FIXED, target) == Path(expected)


def test_the_default_output_of_super_blocks_names_their_groups() -> None:
    assert default_out("org/name", 3, codes="super") == Path("name-super3-g32-fixed")


def test_the_default_output_of_a_gguf_file_does_not_look_like_one() -> None:
    found = default_out("models/name-f16.gguf", None, "128", ZeroKind.FIXED, "gguf:q4_k")
    assert found == Path("name-f16-q4_k")


def test_a_target_is_the_same_in_any_case(wide: Path, tmp_path: Path, capsys: Capsys) -> None:
    line = quantize_line(wide, tmp_path / "out", bits=4, method="round", embedding=None)
    succeed(capsys, *line, "--target", "GPTQ")  # takes a group size as gptq does
    assert "already quantized" in succeed(capsys, *line, "--target", "gptq")


def test_the_last_equals_sign_divides_pattern_and_format() -> None:
    assert parse_tensor("a=b=q4_0") == ("a=b", "q4_0")
    for word in ("q4_0", "=q4_0", "a="):
        with pytest.raises(UsageError, match="not a pattern and a format"):
            parse_tensor(word)


def test_a_stage_takes_bits_or_a_name() -> None:
    words = (None, "6", "q6_k", "row", "-1", "06.5")
    assert [bits_or_name(word) for word in words] == [None, 6, "q6_k", "row", -1, "06.5"]
