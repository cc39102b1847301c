"""What the machine could do at best right now, for the benchmarks: bytes read per second.

In: threads. Out: bytes per second of the fastest of a few passes over an array larger than the
caches, by `crumb.kernels.limits`. The memory of a shared machine drifts within minutes, so a pass
belongs into the same burst as the work it is compared with. The array stays allocated.
"""

from __future__ import annotations

from functools import cache

from crumb.kernels.dispatch import supported_sets
from crumb.kernels.limits import (
    LEAST_ARRAY_BYTES,
    dot_peak,
    float_peak,
    read_pass,
    reading_array,
)

PASSES = 3


def read_bandwidth(
    threads: int, array_bytes: int = LEAST_ARRAY_BYTES, passes: int = PASSES
) -> float:
    """Bytes per second that `threads` threads read together; about a quarter of a second."""
    array = _array(array_bytes)
    return array.nbytes / min(read_pass(array, threads) for _ in range(passes))


_array = cache(reading_array)


def main() -> None:
    for threads in (1, 2):
        print(f"read, {threads} threads: {read_bandwidth(threads) / 1e9:.1f} GB/s")
        for isa in supported_sets():
            for numbers, peak in ("int8", dot_peak), ("f32", float_peak):
                rate = peak(threads, isa=isa) / 1e9
                print(f"{numbers}, {threads} threads, {isa}: {rate:.0f} G multiply-adds/s")


if __name__ == "__main__":
    main()
