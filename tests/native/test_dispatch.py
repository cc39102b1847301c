"""Which instruction set runs, how rows are shared out, and that the sets share no symbol."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from crumb.errors import UsageError
from crumb.kernels import dispatch
from crumb.kernels import threads as threads_module

NATIVE = Path(__file__).parents[2] / "native"
TABLES = {
    "isa_baseline.cpp": "crumb::kBaselineKernels",
    "isa_avx2.cpp": "crumb::kAvx2Kernels",
    "isa_avx512.cpp": "crumb::kAvx512Kernels",
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


def compile_flags(source):
    """The instruction-set flags that CMakeLists.txt gives this file."""
    lists = (NATIVE.parent / "CMakeLists.txt").read_text()
    found = re.search(source + r'\s+PROPERTIES COMPILE_OPTIONS\s+"([^"]*)"', lists)
    return found[1].split(";") if found else []


@pytest.mark.parametrize("source", TABLES)
def test_a_set_shares_no_symbol_with_another(source, tmp_path):
    compiler, nm = shutil.which("c++"), shutil.which("nm")
    if not (compiler and nm and platform.machine() == "x86_64"):
        pytest.skip("needs a C++ compiler and nm on x86-64")
    item = tmp_path / "set.o"
    # Unoptimised, so that nothing shared can hide by being inlined; -w: GCC warns that the
    # calling convention of wide vectors depends on the set, which is what we test.
    flags = ["-std=c++20", "-O0", "-w", "-DCRUMB_X86=1", *compile_flags(source)]
    subprocess.run([compiler, *flags, "-c", NATIVE / source, "-o", item], check=True)
    listing = subprocess.run(
        [nm, "--demangle", "--defined-only", item], check=True, capture_output=True, text=True
    )
    symbols = [line.split(maxsplit=2)[1:] for line in listing.stdout.splitlines()]
    # Lower case is local to the object; u, v and w are the exceptions, shared or weak.
    shared = [name for kind, name in symbols if kind.isupper() or kind in "uvw"]
    assert shared == [TABLES[source]]
    assert any("(anonymous namespace)::sweep" in name for _, name in symbols)
