"""How near products of float matrices come to the machine's f32 multiply-adds, beside NumPy's BLAS.

In: instruction sets, threads, tokens. Out: JSON with the machine, a Markdown table: multiply-adds
per second of ours and of the BLAS, as shares of what registers alone do, all three measured in turn
in one process. One thread is timed by its processor seconds, so that other programs count little.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alone import measure_alone
from machine import describe_machine
from report import RESULTS, print_table, write_record

SHAPES = {
    "135M attention": (576, 576),
    "135M feed-forward, up": (1536, 576),
    "135M feed-forward, down": (576, 1536),
    "1.1B attention": (2048, 2048),
    "1.1B feed-forward, up": (5632, 2048),
    "1.1B feed-forward, down": (2048, 5632),
    "7B attention": (4096, 4096),
}
"""Rows and inputs of matrices of models of so many parameters."""


def measure(threads: int, tokens: int, rounds: int) -> dict[str, Any]:
    """All shapes by the instruction set of this process."""
    import numpy as np

    from crumb.kernels.dispatch import selected_set
    from crumb.kernels.limits import float_peak
    from crumb.kernels.products import multiply

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    clock = time.process_time if threads == 1 else time.perf_counter
    random = np.random.default_rng(0)
    peak, rows = 0.0, []

    def seconds(work: Callable[[], object]) -> float:
        begin = clock()
        work()
        return clock() - begin

    for name, (outputs, inputs) in SHAPES.items():
        x = random.standard_normal((tokens, inputs), np.float32)
        weight = random.standard_normal((outputs, inputs), np.float32)
        ours, blas = [], []
        for _ in range(rounds):
            peak = max(peak, *(float_peak(threads, 0.0) for _ in range(20)))
            ours.append(seconds(lambda x=x, weight=weight: multiply(x, weight.T)))
            blas.append(seconds(lambda x=x, weight=weight: x @ weight.T))
        products = outputs * inputs * tokens
        rows.append({"matrix": name, "ours": products / min(ours), "blas": products / min(blas)})
    return {"instruction_set": selected_set(), "tokens": tokens, "peak": peak, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["avx2", "avx512"], help="of CRUMB_ISA")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "float_products.json")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        print(json.dumps(measure(asked.threads, asked.tokens[0], asked.rounds)))
        return
    blas = {f"{name}_NUM_THREADS": str(asked.threads) for name in ("OPENBLAS", "MKL", "OMP")}
    measured = []
    for isa in asked.sets:
        for tokens in asked.tokens:
            words = ["--threads", asked.threads, "--tokens", tokens, "--rounds", asked.rounds]
            measured.append(measure_alone(__file__, *words, CRUMB_ISA=isa, **blas))
    record = {"machine": describe_machine(), "threads": asked.threads, "measured": measured}
    write_record(asked.out, record)
    columns = [f"{each['instruction_set']}, {each['tokens']}" for each in measured]
    print_table(
        ["matrix", *columns],
        [
            [
                name,
                *(
                    f"{row['ours'] / each['peak']:.0%} ({row['ours'] / row['blas']:.2f}x)"
                    for each in measured
                    for row in each["rows"]
                    if row["matrix"] == name
                ),
            ]
            for name in SHAPES
        ],
    )


if __name__ == "__main__":
    main()
