"""The kernels' check under sanitizers: memory, undefined behaviour, races of threads.

In: the machine's compiler; a test skips where it has no sanitizer. Out: no mismatch and no report.
In a file of its own, for it takes as long as all other checks of kernels.
"""

import platform
import shutil
import subprocess

import pytest
from native_program import SETS, Builder, run_check

from crumb.kernels import dispatch

pytestmark = pytest.mark.oracle

SANITIZED = ["-O1", "-g1", "-fno-sanitize-recover=all"]


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
