"""`crumb bench`: how fast a model runs here, beside what the machine could do at best.

In: a model and comma lists of sizes. Out: a table (md), csv, or JSON with the machine's
description; every share is of a limit measured in the same run, right after the work.
"""

from __future__ import annotations

import csv
import os
import platform
import sys
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any

from crumb import __version__
from crumb.checkpoints.huggingface.hub import locate
from crumb.checkpoints.opening import open_checkpoint
from crumb.cli.generation_options import memory_line
from crumb.cli.option_groups import ENGINE, OUTPUT, WORK
from crumb.cli.output import bytes_text, log, print_json, progress_bar
from crumb.cli.whole_number import WHOLE, Whole
from crumb.errors import UsageError
from crumb.kernels.dispatch import selected_set
from crumb.machine.processors import processor_name, processors
from crumb.run.memory_plan import ActivationKind, CacheKind, WeightsKind
from crumb.run.program import plan_engine
from crumb.run.speed import DECODE, Measurement, SpeedReport, Sweep, measure_speed


class TableFormat(StrEnum):
    """How the figures are printed."""

    MD = "md"
    CSV = "csv"
    JSON = "json"


COLUMNS = (
    "work",
    "threads",
    "prompt tokens",
    "sequences",
    "decoded tokens",
    "tokens/s",
    "ms",
    "limit",
    "share of limit",
)


def bench(
    model: str,
    /,
    *,
    prefill: Annotated[str, WORK] = "1,16,64,256,1024",
    decode: Annotated[str, WORK] = "32",
    sequences: Annotated[str, WORK] = "1,16",
    threads: Annotated[str | None, ENGINE] = None,
    repeat: Annotated[Whole, WORK] = 3,
    cache: Annotated[CacheKind, ENGINE] = CacheKind.F16,
    activations: Annotated[ActivationKind, ENGINE] = ActivationKind.INT8,
    weights: Annotated[WeightsKind, ENGINE] = WeightsKind.MAPPED,
    format: Annotated[TableFormat, OUTPUT] = TableFormat.MD,
) -> None:
    """Measure how fast a model reads and writes, as shares of what the machine could do.

    Args:
        model: directory, .gguf file, org/name, or org/name@revision.
        prefill: lengths of prompts in tokens, with commas between; an encoder reads them.
        decode: how many tokens each sequence decodes; a comma list.
        sequences: how many sequences decode together; a comma list.
        threads: thread counts; a comma list, by default all processors.
        repeat: how often each is measured; the middle one is shown.
        cache: how keys and values are kept.
        activations: what quantized weights are multiplied with.
        weights: mapped runs them in the file's own pages, copied in memory of the process.
        format: md, csv, or json with every repeat and the machine's description.
    """
    sweep = Sweep(
        prefill=parse_list(prefill, "--prefill"),
        decode=parse_list(decode, "--decode"),
        sequences=parse_list(sequences, "--sequences"),
        threads=parse_list(str(processors()) if threads is None else threads, "--threads"),
        repeat=repeat,
        cache=cache,
        activations=activations,
        weights=weights,
    )
    checkpoint = open_checkpoint(locate(model))
    most = checkpoint.plan.max_positions
    fitting = tuple(tokens for tokens in sweep.prefill if tokens <= most)
    if len(fitting) < len(sweep.prefill):
        log(f"the model has {most} positions; longer prompts are left out")
        sweep = replace(sweep, prefill=fitting)
    log(memory_line(plan_engine(checkpoint, sweep.settings(max(sweep.threads)))))
    with progress_bar() as bar:
        report = measure_speed(checkpoint, sweep, bar)
    PRINTERS[format](report)


def parse_list(words: str, where: str) -> tuple[int, ...]:
    """Whole numbers with commas between. Raises: UsageError."""
    parts = [part.strip() for part in words.split(",")]
    if not all(WHOLE.fullmatch(part) for part in parts):
        raise UsageError(
            "not a list of whole numbers", where=where, expected="such as 1,16", found=words[:80]
        )
    return tuple(int(part) for part in parts)


def row(each: Measurement) -> list[str]:
    """One line of the table."""
    best = sorted(each.limits)[len(each.limits) // 2]
    unit = "GB/s read" if each.kind == DECODE else "G multiply-adds/s"
    return [
        each.kind,
        str(each.threads),
        str(each.prompt_tokens or ""),
        str(each.sequences or ""),
        str(each.decode_tokens or ""),
        f"{each.tokens_per_second:.1f}",
        f"{1000 * sorted(each.seconds)[len(each.seconds) // 2]:.1f}",
        f"{best / 1e9:.1f} {unit}",
        f"{100 * each.share:.1f} %",
    ]


def print_markdown(report: SpeedReport) -> None:
    """The table, and what its words mean."""
    print(machine_line())
    memory = report.memory
    print(
        f"memory: {bytes_text(memory.total_bytes)} planned, {bytes_text(report.peak_memory_bytes)} "
        f"at the peak of the process; a token "
        f"reads {bytes_text(int(report.work.bytes_read(1)))} of "
        f"weights; bandwidth measured over {bytes_text(report.array_bytes)}"
    )
    print()
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|{'|'.join('---' if k in (0, 7) else '---:' for k in range(len(COLUMNS)))}|")
    for each in report.measurements:
        print(f"| {' | '.join(row(each))} |")
    print()
    if report.work.source_products:
        print(
            "prefill: the encoder reads so many tokens, the decoder gives the first of the answer."
        )
        print("decode: the decoder alone, which attends to what the encoder has read.")
    print(f"decode: each sequence has read {report.read_before_tokens} tokens before.")
    print("prefill: ms is the time to the first token, the share that of the int8 multiply-adds")
    print("that registers alone can do. decode: weights read, as a share of the memory's read")
    print("bandwidth; more than 100 % means that caches hold the weights. mixed: a prompt is read")
    print("while the sequences decode; tokens/s counts both. Limits are measured in between.")
    print("Unquantized weights are multiplied in f32, far below the limit of int8.")


def print_csv(report: SpeedReport) -> None:
    """One line per measurement, numbers without units."""
    columns = ("kind", "threads", "prompt_tokens", "sequences", "decode_tokens")
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow([*columns, "tokens_per_second", "median_seconds", "limit", "share"])
    for each in report.measurements:
        record = measurement_record(each)
        names = (*columns, "tokens_per_second", "median_seconds", "limit", "share")
        out.writerow([record[name] for name in names])


def print_report(report: SpeedReport) -> None:
    """Everything as JSON."""
    memory = report.memory
    print_json(
        {
            "machine": machine_record(),
            "memory": {
                "planned_bytes": memory.total_bytes,
                "weights_bytes": memory.weights_bytes,
                "cache_bytes": memory.cache_bytes,
                "peak_memory_bytes": report.peak_memory_bytes,
            },
            "weight_bytes_per_step": report.work.bytes_read(1),
            "multiply_adds_per_token": report.work.products(1, 1),
            "multiply_adds_per_source_token": report.work.source_products,
            "read_before_decoding_tokens": report.read_before_tokens,
            "array_bytes": report.array_bytes,
            "measurements": [measurement_record(each) for each in report.measurements],
        }
    )


PRINTERS = {
    TableFormat.MD: print_markdown,
    TableFormat.CSV: print_csv,
    TableFormat.JSON: print_report,
}


def measurement_record(each: Measurement) -> dict[str, Any]:
    """A measurement with its middle figures."""
    return {
        "kind": each.kind,
        "threads": each.threads,
        "prompt_tokens": each.prompt_tokens,
        "sequences": each.sequences,
        "decode_tokens": each.decode_tokens,
        "tokens_per_second": each.tokens_per_second,
        "median_seconds": sorted(each.seconds)[len(each.seconds) // 2],
        "first_token_seconds": each.first_token_seconds,
        "seconds": list(each.seconds),
        "limit": each.limit,
        "limits_per_second": list(each.limits),
        "shares": list(each.shares),
        "share": each.share,
    }


def machine_record() -> dict[str, Any]:
    """What ran it; no host name and no path."""
    return {
        "processor": processor_name(),
        "processors": processors(),
        "load_1_minute": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "crumb": __version__,
        "instruction_set": selected_set(),
    }


def machine_line() -> str:
    """The same in one line."""
    record = machine_record()
    return (
        f"{record['processor']}, {record['processors']} processors, "
        f"load {record['load_1_minute']}, crumb {record['crumb']} ({record['instruction_set']})"
    )
