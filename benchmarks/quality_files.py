"""What finished files cost, whoever made them: KL of each on several texts, against its bytes.

In: a float model, texts, files or directories as SERIES=PATH; a series is a line of the picture.
Out: JSON with the machine, a Markdown table on stdout, a picture (SVG).
All files see the same windows, in one pass of the float model for each text.
Files that the JSON has, on the same windows, are not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kl_plot import kl_plot
from machine import describe_machine
from report import RESULTS, print_table, write_record
from text_windows import windows_of

from crumb.evaluation.comparison import evaluate_models
from crumb.evaluation.report import Evaluation
from crumb.run.model import Model, open_model

Row = dict[str, Any]
"""series, file, bytes, and by text (KL, its standard error, perplexity, bits per byte)."""


def weight_bytes(path: Path) -> int:
    """Of the weight files."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.glob("*.safetensors"))


def measure(
    reference: Model, paths: list[Path], text: str, asked: argparse.Namespace
) -> list[Evaluation]:
    """All files on one text."""
    windows = windows_of(reference, text, asked.limit, asked.protocol)
    models = [open_model(str(path)) for path in paths]
    evaluations = evaluate_models(models, reference, windows)
    return evaluations[-len(models) :]


def figures_of(evaluation: Evaluation) -> dict[str, float]:
    """What the table has of a file and a text."""
    assert evaluation.divergence is not None, "there is a reference"
    kl = evaluation.divergence.kl
    return {
        "kl": kl.value,
        "error": kl.standard_error,
        "perplexity": evaluation.perplexity.value,
        "bits_per_byte": evaluation.bits_per_byte or 0.0,
    }


def mean_kl(row: Row) -> float:
    return sum(each["kl"] for each in row["texts"].values()) / len(row["texts"])


def run(asked: argparse.Namespace) -> list[Row]:
    """The rows of all files, those of an earlier run among them."""
    names = {Path(text).stem: text for text in asked.text}
    key = {"model": asked.model, "protocol": asked.protocol, "limit": asked.limit}
    key |= {"texts": list(names)}
    earlier = json.loads(asked.out.read_text()) if asked.out.is_file() else {"key": None}
    rows: list[Row] = earlier["rows"] if earlier["key"] == key else []
    measured = {row["file"] for row in rows}
    series = {path: name for name, _, path in (each.partition("=") for each in asked.files)}
    new: list[Row] = [
        {"series": name, "file": path, "bytes": weight_bytes(Path(path)), "texts": {}}
        for path, name in series.items()
        if path not in measured
    ]
    reference = open_model(asked.model)
    for name, text in names.items() if new else ():
        evaluations = measure(reference, [Path(row["file"]) for row in new], text, asked)
        for row, evaluation in zip(new, evaluations, strict=True):
            row["texts"][name] = figures_of(evaluation)
    rows += new
    write_record(asked.out, {"machine": describe_machine(), "key": key, "rows": rows})
    return rows


def print_rows(rows: list[Row]) -> None:
    """By bytes."""
    texts = list(rows[0]["texts"])
    table = []
    for row in sorted(rows, key=lambda row: row["bytes"]):
        cells = [f"{each['kl']:.4f} ± {each['error']:.4f}" for each in row["texts"].values()]
        name, size = Path(row["file"]).name, f"{row['bytes'] / 1e6:.2f}"
        table.append([row["series"], name, size, *cells, f"{mean_kl(row):.4f}"])
    print_table(["series", "file", "MB", *texts, "mean KL"], table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="the float model")
    parser.add_argument("files", nargs="+", metavar="SERIES=PATH")
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--protocol", default="llama.cpp")
    parser.add_argument("--limit", type=int, default=20, help="windows of each text")
    parser.add_argument("--out", type=Path, default=RESULTS / "quality_files.json")
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    rows = run(asked)
    print_rows(rows)
    if asked.picture is not None:
        series: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            series.setdefault(row["series"], []).append((row["bytes"], mean_kl(row)))
        asked.picture.write_text(kl_plot(series))


if __name__ == "__main__":
    main()
