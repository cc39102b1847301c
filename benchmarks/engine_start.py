"""How soon a loaded model answers, what memory it takes, and what a token costs beside the kernels.

In: models (directories or GGUF files). Out: JSON with the machine, a Markdown table: seconds to
load and to the first token of a short prompt, peak of the process over file and planned cache, and
microseconds a greedy token spends outside the native step, text included.
Each model is measured in a process of its own, its file read once before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from alone import measure_alone
from machine import describe_machine
from report import RESULTS, print_table, write_record

PROMPT = "Once upon a time"
CONTEXT_TOKENS = 1024
LONG_PROMPT_TOKENS = 900
DECODED_TOKENS = 200


class TimedStep:
    """A native engine whose steps are timed."""

    def __init__(self, native: Any) -> None:
        self.native, self.seconds = native, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.native, name)

    def step(self, *given: Any) -> None:
        begin = time.perf_counter()
        self.native.step(*given)
        self.seconds += time.perf_counter() - begin


def token_overhead(model: Any, rounds: int) -> float:
    """Median seconds of a greedy token outside the native step."""
    from dataclasses import replace

    engine = model.engine
    timed = TimedStep(engine._program.native)
    engine._program = replace(engine._program, native=timed)
    outside = []
    for _ in range(rounds):
        timed.seconds = 0.0
        begin = time.perf_counter()
        model.generate(PROMPT, max_tokens=DECODED_TOKENS, ignore_end=True)
        outside.append((time.perf_counter() - begin - timed.seconds) / DECODED_TOKENS)
    return statistics.median(outside)


def measure(path: str, threads: int | None, rounds: int) -> dict[str, Any]:
    """One model in this process."""
    from crumb.machine.memory import peak_memory_bytes
    from crumb.run.load import load

    before = peak_memory_bytes()
    begin = time.perf_counter()
    model = load(path, context_tokens=CONTEXT_TOKENS, threads=threads)
    loaded = time.perf_counter()
    next(iter(model.stream(PROMPT, max_tokens=1, ignore_end=True)))
    first = time.perf_counter()
    model.generate([5] * LONG_PROMPT_TOKENS, max_tokens=8, ignore_end=True)
    memory = model.memory
    over = peak_memory_bytes() - memory.weights_bytes - memory.cache_bytes
    return {
        "model": Path(path).name,
        "weights_bytes": memory.weights_bytes,
        "load_seconds": loaded - begin,
        "first_token_seconds": first - begin,
        "process_bytes_before": before,
        "bytes_over_weights_and_cache": over,
        "overhead_seconds": token_overhead(model, rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / "engine_start.json")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure(arguments.models[0], arguments.threads, arguments.rounds)))
        return
    rows = []
    for model in arguments.models:
        words = [model, "--rounds", arguments.rounds]
        words += [] if arguments.threads is None else ["--threads", arguments.threads]
        measure_alone(__file__, *words)  # reads the file
        rows.append(measure_alone(__file__, *words))
    write_record(arguments.out, {"machine": describe_machine(), "rows": rows})
    print_table(
        ["model", "weights, MB", "load, s", "first token after, s", "over, MiB", "outside, us"],
        [
            [
                row["model"],
                f"{row['weights_bytes'] / 1e6:.0f}",
                f"{row['load_seconds']:.3f}",
                f"{row['first_token_seconds']:.3f}",
                f"{row['bytes_over_weights_and_cache'] / 2**20:.0f}",
                f"{1e6 * row['overhead_seconds']:.0f}",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
