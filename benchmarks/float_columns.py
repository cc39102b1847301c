"""What float columns are worth: on a random model with planted outliers, or on any model.

In: a model, or none for a random llama whose blocks have .2 % of their inputs 30 times larger, in
the weights or in what the layers read. Out: a Markdown table: bytes and KL without float columns,
with some shares of them, and with smaller groups; and how many columns the matrices have.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from random_checkpoint import BF16, Sizes, write_checkpoint

import crumb
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import array_in_memory, write_file

SIZES = Sizes(4, 512, 1536, 8, 8, 4096, 2048)
SHARE, FACTOR = 0.002, 30.0


def plant(folder: Path, into: str) -> None:
    """Make some inputs of every block's matrices larger: their weights, or what they read."""
    checkpoint, rng = open_checkpoint(folder), np.random.default_rng(0)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for spec in checkpoint.plan.tensors():
        weights = checkpoint.tensors.read_float(spec.name)
        inside = ".layers." in spec.name
        width = weights.shape[-1]
        worst = rng.choice(width, ceil(SHARE * width), replace=False)
        if inside and spec.matrix == (into == "weights"):
            weights[..., worst] *= np.float32(FACTOR)
        arrays[spec.name] = weights.astype(BF16)
    for path in checkpoint.weight_files:
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    written = {name: array_in_memory(array) for name, array in arrays.items()}
    write_file(folder / "model.safetensors", written, {"format": "pt"})


def row(source: str, out: Path, asked: argparse.Namespace, group: str, **options: Any) -> str:
    """One line of the table."""
    crumb.quantize(
        source,
        out=str(out),
        bits=asked.bits,
        effort=asked.effort,
        embedding=8,
        **({} if asked.model else {"head": 8}),
        sequences=asked.sequences,
        length_tokens=asked.length,
        pack=False,
        group_size=int(group) if group.isdecimal() else group,
        **options,
    )
    text, limit = "excerpt-evaluation", asked.windows
    result = crumb.evaluate(str(out), reference=source, text=text, limit_windows=limit)
    assert result.divergence is not None
    kl = result.divergence.kl
    tensors = json.loads((out / "manifest.json").read_text())["tensors"].values()
    counts = [each.get("float_columns", 0) for each in tensors]
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    columns, matrices = sum(counts), sum(map(bool, counts))
    share = options.get("keep_columns", "")
    apart = f"{kl.value:.4f} ± {kl.standard_error or 0:.4f}"
    return f"| {group} | {share} | {size / 1e6:.2f} | {columns} in {matrices} | {apart} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="else a random one")
    parser.add_argument("--planted", choices=("weights", "inputs"), default="weights")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--groups", nargs="+", default=["64", "32"], help="or row")
    parser.add_argument("--shares", nargs="+", default=["0.25%", "0.5%", "1%"])
    parser.add_argument("--sequences", type=int, default=24)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--windows", type=int, help="of the evaluation; all without it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        source = asked.model or str(place / "random")
        if not asked.model:
            write_checkpoint(place / "random", SIZES, seed=0)
            plant(place / "random", asked.planted)
        print("| group | most float columns | MB | float columns | KL, nats |")
        print("|---|---|---:|---:|---:|", flush=True)
        first = asked.groups[0]
        for group in asked.groups:
            print(row(source, place / f"g{group}", asked, group), flush=True)
        for share in asked.shares:
            out = place / f"{first}-{share}"
            print(row(source, out, asked, first, keep_columns=share), flush=True)


if __name__ == "__main__":
    main()
