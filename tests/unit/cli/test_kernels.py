"""`crumb kernels`: its tables agree with the native sources and with what the dispatch chooses.

In: this machine's sets, a made-up processor. Out: rows, reasons and missing features.
"""

from __future__ import annotations

import json

import pytest
from command_line import crumb, succeed

from crumb import _native
from crumb.formats.catalog import CATALOG
from crumb.kernels import kernel_table
from crumb.kernels.dispatch import selected_set, supported_sets

Capsys = pytest.CaptureFixture[str]
COMPILED = [name for name, _, _ in _native.compiled_sets()]


def test_the_chosen_set_is_marked_and_all_compiled_sets_are_there(capsys: Capsys) -> None:
    record = json.loads(succeed(capsys, "kernels", "--json"))
    sets = record["instruction_sets"]
    assert [each["name"] for each in sets] == [name for name, _, _ in _native.compiled_sets()]
    assert [each["name"] for each in sets if each["chosen"]] == [selected_set()]
    assert [each["name"] for each in sets if each["runs"]] == supported_sets()
    text = succeed(capsys, "kernels")
    for each in sets:
        assert each["why"] in text
    assert all(code in text for code in CATALOG)


def test_crumb_isa_is_given_as_the_reason(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUMB_ISA", "baseline")
    record = json.loads(succeed(capsys, "kernels", "--json"))
    assert record["chosen"] == "baseline"
    assert record["instruction_sets"][0]["why"] == "CRUMB_ISA asks for it"
    monkeypatch.setenv("CRUMB_ISA", "sse9")
    assert crumb(capsys, "kernels").code == 2


def test_a_set_that_does_not_run_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """amx stands on avx512, whose missing features are its own too."""
    monkeypatch.setattr(
        kernel_table._native,
        "compiled_sets",
        lambda: [
            ("baseline", True, "nothing"),
            ("avx2", True, "avx2 fma f16c"),
            ("avx512", False, "avx512f avx512_vnni"),
            ("amx", False, "those of avx512, amx_int8 and leave to use them"),
        ],
    )
    has = frozenset({"avx2", "fma", "f16c", "avx512f", "amx_int8"})
    monkeypatch.setattr(kernel_table, "processor_features", lambda: has)
    monkeypatch.setattr(kernel_table, "selected_set", lambda: "avx2")
    rows = {row.name: row for row in kernel_table.instruction_sets()}
    assert rows["avx2"].missing == ()
    assert rows["avx512"].missing == ("avx512_vnni",)
    assert rows["amx"].missing == ("avx512_vnni",)
    assert rows["amx"].why == "the processor lacks avx512_vnni"
    monkeypatch.setattr(kernel_table, "processor_features", lambda: has | {"avx512_vnni"})
    rows = {row.name: row for row in kernel_table.instruction_sets()}
    assert rows["amx"].why == "the system gives no leave to use it"


@pytest.mark.parametrize("isa", COMPILED)
def test_every_format_of_the_catalog_has_one_kernel(isa: str) -> None:
    pairs = [(row.format, zero) for row in kernel_table.kernels_of(isa) for zero in row.zeros]
    expected = [(code.name, zero.value) for code in CATALOG.values() for zero in code.zeros]
    assert sorted(pairs) == sorted(expected)


@pytest.mark.skipif("amx" not in COMPILED, reason="AMX is x86-64's")
def test_super_blocks_of_few_bits_are_unsigned_bytes_on_amx() -> None:
    """scaled_codes in native/super_strip.inl is what decides."""
    more = {row.format: (row.few_tokens, row.more) for row in kernel_table.kernels_of("amx")}
    assert more["q4_k"] == more["q6_k"] == (11, "tdpbssd")
    assert more["q2_k"] == more["q3_k"] == (11, "tdpbsud")
