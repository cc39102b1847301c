"""`crumb delta make` and `crumb delta apply`: publish what quantization decided, not the weights.

In: a base with its quantized directory, or with a delta. Out: a delta file, or the directory again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import cyclopts

from crumb.checkpoints.delta.apply import apply_delta
from crumb.checkpoints.delta.make import DeltaReport, make_delta
from crumb.checkpoints.delta.record import read_delta
from crumb.checkpoints.huggingface.hub import locate
from crumb.checkpoints.opening import open_checkpoint
from crumb.cli.option_groups import ONE_WAY
from crumb.cli.output import bytes_text, duration_text, log, print_json, print_table, progress_bar

delta = cyclopts.App(
    name="delta",
    help="Publish what quantization decided about a base, without its weights.",
    help_format="plaintext",
)

ENDING = ".delta.safetensors"


SECONDS_OF_WEIGHT = 4e-7
"""Finding and compressing what was decided, on one processor."""


@delta.command
def make(
    base: str,
    quantized: str,
    /,
    *,
    out: Path | None = None,
    tensors: Annotated[bool, ONE_WAY] = False,
    json: Annotated[bool, ONE_WAY] = False,
) -> None:
    """Write a delta: with the same base, it restores the quantized model bit for bit.

    Args:
        base: the checkpoint that was quantized: directory, org/name, or org/name@revision.
        quantized: the crumb directory that was made of it.
        out: the delta file; default is the directory's name with .delta.safetensors behind it.
        tensors: list every quantized matrix.
        json: print the result as JSON, with every quantized matrix.
    """
    opened = open_checkpoint(locate(quantized))
    target = out or Path(f"{opened.path.resolve().name or 'model'}{ENDING}")
    seconds = SECONDS_OF_WEIGHT * opened.plan.parameters()
    log(f"needs about {duration_text(seconds)}, and memory for one part of one matrix")
    with progress_bar() as bar:
        report = make_delta(open_checkpoint(locate(base)), opened, target, bar)
    if json:
        print_json(summary(report))
        return
    print_summary(report)
    if tensors:
        print_tensors(report)


@delta.command
def apply(
    base: str,
    delta: Path,
    /,
    *,
    out: Path,
    json: Annotated[bool, ONE_WAY] = False,
) -> None:
    """Restore a quantized model from the exact base it was made of and a delta.

    Args:
        base: the checkpoint that was quantized: directory, org/name, or org/name@revision.
        delta: the delta file.
        out: output directory; it must not be there yet.
        json: print the result as JSON.
    """
    opened = read_delta(delta)
    with progress_bar() as bar:
        record = apply_delta(open_checkpoint(locate(base)), opened, out, bar)
    if json:
        files = {name: file.sha256 for name, file in record.files.items()}
        print_json({"out": str(out), "sha256": record.quantized_sha256, "files": files})
        return
    print(f"restored: {out}  {len(record.files)} files, each with the hash that was recorded")


def summary(report: DeltaReport) -> dict[str, Any]:
    """The result as a record."""
    return {
        "out": str(report.out),
        "base_sha256": report.record.base_sha256,
        "quantized_sha256": report.record.quantized_sha256,
        "delta_bytes": report.delta_bytes,
        "quantized_bytes": report.quantized_bytes,
        "bits_per_weight": report.bits_per_weight,
        "stored_bits_per_weight": report.stored_bits_per_weight,
        "bits_per_parameter": report.bits_per_parameter,
        "files": {name: file.source.value for name, file in report.record.files.items()},
        "tensors": [
            {
                "name": tensor.name,
                "format": tensor.format.name,
                "weights": tensor.weights,
                "stored_bytes": tensor.stored_bytes,
                "delta_bytes": tensor.delta_bytes,
                "bits_per_weight": tensor.bits_per_weight,
                "changed_share": tensor.changed_share,
            }
            for tensor in report.tensors
        ],
    }


def print_summary(report: DeltaReport) -> None:
    """Where the delta lies and its size beside the quantized model's."""
    share = report.delta_bytes / max(report.quantized_bytes, 1)
    print(
        f"delta: {report.out}  {bytes_text(report.delta_bytes)}, {100 * share:.1f} % of the "
        f"quantized model's {bytes_text(report.quantized_bytes)}"
    )
    print(
        f"  {report.bits_per_weight:.3f} bits per quantized weight, which take "
        f"{report.stored_bits_per_weight:.3f} in the model; "
        f"{report.bits_per_parameter:.3f} bits per parameter of the whole"
    )
    print(f"  applies to the base with sha256 {report.record.base_sha256} alone")


def print_tensors(report: DeltaReport) -> None:
    """One row for each quantized matrix."""
    rows = [
        [
            tensor.name,
            tensor.format.name,
            str(tensor.delta_bytes),
            f"{tensor.bits_per_weight:.3f}",
            "" if tensor.changed_share is None else f"{100 * tensor.changed_share:.1f} %",
        ]
        for tensor in report.tensors
    ]
    print_table(["<tensor", "<format", "bytes", "bits per weight", "codes moved"], rows)
