"""What a backward pass costs, in forward passes, and what both cost beside the native engine.

In: models, tokens. Out: JSON with the machine, a Markdown table. A forward pass is the one whose
stages the way back runs again. Seconds are those of the processors, in the fastest round, so that
other programs count little; gradients go to every buffer, then to every tensor too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from report import RESULTS, print_table, write_record

from crumb.checkpoints.huggingface.hub import locate
from crumb.run.backward import Backward, next_token_loss
from crumb.run.model import open_model

PASSES = ("forward", "buffers", "tensors")


def measure(name: str, count: int, rounds: int) -> dict[str, Any]:
    """Processor seconds of each pass over one text of so many tokens."""
    model = open_model(str(locate(name)))
    tokens = np.random.default_rng(0).integers(0, model.plan.vocabulary, (1, count))
    names = tuple(spec.name for spec in model.plan.tensors())
    passes = {"buffers": Backward(model, tokens), "tensors": Backward(model, tokens, trained=names)}
    best = dict.fromkeys(PASSES, float("inf"))

    def timed(which: str, work: Callable[[], Any]) -> Any:
        begin = time.process_time()
        done = work()
        best[which] = min(best[which], time.process_time() - begin)
        return done

    for turn in range(rounds + 1):
        if turn == 1:  # weights are decoded and threads awake
            best = dict.fromkeys(PASSES, float("inf"))
        for which, backward in passes.items():
            logits = timed("forward", backward.logits)
            toward = next_token_loss(logits, tokens)[1]
            timed(which, lambda backward=backward, toward=toward: backward.gradients(toward))
    return {"model": Path(name).name, "tokens": count, "seconds": best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="directories, files or hub names")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "backward.json")
    asked = parser.parse_args()
    rows = [measure(name, asked.tokens, asked.rounds) for name in asked.models]
    write_record(asked.out, {"machine": describe_machine(), "rows": rows})
    print_table(
        ["model", "forward, processor ms", "gradients of buffers", "and of all tensors"],
        [
            [
                row["model"],
                f"{1e3 * row['seconds']['forward']:.0f}",
                *(
                    f"{row['seconds'][which] / row['seconds']['forward']:.2f}x"
                    for which in PASSES[1:]
                ),
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
