"""Quantizations that die while codes are trained, and the bytes they come to.

In: a number of steps, an output directory. Out: a listener that raises there; weight files by name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from crumb.progress import Progress


def weights_of(out: Path) -> dict[str, bytes]:
    """The weight files of a quantized model."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.safetensors"))}


def dying_at(step: int) -> Callable[[Progress], None]:
    """A listener that raises when it is told of training for this time."""
    told = 0

    def listen(progress: Progress) -> None:
        nonlocal told
        told += progress.doing.endswith("training")
        if told == step:
            raise RuntimeError("killed")

    return listen
