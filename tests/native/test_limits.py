"""The machine's limits: sane figures from every instruction set, and refusals.

In: a small array, a few milliseconds. Out: seconds and multiply-adds per second.
"""

import mmap
import resource

import numpy as np
import pytest

from crumb import _native
from crumb.kernels.dispatch import supported_sets
from crumb.kernels.limits import PAGE_BYTES, dot_peak, float_peak, read_pass, reading_array


def test_the_array_is_whole_pages_at_the_begin_of_a_page():
    array = reading_array(10 * PAGE_BYTES + 1)
    assert array.nbytes == 10 * PAGE_BYTES
    assert array.ctypes.data % PAGE_BYTES == 0
    assert (array == 1).all()


@pytest.mark.skipif(not hasattr(mmap, "MADV_NOHUGEPAGE"), reason="pages here may be of any size")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("isa", supported_sets())
def test_a_pass_reads_every_page_of_the_array(isa, threads):
    """Each page of fresh memory that is read for the first time is one fault."""
    pages = 2000
    memory = mmap.mmap(-1, pages * mmap.PAGESIZE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert _native.read_pass(isa, array, threads) > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before >= pages


def test_the_python_face_reads_with_the_widest_loads():
    array = reading_array(1 << 22)
    # Nothing reads a terabyte per second from memory, nor less than a megabyte.
    assert 1e6 < array.nbytes / min(read_pass(array, 1) for _ in range(5)) < 1e13


@pytest.mark.parametrize("isa", supported_sets())
def test_every_set_multiplies_at_some_speed(isa):
    # A core does 4096 multiply-adds a cycle at most, at less than 10 GHz.
    assert 1e6 < dot_peak(1, 0.002, isa) < 4096 * 1e10
    assert 1e6 < float_peak(1, 0.002, isa) < 64 * 1e10


@pytest.mark.parametrize(
    "arguments",
    [
        ("sse9", reading_array(4096), 1),
        ("baseline", reading_array(4096), 0),
        ("baseline", reading_array(4096), -1),
        ("baseline", reading_array(4096)[:-1], 1),
        ("baseline", reading_array(8192)[1:4097], 1),
        ("baseline", reading_array(4096)[:0], 1),
    ],
)
def test_a_pass_that_cannot_be_is_a_value_error(arguments):
    with pytest.raises(ValueError, match=r"must be|not supported here"):
        _native.read_pass(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("sse9", 1, 0.001),
        ("baseline", 0, 0.001),
        ("baseline", 1, -1.0),
        ("baseline", 1, float("nan")),
        ("baseline", 1, 1e9),
    ],
)
def test_a_peak_that_cannot_be_is_a_value_error(arguments):
    for peak in _native.dot_peak, _native.float_peak:
        with pytest.raises(ValueError, match=r"must be|not supported here"):
            peak(*arguments)


def test_another_dtype_is_a_type_error():
    with pytest.raises(TypeError):
        _native.read_pass("baseline", np.zeros(4096, np.int8), 1)
