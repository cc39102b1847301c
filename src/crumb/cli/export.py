"""`crumb export`: a model in another container.

In: a model and what to write. Out: a directory or file, and what was exact and what was changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from crumb.checkpoints.export_report import TensorReport
from crumb.cli.option_groups import ONE_WAY
from crumb.cli.output import (
    bytes_text,
    log,
    log_cost,
    print_json,
    print_table,
    progress_bar,
)
from crumb.exporting import ExportResult, model_name
from crumb.exporting import export as run_export
from crumb.requests.export_request import Container, ExportRequest

SHOWN = 8
"""Changed tensors that are listed unless all are asked for."""


def export(
    model: str,
    /,
    *,
    to: Container,
    out: Path | None = None,
    type: str | None = None,
    float_type: str | None = None,
    strict: Annotated[bool, ONE_WAY] = False,
    tensors: Annotated[bool, ONE_WAY] = False,
    json: Annotated[bool, ONE_WAY] = False,
) -> None:
    """Write a model in another container, exactly where its formats allow.

    Args:
        model: directory, .gguf file, org/name, or org/name@revision.
        to: gguf, gptq, gptq_v2, compressed-tensors, crumb, or safetensors (decoded to floats).
        out: output directory or .gguf file; default is the model's name with the container's.
        type: gguf only: type of every matrix, such as q4_k; default the nearest to what each is.
        float_type: safetensors only: what decoded matrices become: float16 (default), bfloat16 or
            float32.
        strict: fail where a tensor would have to be changed.
        tensors: list every tensor, not only those that were changed most.
        json: print the result as JSON.
    """
    request = ExportRequest(model, out or default_out(model, to), to, type, float_type, strict)
    with progress_bar() as bar:
        result = run_export(request, bar, log_cost)
    print_json(summary(result)) if json else print_summary(result, tensors)


def default_out(model: str, to: Container) -> Path:
    """Where the result goes when the user does not say."""
    name = model_name(model)
    return Path(f"{name}.gguf" if to is Container.GGUF else f"{name}-{to.value}")


def summary(result: ExportResult) -> dict[str, Any]:
    """The result as a record."""
    return {
        "out": str(result.out),
        "file_bytes": result.file_bytes,
        "bits_per_weight": result.bits_per_weight,
        "exact": not result.changed,
        "tensors": result.tensors,
    }


def print_summary(result: ExportResult, every: bool) -> None:
    """Where the result lies, its size, and what is not as it was."""
    exact = len(result.tensors) - len(result.changed)
    print(
        f"exported: {result.out}  {bytes_text(result.file_bytes)}, "
        f"{result.bits_per_weight:.3f} bits per weight of the whole file"
    )
    print(f"{exact} of {len(result.tensors)} tensors are exact")
    rows = list(result.tensors) if every else sorted(result.changed, key=lambda row: -row.change)
    shown = rows if every else rows[:SHOWN]
    if shown:
        columns = ["<tensor", "<from", "<to", "change of weights", "<why"]
        print_table(columns, [report_row(report) for report in shown])
    if len(shown) < len(rows):
        log(f"{len(rows) - len(shown)} more were changed: --tensors lists all")


def report_row(report: TensorReport) -> list[str]:
    """A tensor's line of the table."""
    change = "exact" if report.exact else f"{100 * report.change:.3f} %"
    return [report.name, report.source, report.target, change, report.note]
