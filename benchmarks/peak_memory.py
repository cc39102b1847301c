"""Peak memory of `crumb quantize` on a model and on the same model twice as deep.

In: sizes and numbers of blocks. Out: JSON with the machine, a Markdown table: peak of the process,
the bound it must keep, crumb's own estimate, seconds. The default is a model of 1.1 billion
parameters; it needs 10 GB of disk, which are given back.
The bound: one block's weights in f32, H of each of its inputs in f32, embedding and head in f32,
and 1 GiB. Exits with 1 where a peak is above it. Each quantization is a process of its own.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from machine import describe_machine, one_line
from random_checkpoint import Sizes, checkpoint_bytes, write_checkpoint
from report import RESULTS, print_table, write_record

from crumb.architectures.plan import Plan
from crumb.operations.linear import Linear

SLACK_BYTES = 1 << 30
COMMAND = [sys.executable, "-c", "from crumb.cli.main import run; run()", "quantize"]
ESTIMATE = re.compile(r"needs about ([\d.]+) (\w+) of memory")
UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Measured:
    """One quantization."""

    blocks: int
    parameters: int
    peak_bytes: int
    bound_bytes: int
    estimate_bytes: int  # what crumb said before it began
    seconds: float
    source_bytes: int
    output_bytes: int


def bound_bytes(plan: Plan) -> int:
    """What the peak must keep below, whatever the depth; its terms are in the module's text."""
    block = next(stage for stage in plan.stages if stage not in (plan.stages[0], plan.stages[-1]))
    linears = [operation for operation in block.operations if isinstance(operation, Linear)]
    inputs = {linear.input: linear.in_features for linear in linears}
    weights = sum(linear.in_features * linear.out_features for linear in linears)
    statistics = sum(width**2 for width in inputs.values())
    ends = {spec for stage in (plan.stages[0], plan.stages[-1]) for spec in stage.tensors()}
    embeddings = sum(prod(spec.shape) for spec in ends if spec.matrix)
    return FLOAT_BYTES * (weights + statistics + embeddings) + SLACK_BYTES


def run_measured(command: list[str], log: Path) -> tuple[int, float]:
    """Peak bytes and seconds of a child process. Exits with its last words when it fails."""
    floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"crumb quantize failed:\n{log.read_text()[-2000:]}")
    # Linux starts a child's ru_maxrss at its parent's, so a smaller peak would go unseen.
    if usage.ru_maxrss <= floor:
        raise SystemExit(f"the peak is hidden below this process's own {floor >> 10} MiB")
    return usage.ru_maxrss << 10, seconds


def said_estimate(log: Path) -> int:
    """The memory that crumb said it would need."""
    found = ESTIMATE.search(log.read_text())
    if found is None:
        raise SystemExit("crumb quantize did not say how much memory it needs")
    return round(float(found[1]) * UNITS[found[2]])


def measure(sizes: Sizes, asked: argparse.Namespace, scratch: Path) -> Measured:
    """Write a checkpoint, quantize it, delete both."""
    plan, source, out, log = sizes.plan(), scratch / "source", scratch / "out", scratch / "log"
    print(f"{sizes.blocks} blocks: writing {checkpoint_bytes(plan) / 1e9:.2f} GB", flush=True)
    write_checkpoint(source, sizes, asked.seed)
    print(f"{sizes.blocks} blocks: quantizing", flush=True)
    options = {
        "--bits": asked.bits,
        "--group-size": asked.group_size,
        "--out": out,
        "--calibration": "excerpt-calibration",
        "--sequences": asked.sequences,
        "--length": asked.length,
    }
    words = [str(word) for option in options.items() for word in option]
    peak, seconds = run_measured([*COMMAND, str(source), *words], log)
    measured = Measured(
        blocks=sizes.blocks,
        parameters=plan.parameters(),
        peak_bytes=peak,
        bound_bytes=bound_bytes(plan),
        estimate_bytes=said_estimate(log),
        seconds=seconds,
        source_bytes=weight_bytes(source),
        output_bytes=weight_bytes(out),
    )
    shutil.rmtree(source)
    shutil.rmtree(out)
    return measured


def weight_bytes(directory: Path) -> int:
    """Bytes of a directory's weight files."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def check_disk(scratch: Path, sizes: Sizes) -> None:
    """Refuse a disk too small for the source and, at the end, twice an output half as large."""
    needed = 2 * checkpoint_bytes(sizes.plan()) + SLACK_BYTES
    free = shutil.disk_usage(scratch).free
    if free < needed:
        raise SystemExit(
            f"{sizes.blocks} blocks need {needed / 1e9:.1f} GB of disk, "
            f"{free / 1e9:.1f} GB are free: choose another --scratch"
        )


def print_summary(record: dict[str, Any]) -> None:
    """The record as a table, and what grew with the depth."""
    print(f"\n{one_line(record['machine'])}\n")
    columns = ["blocks", "parameters", "peak MB", "bound MB", "estimate MB", "seconds"]
    rows = [
        [
            str(each["blocks"]),
            f"{each['parameters'] / 1e9:.3f} billion",
            f"{each['peak_bytes'] / 1e6:.0f}",
            f"{each['bound_bytes'] / 1e6:.0f}",
            f"{each['estimate_bytes'] / 1e6:.0f}",
            f"{each['seconds']:.0f}",
        ]
        for each in record["runs"]
    ]
    print_table(columns, rows)
    first, last = record["runs"][0], record["runs"][-1]
    grown = last["peak_bytes"] - first["peak_bytes"]
    print(
        f"\n{last['blocks'] / first['blocks']:.2f} x the blocks: peak {grown / 1e6:+.1f} MB "
        f"({last['peak_bytes'] / first['peak_bytes']:.3f} x), "
        f"time {last['seconds'] / first['seconds']:.2f} x"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    numbers = lambda text: [int(word) for word in text.split(",")]  # noqa: E731
    parser.add_argument("--blocks", type=numbers, default=[16, 32], help="such as 16,32")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--feed-forward", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--key-value-heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, help="where models lie for a while")
    parser.add_argument("--out", type=Path, default=RESULTS / "peak_memory.json")
    return parser.parse_args()


def main() -> None:
    asked = parse_arguments()
    sizes = Sizes(
        blocks=max(asked.blocks),
        hidden=asked.hidden,
        feed_forward=asked.feed_forward,
        heads=asked.heads,
        key_value_heads=asked.key_value_heads,
        vocabulary=asked.vocabulary,
        positions=asked.length,
    )
    machine = describe_machine()
    if asked.scratch is not None:
        asked.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.scratch) as scratch:
        check_disk(Path(scratch), sizes)
        runs = [
            measure(replace(sizes, blocks=blocks), asked, Path(scratch)) for blocks in asked.blocks
        ]
    settings = ("bits", "group_size", "sequences", "length", "seed")
    record = {
        "machine": machine,
        "sizes": asdict(sizes),
        "settings": {name: getattr(asked, name) for name in settings},
        "runs": [asdict(run) for run in runs],
    }
    write_record(asked.out, record)
    print_summary(record)
    over = [run.blocks for run in runs if run.peak_bytes > run.bound_bytes]
    if over:
        raise SystemExit(f"the peak is above the bound with {over} blocks")


if __name__ == "__main__":
    main()
