"""`crumb fit`: what of a model fits into some memory, before any weight is downloaded.

In: models, memory, context, sequences. Out: a table of the files that a model is or could be, with
memory, speed and quality, and advice; several models ranked. Exits with 3 where nothing fits.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from crumb.cli.option_groups import ENGINE, ONE_WAY, OUTPUT
from crumb.cli.output import bytes_text, log, print_json, print_table, progress_bar
from crumb.cli.whole_number import OptionalWhole, Whole
from crumb.errors import DoesNotFit
from crumb.fitting.fit import fit as run_fit
from crumb.fitting.report import FitReport, FitRow, ModelFit, Quality
from crumb.requests.fit_request import make_fit_request
from crumb.run.memory_plan import CacheKind

COLUMNS = (
    "<format",
    "file",
    "bits per weight",
    "memory",
    "prompt tokens/s",
    "tokens/s",
    "KL",
    "<fits",
)


def fit(
    *models: str,
    memory: str | None = None,
    context: Annotated[OptionalWhole, ENGINE] = None,
    parallel: Annotated[Whole, ENGINE] = 1,
    cache: Annotated[CacheKind, ENGINE] = CacheKind.F16,
    threads: Annotated[OptionalWhole, ENGINE] = None,
    speed: bool = True,
    json: Annotated[bool, OUTPUT, ONE_WAY] = False,
) -> None:
    """Show what of a model fits into memory; of a model on the hub no weight is downloaded.

    Args:
        models: directory, .gguf file, org/name, or org/name@revision; several are ranked.
        memory: such as 8GiB; by default what this process may still take, control groups included.
        context: tokens of each sequence; by default 4096 or what the model has.
        parallel: sequences of that length at once.
        cache: how keys and values are kept.
        threads: how many threads; by default one for each processor.
        speed: predict tokens/s from a short probe of this machine.
        json: print everything as JSON.
    """
    request = make_fit_request(
        models,
        memory=memory,
        context_tokens=context,
        parallel=parallel,
        cache=cache.value,
        threads=threads,
        speed=speed,
    )
    with progress_bar() as bar:
        report = run_fit(request, bar)
    print_json(record_of(report)) if json else print_report(report)
    if not report.fits:
        smallest = min(row.memory_bytes for each in report.models for row in each.rows)
        raise DoesNotFit(
            "nothing fits",
            where=", ".join(models),
            expected=f"{bytes_text(smallest)} at least",
            found=f"{bytes_text(report.memory_bytes)} by {report.memory_of}",
            do="Ask for a shorter --context, --cache int8, or take a smaller model",
        )


def record_of(report: FitReport) -> dict[str, Any]:
    """A report for programs; of memory the bytes alone."""
    record = asdict(report)
    for model in record["models"]:
        for row in model["rows"]:
            plan = row.pop("memory")
            row["memory"] = {key: value for key, value in plan.items() if key.endswith("_bytes")}
    return record | {"fits": report.fits}


def print_report(report: FitReport) -> None:
    """Tables, the best model first, and what to do."""
    for model in report.models:
        print_model(model)
    if len(report.models) > 1:
        print_ranking(report)
    for failure in report.failures:
        log(f"left out: {failure}")
    if report.memory_of != "the request":
        print(f"memory: {bytes_text(report.memory_bytes)} is available, says {report.memory_of}")
    elif report.memory_bytes > report.available_bytes:
        available = bytes_text(report.available_bytes)
        print(f"this machine has less: {available} is available to this process")


def print_model(model: ModelFit) -> None:
    """One model's table and advice."""
    sequences = f"{model.parallel} x " if model.parallel > 1 else ""
    title = (
        f"{model.model}: {model.family}, {model.parameters / 1e9:.2f} billion parameters; "
        f"context {sequences}{model.context_tokens} tokens, cache {model.cache}"
    )
    print_table(COLUMNS, [row_of(row, row is model.best_row) for row in model.rows], title)
    if any(row.decode_tokens_per_second for row in model.rows):
        print("tokens/s: of a prompt that fills half of the context, and behind it")
    qualities = {(row.quality.measured, row.quality.of) for row in model.rows if row.quality}
    for measured, of in sorted(qualities):
        print(f"KL {'measured on' if measured else 'with ~ is expected from'} {of}")
    for sentence in model.advice:
        print(sentence)


def row_of(row: FitRow, best: bool) -> list[str]:
    """A row's cells."""
    return [
        f"{row.format}{' (as it lies)' if row.lies_here else ''}",
        bytes_text(row.file_bytes),
        f"{row.bits_per_weight:.2f}",
        bytes_text(row.memory_bytes),
        speed_text(row.prompt_tokens_per_second),
        speed_text(row.decode_tokens_per_second),
        quality_text(row.quality),
        ("yes, the best" if best else "yes") if row.fits else "no",
    ]


def speed_text(speed: float | None) -> str:
    """Tokens per second with three digits."""
    return "" if speed is None else f"{speed:.3g}" if speed < 100 else f"{speed:.0f}"


def quality_text(quality: Quality | None) -> str:
    """A KL; ~ where it is expected."""
    if quality is None:
        return "0"
    return f"{'' if quality.measured else '~'}{quality.kl:.3g}"


def print_ranking(report: FitReport) -> None:
    """Models by the bits per byte of what fits of them."""
    rows = []
    for model in report.models:
        best = model.best_row
        rows.append(
            [
                model.model,
                "nothing fits" if best is None else best.format,
                "" if best is None else bytes_text(best.memory_bytes),
                bits_per_byte_text(model),
            ]
        )
    print_table(["<model", "<best that fits", "memory", "bits per byte"], rows, "ranked")
    expected, measured = (
        sorted(
            {each.bits_per_byte_of for each in report.models if each.bits_per_byte_measured is it}
        )
        for it in (False, True)
    )
    if measured:
        print(f"bits per byte measured on {', '.join(measured)}")
    if expected:
        of = ", ".join(expected)
        print(f"bits per byte with ~ are expected from {of}: models of one size differ more")


def bits_per_byte_text(model: ModelFit) -> str:
    """Bits per byte of what fits; ~ where they are expected."""
    if model.bits_per_byte is None:
        return ""
    return f"{'' if model.bits_per_byte_measured else '~'}{model.bits_per_byte:.3f}"
