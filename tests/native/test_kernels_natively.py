"""Every kernel of every instruction set that this machine runs, against plain references in C++.

The references are in check/: integers exact, floats within derived bounds, each token's bits the
same in any batch. The program is compiled here, with the package's own objects where current:
that takes half a minute of a processor, so it is `make oracle` that runs it.
"""

import platform
import shutil

import pytest
from native_program import SETS, Builder, run_check

from crumb.kernels import dispatch

pytestmark = pytest.mark.oracle

COMPILER = shutil.which("c++")


@pytest.fixture(scope="module")
def program(request):
    machine = platform.machine()
    if COMPILER is None or machine not in SETS:
        pytest.skip("needs a C++ compiler on x86-64 or aarch64")
    folder = request.config.cache.mkdir("kernels-check")
    builder = Builder(COMPILER, folder, ["-O2"])
    return builder.check_program(machine, list(SETS[machine]), ready=True)


@pytest.mark.parametrize("part", ["matmul", "floats", "rows", "attention", "pool", "engine"])
def test_every_set_agrees_with_plain_references(part, program):
    run_check([program, part], dispatch.supported_sets())


def test_an_unknown_part_is_refused(program):
    with pytest.raises(AssertionError, match="no such part: everything"):
        run_check([program, "everything"], [])
