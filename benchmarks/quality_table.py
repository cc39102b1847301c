"""Quality of every format and method on one model: the full table, measured in one pass.

In: a float model, a calibration text, evaluation texts. Out: JSON with the machine and settings,
a Markdown table on stdout. Evaluates all models on the same windows, paired with the float model.
Protocol gptq with windows of 512 unless said; errors are standard errors between windows.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe_machine

from crumb.evaluation.comparison import evaluate_models
from crumb.evaluation.report import Evaluation
from crumb.formats.catalog import ROW, ZeroKind, group_name
from crumb.pipeline import Calibration, QuantizeRequest, quantize
from crumb.run.model import Model, open_model
from crumb.solve.problem import AS_PUBLISHED, Method, Scales, SolveSettings
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text
from crumb.texts.windows import cut_windows

METHODS = {
    "round": (SolveSettings(method=Method.ROUND, scales=Scales.MINMAX), None),
    "gptq": (SolveSettings(), None),
    "as-published, same tokens": (AS_PUBLISHED, None),
    "as-published": (AS_PUBLISHED, (128, 2048)),
}
"""Method -> settings, and (sequences, length) where they are not the table's."""


@dataclass(frozen=True)
class Variant:
    """One line of the table."""

    bits: int
    group_size: int
    zero: ZeroKind
    method: str

    @property
    def name(self) -> str:
        method = self.method.replace(", ", "-").replace(" ", "-")
        return f"int{self.bits}-{group_name(self.group_size)}-{self.zero.value}-{method}"


def make_variants(arguments: argparse.Namespace) -> list[Variant]:
    """Every combination that was asked for."""
    return [
        Variant(bits, size, ZeroKind(zero), method)
        for bits in arguments.bits
        for zero in arguments.zero
        for size in arguments.group_size
        for method in arguments.method
    ]


def make_model(variant: Variant, arguments: argparse.Namespace) -> Model:
    """Quantize (or find already quantized) one variant in the scratch directory."""
    settings, shape = METHODS[variant.method]
    sequences, length = shape or (arguments.sequences, arguments.length)
    request = QuantizeRequest(
        model=arguments.model,
        out=arguments.scratch / variant.name,
        bits=variant.bits,
        embedding=8,
        head=8,
        group_size=variant.group_size,
        zero=variant.zero,
        solve=settings,
        calibration=Calibration(arguments.calibration, sequences, length, arguments.seed),
    )
    return open_model(str(quantize(request).out))


def measure(
    models: list[Model], reference: Model, text: str, arguments: argparse.Namespace
) -> list[Evaluation]:
    """The reference and all models on one text."""
    windows = cut_windows(
        read_text(text, Use.EVALUATION),
        reference.tokenizer.encode,
        length=arguments.window,
        limit=arguments.limit,
    )
    return evaluate_models(models, reference, windows)


def row_of(variant: Variant, evaluations: list[Evaluation]) -> dict[str, Any]:
    """One line of the table as a record."""
    return {
        "bits": variant.bits,
        "group_size": group_name(variant.group_size),
        "zero": variant.zero.value,
        "method": variant.method,
        "file_bytes": evaluations[0].file_bytes,
        "bits_per_weight": evaluations[0].bits_per_weight,
        "texts": {Path(each.text).name: each.as_dict() for each in evaluations},
    }


def print_markdown(rows: list[dict[str, Any]], references: list[Evaluation]) -> None:
    """The table, a text's figures side by side."""
    texts = [Path(each.text).name for each in references]
    for each in references:
        value, error = each.perplexity.value, each.perplexity.standard_error
        print(
            f"float: {Path(each.text).name} {value:.3f} ± {error:.3f}, {each.windows} windows of "
            f"{each.window_tokens}, protocol {each.protocol}"
        )
    columns = ["bits", "zero", "group", "method", "MB", "bits per weight"]
    for text in texts:
        columns += [f"{text} perplexity", "KL ± se", "top-1 %"]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        cells = [row["bits"], row["zero"], row["group_size"], row["method"]]
        cells += [f"{row['file_bytes'] / 1e6:.3f}", f"{row['bits_per_weight']:.3f}"]
        for text in texts:
            figures = row["texts"][text]
            divergence = figures["divergence"]
            cells += [
                f"{figures['perplexity']['value']:.2f}",
                f"{divergence['kl']['value']:.5f} ± {divergence['kl']['standard_error']:.5f}",
                f"{100 * divergence['top1_agreement']['value']:.2f}",
            ]
        print("| " + " | ".join(map(str, cells)) + " |")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group-size", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--zero", nargs="+", default=["fixed", "variable"])
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--scratch", type=Path, default=Path("scratch/quality"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quality_table.json"))
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    assert ROW not in arguments.group_size, "the table compares group sizes"
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    variants = make_variants(arguments)
    models = []
    for variant in variants:
        print(f"quantize {variant.name}", flush=True)
        models.append(make_model(variant, arguments))
    reference = open_model(arguments.model)
    by_text = [measure(models, reference, text, arguments) for text in arguments.text]
    references = [evaluations[0] for evaluations in by_text]
    rows = [
        row_of(variant, [evaluations[index + 1] for evaluations in by_text])
        for index, variant in enumerate(variants)
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": describe_machine(),
        "settings": {key: str(value) for key, value in vars(arguments).items()},
        "float": [each.as_dict() for each in references],
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print_markdown(rows, references)
    shutil.rmtree(arguments.scratch)


if __name__ == "__main__":
    main()
