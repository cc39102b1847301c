"""What each part of the solver is worth: output error of every layer under settings that differ.

In: a float model, calibration tokens, formats. Out: JSON with the machine, a Markdown table of
tr(D H D^T) / tr(W H W^T) relative to GPTQ as published: geometric means over the layers.
H is that of the float model's inputs, the same for all settings; nothing is carried between
layers, so the table shows the solver alone.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from layer_errors import geometric_mean
from machine import describe_machine, one_line
from report import RESULTS, print_table, write_record

from crumb.calibrate.walk import walk_model
from crumb.formats.catalog import parse_format
from crumb.run.model import Model, open_model
from crumb.solve.factored import factor
from crumb.solve.gptq import solve_gptq
from crumb.solve.problem import AS_PUBLISHED, LayerProblem, Scales, SolveSettings
from crumb.texts.mixture import ModelReading, draw_calibration

DEFAULT = SolveSettings()
SWEPT = replace(DEFAULT, refinements=0)
VARIANTS = {
    "as published": AS_PUBLISHED,
    "static groups": replace(AS_PUBLISHED, static_groups=True),
    "act-order, static groups": replace(SWEPT, scales=Scales.MINMAX, damping=0.01),
    "search, no refit": replace(SWEPT, refits=0),
    "search, 1 refit": replace(SWEPT, refits=1),
    "search, 3 refits": SWEPT,
    "search, 6 refits": replace(SWEPT, refits=6),
    "search, 3 refits, without act-order": replace(SWEPT, act_order=False),
    "3 refits, 1 refinement": replace(DEFAULT, refinements=1),
    "default: 3 refits, 2 refinements": DEFAULT,
    "3 refits, 4 refinements": replace(DEFAULT, refinements=4),
}
FORMATS = ("int2-g128-fixed", "int2-g32-variable", "int3-g128-fixed", "int3-g32-variable")
FORMATS += ("int4-g128-fixed", "int2-g128-minimum")


def errors_of(model: Model, arguments: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
    """(format, variant) -> relative error of each layer."""
    reading = ModelReading(model.tokenizer.encode)
    drawn = draw_calibration(arguments.calibration, reading).tokens
    errors: dict[tuple[str, str], list[float]] = {}
    for walk, group in walk_model(model.checkpoint, drawn):
        if walk.stage is model.plan.stages[-1]:
            break  # the head
        statistics = walk.statistics(group)
        for variant, settings in VARIANTS.items():
            hessian = statistics.hessian
            factored = factor(hessian, statistics.tokens, settings)
            shared = hessian if factored is None else factored
            for linear in group.linears:
                weights = model.checkpoint.tensors.read_float(linear.weight)
                for name in arguments.formats:
                    problem = LayerProblem(
                        linear.weight, weights, shared, drawn.size, parse_format(name), settings
                    )
                    report = solve_gptq(problem).report
                    errors.setdefault((name, variant), []).append(report.relative_error or 0.0)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="novella-7m")
    parser.add_argument("--calibration", default="excerpt-calibration")
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--out", type=Path, default=RESULTS / "solver_ablation.json")
    arguments = parser.parse_args()
    errors = errors_of(open_model(arguments.model), arguments)
    table = {
        variant: {
            name: geometric_mean(errors[name, variant])
            / geometric_mean(errors[name, "as published"])
            for name in arguments.formats
        }
        for variant in VARIANTS
    }
    machine = describe_machine()
    settings = {"model": arguments.model, "calibrate": arguments.calibration}
    write_record(arguments.out, {"machine": machine, "settings": settings, "ratios": table})
    print(one_line(machine) + "\n")
    rows = [[name, *[f"{value:.3f}" for value in row.values()]] for name, row in table.items()]
    print_table(["settings", *arguments.formats], rows)


if __name__ == "__main__":
    main()
