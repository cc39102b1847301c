"""The kernels' check where this machine is not: NEON and AMX emulated, by clang.

In: cross compiler and qemu-aarch64, clang 16 or later; a test skips with its reason where they are
missing. Out: no mismatch, and nothing that a compiler warns of.
"""

import platform
import re
import shutil
import subprocess

import pytest
from native_program import (
    CHECK,
    DEFINITION,
    NATIVE,
    SETS,
    Builder,
    run_check,
    set_flags,
    shared_symbols,
)

from crumb.kernels import dispatch

pytestmark = pytest.mark.oracle

CROSS, EMULATOR, NM = "aarch64-linux-gnu-g++", "qemu-aarch64", "aarch64-linux-gnu-nm"
PROCESSORS = {
    "max": ["baseline", "neon-dotprod", "neon-i8mm"],
    "neoverse-n1": ["baseline", "neon-dotprod"],
    "cortex-a53": ["baseline"],
}
"""Processors that qemu emulates, and the sets that each runs."""

TABLES = {
    "baseline": "crumb::kBaselineKernels",
    "neon-dotprod": "crumb::kNeonDotprodKernels",
    "neon-i8mm": "crumb::kNeonI8mmKernels",
}


def need(*programs):
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def arm_program(request):
    need(CROSS, EMULATOR)
    folder = request.config.cache.mkdir("kernels-check-aarch64")
    builder = Builder(CROSS, folder, ["-O2", "-static"])
    return builder.check_program("aarch64", list(SETS["aarch64"]))


THINNED = ["every=20", "matmul", "floats", "attention", "rows"]
"""An emulator takes 30 times as long."""


@pytest.mark.parametrize("processor", PROCESSORS)
def test_neon_agrees_with_plain_references(processor, arm_program):
    run_check([EMULATOR, "-cpu", processor, arm_program, *THINNED], PROCESSORS[processor])


def test_neon_gives_the_bits_of_avx2(request, arm_program):
    if platform.machine() != "x86_64" or "avx2" not in dispatch.supported_sets():
        pytest.skip("needs a processor with avx2")
    folder = request.config.cache.mkdir("kernels-check")
    builder = Builder(shutil.which("c++"), folder, ["-O2"])
    program = builder.check_program("x86_64", list(SETS["x86_64"]), ready=True)
    here = run_check([program, *THINNED], dispatch.supported_sets())
    there = run_check([EMULATOR, "-cpu", "max", arm_program, *THINNED], PROCESSORS["max"])
    assert there == here


def test_the_pool_and_the_engine_agree_on_aarch64(arm_program):
    run_check([EMULATOR, "-cpu", "max", arm_program, "pool", "engine"], PROCESSORS["max"])


@pytest.mark.parametrize("isa", TABLES)
def test_a_neon_set_shares_no_symbol_with_another(isa, tmp_path):
    need(CROSS, NM)
    source = SETS["aarch64"][isa]
    assert shared_symbols(source, "aarch64", CROSS, NM, tmp_path / "set.o") == [TABLES[isa]]


@pytest.fixture(scope="module")
def emulated_amx_program(request):
    compiler = shutil.which("c++")
    if compiler is None or "avx512" not in dispatch.supported_sets():
        pytest.skip("needs a C++ compiler and avx512")
    builder = Builder(compiler, request.config.cache.mkdir("kernels-check-amx"), ["-O2"])
    emulated = ["-DCRUMB_EMULATES_AMX", f"-I{CHECK}"]
    flags = dict.fromkeys(["isa_amx.cpp", "dispatch.cpp"], emulated)
    return builder.check_program("x86_64", list(SETS["x86_64"]), ready=True, more_flags=flags)


@pytest.mark.parametrize("part", ["matmul", "engine"])
def test_emulated_amx_agrees_with_plain_references(part, emulated_amx_program):
    run_check([emulated_amx_program, "every=4", part], list(SETS["x86_64"]))


CLANG_VERSIONS = range(30, 15, -1)


def clang():
    """A clang of the oldest version that is promised, or later; skips where there is none."""
    for name in ["clang++", *(f"clang++-{version}" for version in CLANG_VERSIONS)]:
        path = shutil.which(name)
        if path is None:
            continue
        version = subprocess.run([path, "--version"], check=True, capture_output=True, text=True)
        number = re.search(r"clang version (\d+)", version.stdout)
        if number and int(number[1]) in CLANG_VERSIONS:
            return path
    return pytest.skip("needs clang 16 or later")


@pytest.fixture(scope="module")
def clang_program(request):
    compiler, machine = clang(), platform.machine()
    if machine not in SETS:
        pytest.skip("needs x86-64 or aarch64")
    builder = Builder(compiler, request.config.cache.mkdir("kernels-check-clang"), ["-O2"])
    return builder.check_program(machine, list(SETS[machine]))


@pytest.mark.parametrize("part", ["matmul", "floats", "rows", "attention", "pool", "engine"])
def test_kernels_built_by_clang_agree_with_plain_references(part, clang_program):
    run_check([clang_program, "every=4", part], dispatch.supported_sets())


def test_kernels_built_by_clang_give_the_bits_of_those_built_by_gcc(request, clang_program):
    gcc = shutil.which("g++")
    if gcc is None or gcc == clang():
        pytest.skip("needs g++ beside clang")
    builder = Builder(gcc, request.config.cache.mkdir("kernels-check"), ["-O2"])
    other = builder.check_program(platform.machine(), list(SETS[platform.machine()]), ready=True)
    digests = [
        run_check([program, *THINNED], dispatch.supported_sets())
        for program in (clang_program, other)
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("library", ["libstdc++", "libc++"])
@pytest.mark.parametrize("name", ["dispatch", "engine", "limits", "pool", "tile_pack"])
def test_sources_beside_the_kernels_compile_with_either_library(name, library):
    """libc++ is what a Mac has."""
    compiler, machine = clang(), platform.machine()
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", f"-stdlib={library}"]
    trial = subprocess.run(
        [compiler, *flags, "-fsyntax-only", "-x", "c++", "-"],
        input=b"#include <atomic>",
        capture_output=True,
    )
    if trial.returncode or machine not in SETS:
        pytest.skip(f"clang has no {library} here")
    define = f"-D{DEFINITION[machine]}"
    command = [compiler, *flags, define, "-fsyntax-only", NATIVE / f"{name}.cpp"]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("isa", SETS["aarch64"])
def test_clang_compiles_the_neon_sets(isa):
    compiler = clang()
    target = ["--target=aarch64-linux-gnu", "-std=c++20", "-Wall", "-Wextra", "-Werror"]
    trial = subprocess.run(
        [compiler, *target, "-fsyntax-only", "-x", "c++", "-"],
        input=b"#include <cstdint>\n#include <new>",
        capture_output=True,
    )
    if trial.returncode:
        pytest.skip("clang has no headers of aarch64 here")
    source = SETS["aarch64"][isa]
    flags = [*target, f"-D{DEFINITION['aarch64']}", *set_flags(source)]
    subprocess.run([compiler, *flags, "-fsyntax-only", NATIVE / source], check=True)
