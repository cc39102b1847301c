"""KL against bytes: formats chosen within a budget, beside one format for every matrix.

In: a float model, calibration, texts to evaluate, budgets in bits per weight of the whole file.
Out: JSON with the machine, a Markdown table, a picture (SVG). What a killed run finished in
`--folder` is read again. A uniform format is every matrix's, the embedding's too.
`--rehearse` quantizes nothing: each matrix is solved once in each format that some file has of it.
"""

from __future__ import annotations

import argparse
import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from kl_plot import kl_plot
from machine import describe_machine
from report import RESULTS, print_table, write_record
from text_windows import pack_of, windows_of

from crumb.calibrate.drawing import draw
from crumb.evaluation.comparison import evaluate_models
from crumb.fitting.candidates import directory_bytes
from crumb.fitting.rehearsal import Rehearsal
from crumb.fitting.sensitivity import SensitivityPass
from crumb.formats.catalog import parse_format
from crumb.pipeline import QuantizeResult, plan, quantize
from crumb.planning import REHEARSAL, key_of, sensitivity_folder
from crumb.requests.quantize_options import make_quantize_request
from crumb.requests.quantize_request import QuantizeRequest, choose
from crumb.run.model import open_model

UNIFORM = (
    *(f"int{bits}-g64-fixed" for bits in (2, 3, 4)),
    *(f"lut{bits}-g64-fixed" for bits in (3, 4)),
    *(f"super{bits}-g32-fixed" for bits in (2, 3, 4)),
)
"""Formats that all matrices have; the best of them are the line that mixes are held to."""

MIX = "mix"
SERIES = {MIX: "a budget", "super": "super-blocks", "lut": "tables", "int": "whole numbers"}
"""What codes stand for -> words."""


@dataclass(frozen=True)
class Point:
    """One file."""

    name: str
    codes: str  # what they stand for, or MIX
    file_bytes: int
    bits_per_weight: float
    expected_kl: float | None
    kl: dict[str, float]  # by text

    @property
    def mean_kl(self) -> float:
        return sum(self.kl.values()) / len(self.kl)


def requests_of(asked: argparse.Namespace) -> dict[str, QuantizeRequest]:
    """Every file of the table."""
    options: dict[str, dict[str, Any]] = {
        f"mix {bits:g}": {"bits_per_weight": bits} for bits in asked.budgets
    }
    for name in asked.uniform:
        options[name] = {"bits": parse_format(name).bits, "tensor": {"*": name}}
    return {
        name: make_quantize_request(
            asked.model,
            asked.folder / name.replace(" ", "-"),
            calibration=asked.calibration,
            sequences=asked.sequences,
            length_tokens=asked.length,
            pack=False,
            **each,
        )
        for name, each in options.items()
    }


def rehearse(asked: argparse.Namespace, requests: dict[str, QuantizeRequest]) -> list[Point]:
    """The KL of every mix, from matrices that are solved once in each format."""
    model, formats, expected = open_model(asked.model), {}, {}
    for name, request in requests.items():
        if request.budget is None:
            chosen = choose(model.plan, request).formats
            formats[name] = {each: format.name for each, format in chosen.items()}
        else:
            planned = plan(request)
            formats[name] = {each.tensor: each.format for each in planned.matrices}
            expected[name] = planned.expected_kl
    request = next(iter(requests.values()))
    folder = sensitivity_folder(request, key_of(model, request))
    tokens = draw(model, request.calibration).tokens
    weights = SensitivityPass(model.checkpoint, tokens, request.settings, folder).weights()
    kl: dict[str, dict[str, float]] = {name: {} for name in formats}
    for text in asked.text:
        pack = pack_of(model, text, asked.limit, asked.folder)
        rehearsal = Rehearsal(
            model.checkpoint, tokens, request.settings, weights, folder / REHEARSAL, pack
        )
        rehearsal.solve(formats.values())
        for name, mix in formats.items():
            kl[name][Path(text).stem] = rehearsal.measure(mix).kl
            print(name, Path(text).stem, f"{kl[name][Path(text).stem]:.4f}", flush=True)
    points = []
    for name, mix in formats.items():
        parsed = {each: parse_format(format) for each, format in mix.items()}
        size = directory_bytes(model.checkpoint, parsed)
        bits = 8 * size / model.plan.parameters()
        points.append(Point(name, codes_of(name), size, bits, expected.get(name), kl[name]))
    return points


def measure(asked: argparse.Namespace, results: dict[str, QuantizeResult]) -> list[Point]:
    """The KL of every file on every text, all in one pass of the float model."""
    reference = open_model(asked.model)
    models = [open_model(str(result.out)) for result in results.values()]
    kl: dict[str, dict[str, float]] = {name: {} for name in results}
    for text in asked.text:
        windows = windows_of(reference, text, asked.limit)
        evaluations = evaluate_models(models, reference, windows)[1:]
        for name, evaluation in zip(results, evaluations, strict=True):
            assert evaluation.divergence is not None, "there is a reference"
            kl[name][Path(text).stem] = evaluation.divergence.kl.value
    return [
        Point(
            name,
            codes_of(name),
            result.file_bytes,
            result.bits_per_weight,
            result.manifest.get("allocation", {}).get("expected_kl"),
            kl[name],
        )
        for name, result in results.items()
    ]


def codes_of(name: str) -> str:
    """Of a file of the table."""
    return MIX if name.startswith(MIX) else parse_format(name).row.kind


def lowest(points: Sequence[Point]) -> list[Point]:
    """The lower convex hull of some points, by rising bytes and the logarithm of the KL."""
    hull: list[Point] = []
    for point in sorted(points, key=lambda point: (point.file_bytes, point.mean_kl)):
        while len(hull) > 1 and _slope(hull[-2], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        if not hull or point.mean_kl < hull[-1].mean_kl:
            hull.append(point)
    return hull


def _slope(one: Point, other: Point) -> float:
    return math.log(other.mean_kl / one.mean_kl) / (other.file_bytes - one.file_bytes)


def line_at(points: Sequence[Point], size: int) -> float:
    """KL of the best uniform formats at some bytes: straight lines between logarithms."""
    ordered = lowest(points)
    pairs = list(pairwise(ordered))
    place = bisect([point.file_bytes for point in ordered], size) - 1
    low, high = pairs[min(max(place, 0), len(pairs) - 1)]
    share = (size - low.file_bytes) / (high.file_bytes - low.file_bytes)
    return math.exp((1 - share) * math.log(low.mean_kl) + share * math.log(high.mean_kl))


def rows_of(points: list[Point]) -> list[list[str]]:
    """The table, by bytes."""
    uniform = [point for point in points if point.codes != MIX]
    rows = []
    for point in sorted(points, key=lambda each: each.file_bytes):
        line = line_at(uniform, point.file_bytes) if point.codes == MIX else None
        rows.append(
            [
                point.name,
                f"{point.file_bytes / 1e6:.2f}",
                f"{point.bits_per_weight:.3f}",
                *(f"{value:.4f}" for value in point.kl.values()),
                f"{point.mean_kl:.4f}",
                "" if line is None else f"{point.mean_kl / line:.3f}",
                "" if point.expected_kl is None else f"{point.expected_kl:.3f}",
            ]
        )
    return rows


def picture(points: list[Point]) -> str:
    """An SVG: KL against bytes, a line for each kind of code."""
    series: dict[str, list[tuple[int, float]]] = {}
    for codes, words in SERIES.items():
        line = [(each.file_bytes, each.mean_kl) for each in points if each.codes == codes]
        series |= {words: line} if line else {}
    return kl_plot(series)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--uniform", nargs="*", default=UNIFORM, help="formats of all matrices")
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.5, 3.0, 3.5, 4.0])
    parser.add_argument("--limit", type=int, default=12, help="windows of each text")
    parser.add_argument("--folder", type=Path, required=True, help="where the models lie")
    parser.add_argument("--rehearse", action="store_true", help="quantize nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / "allocation.json")
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    requests = requests_of(asked)
    if asked.rehearse:
        points = rehearse(asked, requests)
    else:
        points = measure(asked, {name: quantize(each) for name, each in requests.items()})
    write_record(
        asked.out,
        {"machine": describe_machine(), "points": [vars(point) for point in points]},
    )
    texts = [Path(text).stem for text in asked.text]
    columns = ["file", "MB", "bits per weight", *texts, "mean KL", "over the line", "expected"]
    print_table(columns, rows_of(points))
    if asked.picture is not None:
        asked.picture.write_text(picture(points))


if __name__ == "__main__":
    main()
