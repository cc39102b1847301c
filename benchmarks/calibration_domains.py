"""What each kind of calibration text is worth: KL on several texts with that kind left out.

In: a float model, a calibration mixture, texts to evaluate, one format for all blocks.
Out: JSON with the machine, a Markdown table: a row for the whole mixture and one for each source
that is left out. Each row is a rehearsal (crumb/fitting/rehearsal.py): blocks are solved from the
float model's inputs, tokens weighted, those of the source at 0; embedding and head stay float.
What a killed run finished lies in the folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import describe_machine
from numpy.typing import NDArray
from report import RESULTS, print_table, write_record
from text_windows import pack_of

from crumb.calibrate.drawing import draw
from crumb.calibrate.token_weights import GradientPass, Layer, TokenWeights
from crumb.fitting.rehearsal import Rehearsal
from crumb.requests.quantize_request import Calibration
from crumb.run.model import open_model
from crumb.solve.problem import SolveSettings
from crumb.texts.mixture import CalibrationTokens

WHOLE = "nothing"


@dataclass(frozen=True)
class MaskedWeights(TokenWeights):
    """Weights of tokens, some of which do not count."""

    mask: NDArray[np.bool_] | None = None  # (tokens,)

    def of(self, layers: Sequence[Layer]) -> NDArray[np.float32]:
        weights = super().of(layers)
        if self.mask is not None:
            weights = weights * self.mask
        return np.asarray(weights / weights.mean(), np.float32)


def masks_of(drawn: CalibrationTokens) -> dict[str, NDArray[np.bool_] | None]:
    """By what is left out: the tokens that count."""
    masks: dict[str, NDArray[np.bool_] | None] = {WHOLE: None}
    length, begin = drawn.tokens.shape[1], 0
    for source in drawn.sources:
        mask = np.ones(drawn.tokens.size, np.bool_)
        end = begin + source.sequences * length
        mask[begin:end] = False
        masks[source.name], begin = mask, end
    return masks


def run(asked: argparse.Namespace) -> dict[str, dict[str, tuple[float, float]]]:
    """By what is left out and text: mean KL, and the standard error of its difference."""
    model, settings = open_model(asked.model), SolveSettings()
    calibration = Calibration(asked.calibration, asked.sequences, asked.length)
    drawn = draw(model, calibration)
    asked.folder.mkdir(parents=True, exist_ok=True)
    gradients = GradientPass(model.checkpoint, drawn.tokens, asked.folder / "gradients")
    weights = gradients.run(settings.token_power)
    tables = {spec.name for spec in model.plan.stages[0].tensors()}
    formats = {each.weight: asked.format for each in model.plan.linears()}
    formats = {name: format for name, format in formats.items() if name not in tables}
    packs = {
        Path(text).stem: pack_of(model, text, asked.limit, asked.folder) for text in asked.text
    }
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    whole = {}
    for name, mask in masks_of(drawn).items():
        masked = MaskedWeights(weights.squares, weights.power, weights.features, mask)
        rows[name] = {}
        for text, pack in packs.items():
            folder = asked.folder / name
            rehearsal = Rehearsal(model.checkpoint, drawn.tokens, settings, masked, folder, pack)
            rehearsal.solve([formats])
            measured = rehearsal.measure(formats)
            whole.setdefault(text, measured)
            rows[name][text] = (measured.kl, whole[text].less_than(measured)[1])
            print(name, text, f"{measured.kl:.4f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", default=Calibration().spec)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--format", default="int3-g64-fixed")
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--limit", type=int, default=12, help="windows of each text")
    parser.add_argument("--folder", type=Path, required=True, help="of what is finished")
    parser.add_argument("--out", type=Path, default=RESULTS / "calibration_domains.json")
    asked = parser.parse_args()
    rows = run(asked)
    write_record(asked.out, {"machine": describe_machine(), "rows": rows})
    texts = list(rows[WHOLE])
    table = []
    for name, row in rows.items():
        cells = [f"{kl:.4f}" + (f" ± {error:.4f}" if error else "") for kl, error in row.values()]
        mean = sum(kl for kl, _ in row.values()) / len(row)
        table.append([name, *cells, f"{mean:.4f}"])
    print_table(["left out", *texts, "mean"], table)


if __name__ == "__main__":
    main()
