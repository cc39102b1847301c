"""Which instruction set runs, how rows are shared out, and that the sets share no symbol."""

import platform
import shutil

import pytest
from exhaustive import exhaustive
from native_program import SETS, set_flags, shared_flags, shared_symbols

from crumb.errors import UsageError
from crumb.kernels import dispatch
from crumb.kernels import threads as threads_module

TABLES = {
    "baseline": "crumb::kBaselineKernels",
    "avx2": "crumb::kAvx2Kernels",
    "avx512": "crumb::kAvx512Kernels",
    "amx": "crumb::kAmxKernels",
}


def test_the_baseline_is_always_there_and_comes_first():
    assert dispatch.supported_sets()[0] == "baseline"


@pytest.mark.parametrize("isa", dispatch.supported_sets())
def test_crumb_isa_selects_a_supported_set(isa, monkeypatch):
    monkeypatch.setenv("CRUMB_ISA", isa)
    assert dispatch.selected_set() == isa


@pytest.mark.parametrize("given", [None, ""])
def test_without_crumb_isa_the_fastest_set_is_selected(given, monkeypatch):
    monkeypatch.delenv("CRUMB_ISA", raising=False)
    if given is not None:
        monkeypatch.setenv("CRUMB_ISA", given)
    assert dispatch.selected_set() == dispatch.supported_sets()[-1]


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx2 ", "neon, avx2"])
def test_an_unknown_crumb_isa_is_a_usage_error_naming_the_choices(name, monkeypatch):
    monkeypatch.setenv("CRUMB_ISA", name)
    with pytest.raises(UsageError, match=r"^CRUMB_ISA: .*one of baseline.*found") as caught:
        dispatch.selected_set()
    assert caught.value.found == name


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 33, 100, 4096])
def test_slices_cover_all_rows_once_and_split_between_lane_sets(rows, threads, monkeypatch):
    monkeypatch.setattr(threads_module, "processors", lambda: threads)
    parts = []
    threads_module.over_rows(rows, parts.append)
    parts.sort(key=lambda part: part.start)
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
    assert len(parts) <= threads
    assert all(part.start % threads_module.ROWS_PER_LANE_SET == 0 for part in parts)


def test_an_error_in_a_worker_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(threads_module, "processors", lambda: 2)

    def work(part):
        if part.start:
            raise OverflowError(f"rows from {part.start}")

    with pytest.raises(OverflowError, match="rows from 16"):
        threads_module.over_rows(32, work)


def test_flags_of_a_set_are_those_that_cmake_gives_it():
    assert set_flags("isa_baseline.cpp") == []
    assert set_flags("isa_avx2.cpp") == ["-mavx2", "-mfma", "-mf16c"]
    assert set(set_flags("isa_amx.cpp")) - set(set_flags("isa_avx512.cpp")) == {
        "-mamx-tile",
        "-mamx-int8",
    }
    assert "-ffp-contract=off" in shared_flags()


@pytest.mark.parametrize("isa", exhaustive(*SETS["x86_64"]))
def test_a_set_shares_no_symbol_with_another(isa, tmp_path):
    compiler, nm = shutil.which("c++"), shutil.which("nm")
    if not (compiler and nm and platform.machine() == "x86_64"):
        pytest.skip("needs a C++ compiler and nm on x86-64")
    source = SETS["x86_64"][isa]
    shared = shared_symbols(source, "x86_64", compiler, nm, tmp_path / "set.o")
    assert shared == [TABLES[isa]]
