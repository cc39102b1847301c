"""What a delta takes, and what it tells of the base it was made of.

In: a base and quantized directories of it. Out: JSON: bits per weight, times, and for each
directory the information that could be in it against what the base's weights hold.
Every guess is given more than the delta tells: the stored scales, and where each residual belongs.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.delta.apply import apply_delta
from crumb.checkpoints.delta.make import DeltaReport, make_delta
from crumb.checkpoints.delta.matrix import decode_part
from crumb.checkpoints.delta.record import DeltaFile, codes_name, parts_of, read_delta
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.tensor_map import StoredPacked
from crumb.errors import CheckpointError
from crumb.formats.grid import decode_reference, encode_reference, group_of_column
from crumb.kernels.tile import unpack_tensor

Floats = NDArray[np.float32]


def entropy_bits(values: NDArray[Any]) -> float:
    """Entropy of one value, from how often each occurs."""
    _, counts = np.unique(values, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def guess_from_residuals(base: Checkpoint, quantized: Checkpoint) -> dict[str, float]:
    """How well weights follow from code minus rounding and scale, both handed over.

    The guess is scale times a number for each residual, fitted to the true weights by least
    squares: better than anyone without them can choose these numbers.
    """
    steps, residuals, scales = [], [], []
    for spec in base.plan.tensors():
        entry = quantized.tensors.entry(spec.name)
        if not isinstance(entry, StoredPacked) or entry.format.row.table is not None:
            continue
        weights = base.tensors.read_float(spec.name)
        codes, parameters = unpack_tensor(entry.read())
        plain = encode_reference(weights, parameters, entry.format)
        group = group_of_column(entry.format, weights.shape[1])
        scale = np.abs(parameters.group_scale()[:, group]) + np.float32(1e-12)
        steps.append((weights / scale).ravel())
        residuals.append((codes.astype(np.int16) - plain).ravel())
        scales.append(scale.ravel())
    step, residual, scale = map(np.concatenate, (steps, residuals, scales))
    weight, scale = (step * scale).astype(np.float64), scale.astype(np.float64)
    guessed = np.zeros_like(weight)
    for value in np.unique(residual):
        of = residual == value
        guessed[of] = scale[of] * (weight[of] @ scale[of]) / (scale[of] @ scale[of])
    return {
        "relative_error": float(np.linalg.norm(weight - guessed) / np.linalg.norm(weight)),
        "correlation": float(np.corrcoef(weight, guessed)[0, 1]) if guessed.std() else 0.0,
    }


def decoded_with(
    delta: DeltaFile, base: Checkpoint, quantized: Checkpoint, noise: float, seed: int
) -> dict[str, float]:
    """What comes of the delta with a base that is wrong: its weights and so much noise.

    noise is the share of random weights of the same spread; 1 is a base that knows nothing.
    """
    rng = np.random.default_rng(seed)
    whole, likeness = 0, [0.0]
    for spec in base.plan.tensors():
        entry = quantized.tensors.entry(spec.name)
        if not isinstance(entry, StoredPacked):
            continue
        for part, rows in enumerate(parts_of(entry.shape)):
            weights = base.tensors.read_float(spec.name, rows)
            drawn = (rng.standard_normal(weights.shape) * weights.std()).astype(np.float32)
            wrong = weights * np.float32(1 - noise) + drawn * np.float32(noise)
            reader = delta.reader(codes_name(spec.name, part))
            whole += 1
            try:
                found = decode_part(reader, wrong, entry.format, spec.name)
            except CheckpointError:
                continue
            restored = decode_reference(*found, entry.format)
            likeness.append(abs(float(np.corrcoef(restored.ravel(), weights.ravel())[0, 1])))
    return {"parts": whole, "decoded": len(likeness) - 1, "largest_correlation": max(likeness)}


def measured(base: Checkpoint, path: Path, folder: Path) -> dict[str, Any]:
    """One quantized directory."""
    quantized = open_checkpoint(path)
    begin = time.perf_counter()
    report: DeltaReport = make_delta(base, quantized, folder / f"{path.name}.delta")
    made = time.perf_counter()
    delta = read_delta(report.out)
    apply_delta(base, delta, folder / path.name)
    applied = time.perf_counter()
    formats: dict[str, list[float]] = {}
    for tensor in report.tensors:
        sums = formats.setdefault(tensor.format.name, [0, 0, 0, 0])
        shares = (tensor.weights, 8 * tensor.delta_bytes, 8 * tensor.stored_bytes)
        sums[:] = [one + other for one, other in zip(sums, (*shares, 0), strict=True)]
        sums[3] += tensor.weights * (tensor.changed_share or 0)
    return {
        "quantized": path.name,
        "delta_bytes": report.delta_bytes,
        "quantized_bytes": report.quantized_bytes,
        "bits_per_weight": report.bits_per_weight,
        "bits_per_parameter": report.bits_per_parameter,
        "formats": {
            name: {"bits_per_weight": delta_bits / n, "stored": stored / n, "moved": moved / n}
            for name, (n, delta_bits, stored, moved) in formats.items()
        },
        "make_seconds": made - begin,
        "apply_seconds": applied - made,
        "guess": guess_from_residuals(base, quantized),
        "wrong_bases": {
            f"{noise:g}": decoded_with(delta, base, quantized, noise, seed=0)
            for noise in (0.001, 0.01, 0.1, 1)
        },
    }


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("quantized", type=Path, nargs="+")
    asked = parser.parse_args()
    base = open_checkpoint(asked.base)
    matrices = [spec.name for spec in base.plan.tensors() if spec.matrix]
    halves = np.concatenate(
        [base.tensors.read_float(name).astype(np.float16).ravel() for name in matrices]
    )
    with tempfile.TemporaryDirectory() as folder:
        record = {
            "machine": platform.processor() or platform.machine(),
            "weights": halves.size,
            "entropy_bits_of_a_weight": entropy_bits(halves.view(np.uint16)),
            "directories": [measured(base, path, Path(folder)) for path in asked.quantized],
        }
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
