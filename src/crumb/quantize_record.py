"""What is known of a matrix's input, and what the manifest says of the matrix once it is quantized.

In: a packed tensor, the solver's report, its input. Out: a record of JSON values. Refuses nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.calibrate.float_stream import Correction
from crumb.calibrate.routed import Routed
from crumb.formats.packed_tensor import PackedTensor
from crumb.solve.factored import Factored
from crumb.solve.problem import SolveReport, worst_columns_share


@dataclass(frozen=True)
class LayerInput:
    """What is known of the input of a group of layers."""

    hessian: NDArray[np.float64] | Factored  # factored unless that failed
    routed: Routed | None = None  # of an expert
    correction: Correction | None = None  # of the weights, by what earlier layers lost


def count_columns(tensor: PackedTensor) -> int:
    """Its columns that are floats beside their codes."""
    return 0 if tensor.columns is None else len(tensor.columns.places)


def make_record(
    tensor: PackedTensor, report: SolveReport, other: str | None, layer_input: LayerInput | None
) -> dict[str, Any]:
    """What the manifest says of one tensor; `other`: why its format is not what was asked for."""
    of_input: dict[str, Any] = {}
    if layer_input is not None and layer_input.routed is not None:
        of_input["routed"] = asdict(layer_input.routed)
    if layer_input is not None and layer_input.correction is not None:
        of_input["correction"] = round(layer_input.correction.share, 4)
    errors = report.column_errors
    worst = None if errors is None else worst_columns_share(errors)
    return {
        "format": tensor.format.name,
        "shape": [tensor.out_features, tensor.in_features],
        "bytes": tensor.size_bytes,
        "relative_error": report.relative_error,
        "zero_share": report.zero_share,
        "worst_columns_share": worst,
        "damping": report.damping,
        "fallback": "; ".join(filter(None, (other, report.fallback))) or None,
    } | of_input
