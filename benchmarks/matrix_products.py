"""How near the matrix products of a prompt come to the machine's int8 dot products.

In: formats, instruction sets, threads. Out: JSON with the machine, a Markdown table: operations per
second in the linear layers alone while a prompt is read, as a share of the peak of that set's dot
products in registers, measured before and after in the same process; for AMX also as a share of
AVX-512's. Models are random, two blocks of the sizes of the 1.10 billion one.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alone import measure_alone
from machine import describe_machine
from report import RESULTS, print_table, write_record

FORMATS = ["int4-g32-fixed", "int4-g64-fixed", "int4-g128-fixed", "int8-g128-fixed"]
PEAK_SECONDS = 0.3
BLOCKS = 2


def measure(folder: Path, threads: int, tokens: int, rounds: int) -> dict[str, Any]:
    """One model by the instruction set of this process."""
    from crumb.checkpoints.opening import open_checkpoint
    from crumb.kernels.dispatch import selected_set, supported_sets
    from crumb.kernels.limits import dot_peak
    from crumb.operations.linear import Linear
    from crumb.run.engine import Engine, Rows, StepPart
    from crumb.run.memory_plan import EngineSettings

    engine = Engine(
        open_checkpoint(folder),
        EngineSettings(context_tokens=tokens, threads=threads, step_tokens=tokens),
    )
    layers = [op for stage in engine.plan.stages[:-1] for op in stage.operations]
    weights = sum(op.in_features * op.out_features for op in layers if isinstance(op, Linear))

    def prompt() -> None:
        sequence = engine.begin([1] * tokens, reuse=False)
        engine.run([StepPart(sequence, [5 + k % 100 for k in range(tokens)], Rows.NONE)])
        engine.end(sequence)

    def peak(isa: str) -> float:
        return 2 * dot_peak(threads, PEAK_SECONDS, isa)

    prompt()
    engine.time_operations(True)
    isa = selected_set()
    sets = [isa] + (["avx512"] if isa == "amx" and "avx512" in supported_sets() else [])
    shares: dict[str, list[float]] = {each: [] for each in sets}
    speeds = []
    for _ in range(rounds):
        before = {each: peak(each) for each in sets}
        begin = engine.operation_seconds()["linear"]
        prompt()
        seconds = engine.operation_seconds()["linear"] - begin
        speeds.append(2 * weights * tokens / seconds)
        for each in sets:
            shares[each].append(speeds[-1] / ((before[each] + peak(each)) / 2))
    return {
        "instruction_set": isa,
        "operations_per_second": statistics.median(speeds),
        "share_of_peak": {each: statistics.median(found) for each, found in shares.items()},
        "best_share": {each: max(found) for each, found in shares.items()},
    }


def main() -> None:
    from random_quantized import BILLION, write_quantized

    from crumb.formats.catalog import parse_format

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--sets", nargs="+", default=["avx512", "amx"], help="of CRUMB_ISA")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / "matrix_products.json")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        print(json.dumps(measure(asked.alone, asked.threads, asked.tokens, asked.rounds)))
        return
    rows = []
    with TemporaryDirectory() as folder:
        for name in asked.formats:
            model = Path(folder) / name
            write_quantized(model, replace(BILLION, blocks=BLOCKS), parse_format(name))
            for isa in asked.sets:
                words: list[object] = [model]
                for option in ("threads", "tokens", "rounds"):
                    words += [f"--{option}", getattr(asked, option)]
                rows.append({"format": name, **measure_alone(__file__, *words, CRUMB_ISA=isa)})
    record = {"machine": describe_machine(), "threads": asked.threads, "tokens": asked.tokens}
    write_record(asked.out, {**record, "rows": rows})
    print_table(
        ["format", "instruction set", "T operations/s", "of its peak", "best", "of AVX-512's"],
        [
            [
                row["format"],
                row["instruction_set"],
                f"{row['operations_per_second'] / 1e12:.3f}",
                f"{row['share_of_peak'][row['instruction_set']]:.0%}",
                f"{row['best_share'][row['instruction_set']]:.0%}",
                f"{row['share_of_peak']['avx512']:.0%}" if "avx512" in row["share_of_peak"] else "",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
