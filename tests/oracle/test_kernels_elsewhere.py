"""The kernels' check where this machine is not: NEON under an emulator, and under sanitizers.

In: cross compiler and qemu-aarch64, or the machine's compiler with its sanitizers; a test skips
with its reason where they are missing. Out: no mismatch, and nothing that a sanitizer reports.
"""

import platform
import shutil
import subprocess

import pytest
from native_program import SETS, Builder, run_check, shared_symbols

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

SANITIZED = ["-O1", "-g1", "-fno-sanitize-recover=all"]


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


def sanitized_program(request, kind, sets):
    """The check built with a sanitizer; skips where the compiler has none."""
    compiler = shutil.which("c++")
    if compiler is None or platform.machine() not in SETS:
        pytest.skip("needs a C++ compiler on x86-64 or aarch64")
    folder = request.config.cache.mkdir(f"kernels-check-{kind.replace(',', '-')}")
    trial = [compiler, f"-fsanitize={kind}", "-x", "c++", "-", "-o", folder / "trial"]
    if subprocess.run(trial, input=b"int main() {}", capture_output=True).returncode:
        pytest.skip(f"the compiler has no {kind} sanitizer")
    builder = Builder(compiler, folder, [*SANITIZED, f"-fsanitize={kind}"])
    return builder.check_program(platform.machine(), sets)


def test_no_kernel_reads_or_writes_outside_its_memory_or_has_undefined_behaviour(request):
    program = sanitized_program(request, "address,undefined", list(SETS[platform.machine()]))
    parts = ["matmul", "floats", "rows", "attention", "engine"]
    run_check([program, "every=10", *parts], dispatch.supported_sets())


def test_threads_of_the_pool_and_the_engine_do_not_race(request):
    program = sanitized_program(request, "thread", ["baseline"])
    run_check([program, "pool", "engine"], ["baseline"])
