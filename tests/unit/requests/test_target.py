"""Targets: which formats a GGUF or GPTQ file holds unchanged, and what takes a format's place.

In: names, widths. Out: formats, reasons, refusals. Widths are the smallest that tell cases apart.
"""

from __future__ import annotations

import pytest

from crumb.errors import UsageError
from crumb.formats.catalog import ZeroKind, make_format, parse_format
from crumb.formats.layouts.gguf_conversion import NARROW, TYPE_OF_BITS, exact_type
from crumb.requests.target import (
    TYPES,
    Asked,
    format_named,
    parse_target,
)

NOTHING_ASKED = Asked(None, 128, ZeroKind.FIXED)


def test_every_type_with_a_solver_is_a_target() -> None:
    wanted = "q2_k q3_k q4_k q5_k q6_k q4_0 q4_1 q5_0 q5_1 q8_0 q2_0 iq4_nl iq4_xs mxfp4"
    assert set(TYPES) == set(wanted.split())
    for name, format in TYPES.items():
        target = parse_target(f"gguf:{name}")
        assert target.format_of("blocks", NOTHING_ASKED) == format
        assert target.fit(format, (7, 512)) == (format, None)
        assert exact_type(format, 512) == name.upper()


def test_the_names_of_types_may_be_large() -> None:
    assert parse_target("gguf:Q3_K").format_of("blocks", NOTHING_ASKED) == TYPES["q3_k"]
    assert format_named("Q3_K") == TYPES["q3_k"]


@pytest.mark.parametrize(
    "name", ["gguf", "gguf:", "gguf:nvfp4", "gguf:f16", "gptq:4", "awq", "", "gguf:q3_k:x"]
)
def test_other_targets_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="target: not a target"):
        parse_target(name)


@pytest.mark.parametrize("name", [name for name in TYPES if name.upper() in NARROW])
def test_a_width_in_no_whole_blocks_gets_a_type_with_smaller_ones(name: str) -> None:
    stand_in = NARROW[name.upper()].lower()
    format, reason = parse_target("gguf:q3_k").fit(TYPES[name], (64, 288))
    assert format == TYPES[stand_in]
    assert reason == f"{stand_in}: 288 inputs are not in whole blocks of {name}"


@pytest.mark.parametrize(("name", "width"), [("q3_k", 100), ("q4_0", 100), ("q2_0", 100)])
def test_a_width_that_no_type_holds_leaves_the_matrix_float(name: str, width: int) -> None:
    format, reason = parse_target(f"gguf:{name}").fit(TYPES[name], (64, width))
    assert format is None
    assert reason == f"left float: {width} inputs are not in whole blocks of {name}"


@pytest.mark.parametrize(("bits", "name"), TYPE_OF_BITS.items())
def test_bits_of_embedding_and_head_are_types_in_a_gguf_file(bits: int, name: str) -> None:
    target = parse_target("gguf:q4_0")
    for stage in ("embedding", "head"):
        assert target.format_of(stage, Asked(bits, 32, ZeroKind.MINIMUM)) == TYPES[name.lower()]


def test_bits_that_no_type_has_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no GGUF type for this many bits.*found 7"):
        parse_target("gguf:q4_0").format_of("head", Asked(7, 32, ZeroKind.FIXED))


def test_bits_may_repeat_the_target_but_not_contradict_it() -> None:
    target = parse_target("gguf:q3_k")
    assert target.format_of("blocks", Asked(3, 128, ZeroKind.FIXED)) == TYPES["q3_k"]
    with pytest.raises(UsageError, match=r"contradict.*expected 3.*found 4"):
        target.format_of("blocks", Asked(4, 128, ZeroKind.FIXED))


@pytest.mark.parametrize("name", ["int3-g32-fixed", "int4-g32-variable", "int6-row-minimum"])
def test_a_format_without_a_type_is_no_part_of_a_gguf_file(name: str) -> None:
    with pytest.raises(UsageError, match=f"blocks: no GGUF type holds.*{name}"):
        parse_target("gguf:q4_0").check("blocks", parse_format(name))


def test_wider_groups_than_the_types_are_part_of_a_gguf_file() -> None:
    target, format = parse_target("gguf:q4_0"), parse_format("int4-g128-fixed")
    target.check("blocks", format)
    assert target.fit(format, (64, 256)) == (format, None)
    assert target.fit(format, (64, 250))[0] is None


def test_gptq_takes_bits_groups_and_zeros_as_asked() -> None:
    target = parse_target("gptq")
    assert target.lowest_zero_point == 1
    for bits in (2, 3, 4, 8):
        for zero in (ZeroKind.FIXED, ZeroKind.VARIABLE):
            found = target.format_of("blocks", Asked(bits, 64, zero))
            assert found == make_format(bits, 64, zero)
    for stage in ("embedding", "head"):
        assert target.format_of(stage, Asked(8, 64, ZeroKind.FIXED)) is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(5, 32, ZeroKind.FIXED), "cannot hold this format"),
        (Asked(6, 32, ZeroKind.FIXED), "cannot hold this format"),
        (Asked(4, 32, ZeroKind.MINIMUM), "cannot hold this format"),
        (Asked(None, 32, ZeroKind.FIXED), "nothing says how many bits"),
        (Asked(7, 32, ZeroKind.FIXED), "no format has this many bits"),
    ],
)
def test_what_gptq_cannot_hold_is_refused(asked: Asked, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_target("gptq").format_of("blocks", asked)


@pytest.mark.parametrize("name", ["q3_k", "q6_k"])
def test_gptq_has_no_super_blocks(name: str) -> None:
    with pytest.raises(UsageError, match="cannot hold this format"):
        parse_target("gptq").check("blocks", TYPES[name])


@pytest.mark.parametrize("shape", [(33, 64), (64, 33)])
def test_gptq_packs_whole_words_both_ways(shape: tuple[int, int]) -> None:
    format, reason = parse_target("gptq").fit(make_format(4, 32, ZeroKind.FIXED), shape)
    assert format is None
    assert reason == f"left float: {shape[0]} x {shape[1]} is not in words of 32"


@pytest.mark.parametrize("name", ["float", "f16", "F32", "bf16"])
def test_a_float_is_no_format(name: str) -> None:
    assert format_named(name) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("q9_k", "neither a GGUF type nor a format's name"),
        ("4", "neither a GGUF type nor a format's name"),
        ("int4-g48-fixed", "neither a GGUF type nor a format's name"),
        ("mxfp4-g64-fixed", "neither a GGUF type nor a format's name"),
    ],
)
def test_other_names_are_refused(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        format_named(name)
