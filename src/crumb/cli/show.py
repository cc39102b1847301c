"""`crumb show`: what a model is and, if it is quantized, what was done to each tensor.

In: a model. Out: family, shapes, formats, errors, the worst layers; or the Plan, or outliers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from msgspec.structs import asdict as fields_of

from crumb.architectures.plan import Plan
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.manifest import TensorRecord, read_manifest
from crumb.checkpoints.huggingface.hub import locate
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.tensor_map import (
    Entry,
    Quantized,
    StoredCodes,
    StoredFloats,
    StoredPacked,
)
from crumb.cli.card import card_of
from crumb.cli.option_groups import ONE_WAY
from crumb.cli.output import bytes_text, print_json, print_table, progress_bar
from crumb.fitting.candidates import as_it_lies
from crumb.fitting.outliers import outliers_of
from crumb.operations.experts import Experts
from crumb.operations.operation import TensorSpec

WORST = 8
"""Layers listed as the worst."""


def show(
    model: str,
    /,
    *,
    tensors: Annotated[bool, ONE_WAY] = False,
    plan: Annotated[bool, ONE_WAY] = False,
    card: Annotated[bool, ONE_WAY] = False,
    outliers: Annotated[bool, ONE_WAY] = False,
    json: Annotated[bool, ONE_WAY] = False,
) -> None:
    """Show a model: family, sizes, formats, error of each tensor.

    Args:
        model: directory, .gguf file, org/name, or org/name@revision.
        tensors: list every tensor, not only the worst.
        plan: print the plan of operations that executors run.
        card: print a card in Markdown, to publish beside the weights.
        outliers: read every matrix and say how far its largest weights and inputs lie from the
            rest: the worst of them, or all with --tensors or --json.
        json: print everything as JSON.
    """
    checkpoint = open_checkpoint(locate(model))
    if plan and not json:
        print(checkpoint.plan)
        return
    record = describe(checkpoint)
    if card:
        print(card_of(record, read_manifest(checkpoint.path)[1]))
        return
    if outliers:
        with progress_bar() as progress:
            record["outliers"] = [asdict(row) for row in outliers_of(checkpoint, progress)]
    if json:
        print_json(record | ({"plan": str(checkpoint.plan).splitlines()} if plan else {}))
        return
    if outliers:
        print_outliers(record["outliers"], all_of_them=tensors)
        return
    print_description(record)
    rows = record["tensors"]
    measured = [row for row in rows if row["relative_error"] is not None]
    if not tensors and measured:
        rows = sorted(measured, key=lambda row: -row["relative_error"])[:WORST]
        print(f"the {len(rows)} tensors with the largest relative output error:")
    elif not tensors:
        return
    print_table(
        ["<tensor", "<shape", "<format", "bytes", "bits per weight", "error", "zeros", "<note"],
        [tensor_row(row) for row in rows],
    )


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """A model as a record; figures of quantization come from its manifest."""
    manifest, raw = read_manifest(checkpoint.path)
    parameters, size = checkpoint.plan.parameters(), checkpoint.weight_bytes()
    return {
        "name": checkpoint.path.resolve().name,
        "path": str(checkpoint.path),
        "family": checkpoint.plan.family,
        "parameters": parameters,
        "stages": len(checkpoint.plan.stages),
        "vocabulary": checkpoint.plan.vocabulary,
        "max_positions": checkpoint.plan.max_positions,
        "file_bytes": size,
        "bits_per_weight": 8 * size / parameters,
        "format": as_it_lies(checkpoint).name,
        "allocation": raw.get("allocation"),
        "job": raw.get("job"),
        "fallbacks": manifest.fallbacks,
        "experts": describe_experts(checkpoint.plan, manifest.tensors),
        "tensors": [
            describe_tensor(checkpoint, spec, manifest.tensors.get(spec.name, TensorRecord()))
            for spec in checkpoint.plan.tensors()
        ],
    }


def describe_tensor(
    checkpoint: Checkpoint, spec: TensorSpec, record: TensorRecord
) -> dict[str, Any]:
    """One tensor as a record."""
    entry = checkpoint.tensors.entry(spec.name)
    packed = isinstance(entry, Quantized)
    weights = 1
    for size in spec.shape:
        weights *= size
    return {
        "name": spec.name,
        "shape": list(spec.shape),
        "format": entry.format.name if isinstance(entry, Quantized) else entry.dtype.name,
        "quantized": packed,
        "stored_as": entry.source if isinstance(entry, StoredCodes | StoredFloats) else None,
        "decoded": is_decoded(entry),
        "reordered": isinstance(entry, Quantized) and entry.order is not None,
        "float_columns": count_float_columns(entry),
        "bytes": entry.size_bytes,
        "bits_per_weight": 8 * entry.size_bytes / weights,
        "relative_error": record.relative_error,
        "zero_share": record.zero_share,
        "damping": record.damping,
        "fallback": record.fallback,
        "routed": None if record.routed is None else fields_of(record.routed),
    }


def count_float_columns(entry: Entry) -> int:
    """Inputs of a matrix that have float16 weights beside their codes."""
    columns = entry.columns if isinstance(entry, StoredPacked) else None
    return 0 if columns is None else len(columns.places)


def describe_experts(plan: Plan, records: Mapping[str, TensorRecord]) -> list[dict[str, Any]]:
    """Of each block's experts, how many calibration tokens were routed to them."""
    rows = []
    for stage in plan.stages:
        for op in stage.operations:
            if not isinstance(op, Experts):
                continue
            names = [[spec.name for spec in op.matrices(each)] for each in range(op.experts)]
            routed = [[records.get(name, TensorRecord()).routed for name in each] for each in names]
            measured = [[one for one in each if one is not None] for each in routed]
            counts = sorted(each[0].tokens for each in measured if each)
            if counts:
                rows.append(
                    {
                        "stage": stage.name,
                        "experts": op.experts,
                        "used": op.used,
                        "least_tokens": counts[0],
                        "median_tokens": counts[len(counts) // 2],
                        "most_tokens": counts[-1],
                        "borrowing": sum(any(one.borrowed for one in each) for each in measured),
                    }
                )
    return rows


def is_decoded(entry: Entry) -> bool:
    """Whether the file has codes, in a format that no row of the catalog holds."""
    return isinstance(entry, StoredFloats) and not entry.lies_as_floats


def print_description(record: dict[str, Any]) -> None:
    """What a model is, in the lines of a terminal."""
    print(record["path"])
    print(
        f"  {record['family']}, {record['parameters'] / 1e6:.1f} M parameters, "
        f"{record['stages']} stages, vocabulary {record['vocabulary']}, "
        f"{record['max_positions']} positions"
    )
    print(
        f"  {bytes_text(record['file_bytes'])}, {record['bits_per_weight']:.3f} bits per weight "
        f"of the whole file, blocks: {record['format']}"
    )
    allocation = record["allocation"]
    if allocation:
        budget = ", ".join(f"{name} {value}" for name, value in allocation["budget"].items())
        print(f"  formats within {budget}; KL expected of them {allocation['expected_kl']:.3g}")
    counts: dict[str, int] = {}
    for tensor in record["tensors"]:
        name = tensor["format"]
        if tensor["decoded"]:
            name += f" decoded from {tensor['stored_as']}"
        counts[name] = counts.get(name, 0) + 1
    print("  " + ", ".join(f"{count} tensors {name}" for name, count in counts.items()))
    columns = [tensor["float_columns"] for tensor in record["tensors"] if tensor["float_columns"]]
    if columns:
        print(f"  {sum(columns)} float columns beside the codes of {len(columns)} matrices")
    job = record["job"]
    if job:
        solve, calibration = job["solve"], job["calibration"]
        print(f"  quantized by {solve['method']}, scales {solve['scales']}")
        if calibration:
            print(
                f"  calibrated on {calibration['spec']}: {calibration['sequences']} sequences of "
                f"{calibration['length_tokens']} tokens, seed {calibration['seed']}"
            )
    for name in record["fallbacks"]:
        print(f"  fallback: {name}")
    if record["experts"]:
        print("tokens that calibrated each expert, and how many experts borrowed their block's:")
        columns = list(record["experts"][0])
        rows = [[str(row[column]) for column in columns] for row in record["experts"]]
        words = [column.removesuffix("_tokens") for column in columns]
        print_table(["<stage", *words[1:]], rows)


def tensor_row(row: dict[str, Any]) -> list[str]:
    """A tensor's line of the table."""
    error, zeros = row["relative_error"], row["zero_share"]
    return [
        row["name"],
        "x".join(map(str, row["shape"])),
        row["format"],
        str(row["bytes"]),
        f"{row['bits_per_weight']:.3f}",
        "" if error is None else f"{error:.5f}",
        "" if zeros is None else f"{100 * zeros:.1f} %",
        note_of(row),
    ]


def print_outliers(rows: list[dict[str, Any]], all_of_them: bool) -> None:
    """A line for each matrix, or for the worst."""
    shown = rows if all_of_them else rows[:WORST]
    print(f"{len(shown)} of {len(rows)} matrices, highest kurtosis first (a normal one has 3);")
    print("error: its share in the worst 1 % of columns, of plain rounding to 3 bits;")
    print("weighted: of the error that this quantization left, by the layer's input")
    figures = ("kurtosis", "largest_weight", "largest_column", "worst_columns_share")
    lines = [
        [
            row["name"],
            "x".join(map(str, row["shape"])),
            *("" if row[figure] is None else f"{row[figure]:.3g}" for figure in figures),
            "weighted" if row["weighted"] else "",
        ]
        for row in shown
    ]
    columns = ["largest weight / deviation", "largest column / median", "error", "<"]
    print_table(["<tensor", "<shape", "kurtosis", *columns], lines)


def note_of(row: dict[str, Any]) -> str:
    """What else is to be said of a tensor."""
    decoded = row["decoded"] and f"{row['stored_as']}, runs decoded as {row['format']}"
    reordered = row["reordered"] and "columns in another order"
    count = row["float_columns"]
    columns = f"{count} float column{'s'[: count > 1]}" if count else None
    return "; ".join(filter(None, (row["fallback"], decoded, reordered, columns)))
