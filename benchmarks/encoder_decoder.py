"""A request to a model with an encoder, beside PyTorch: so many tokens read, so many written.

In: the shape of Flan-T5-base, random weights: ours in one format, theirs in bf16 by transformers,
greedy with its cache. Out: JSON with the machine, a Markdown table: the seconds of whole requests,
taken in turns in one process on as many threads, and theirs over ours; the same of the processors'
seconds, in which other programs count little on one thread.
Refuses nothing: a ratio below 1 is a result.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe_machine
from random_quantized import FLAN_BASE, EncoderSizes, write_quantized
from report import RESULTS, print_table, write_record

import crumb
from crumb.formats.catalog import parse_format


def theirs(sizes: EncoderSizes, source: list[int], written: int, threads: int) -> Any:
    """A request to transformers in bf16: the encoder once, then a token at a time."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = T5Config(**sizes.configuration(), is_encoder_decoder=True)
    model = T5ForConditionalGeneration(config).to(torch.bfloat16).eval()
    tokens = torch.tensor([source])
    options: Any = {"max_new_tokens": written, "min_new_tokens": written, "do_sample": False}

    def request() -> int:
        with torch.inference_mode():
            return int(model.generate(tokens, **options).shape[1]) - 1

    return request


Took = tuple[float, float]
"""Seconds of the clock, and of the processors."""


def timed(request: Callable[[], int], written: int) -> Took:
    """What one request took."""
    begin, busy = time.perf_counter(), time.process_time()
    made = request()
    took = time.perf_counter() - begin, time.process_time() - busy
    assert made == written, f"{made} tokens in place of {written}"
    return took


def compared(took: dict[str, list[Took]], which: int) -> dict[str, float]:
    """Medians, and theirs over ours in each round."""
    seconds = {name: [each[which] for each in rounds] for name, rounds in took.items()}
    ratios = [peer / own for own, peer in zip(seconds["crumb"], seconds["torch"], strict=True)]
    medians = {name: median(each) for name, each in seconds.items()}
    return medians | {"ratio": median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", default="int4-g64-fixed")
    parser.add_argument("--read", type=int, default=512, help="tokens of the text that is read")
    parser.add_argument("--written", type=int, default=64, help="tokens of the answer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "encoder_decoder.json")
    asked = parser.parse_args()
    drawn = np.random.default_rng(0).integers(2, FLAN_BASE.vocabulary, asked.read)
    source = [int(token) for token in drawn]
    took: dict[str, list[Took]] = {"crumb": [], "torch": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        write_quantized(path, FLAN_BASE, parse_format(asked.format))
        with crumb.load(path, threads=asked.threads) as model:

            def ours() -> int:
                made = model.generate(source, max_tokens=asked.written, ignore_end=True)
                return len(made.tokens)

            requests = {
                "crumb": ours,
                "torch": theirs(FLAN_BASE, source, asked.written, asked.threads),
            }
            for turn in range(asked.rounds + 1):
                for name, request in requests.items():
                    one = timed(request, asked.written)
                    if turn:  # the first wakes threads and touches weights
                        took[name].append(one)
    figures = {"clock": compared(took, 0), "processors": compared(took, 1)}
    record = {"format": asked.format, "read": asked.read, "written": asked.written}
    record |= {"threads": asked.threads, "rounds": took, **figures}
    write_record(asked.out, {"machine": describe_machine(), **record})
    print(f"{asked.read} read, {asked.written} written, {asked.format}, {asked.threads} threads")
    print_table(
        ["seconds of", "crumb", "PyTorch bf16", "PyTorch over crumb", "lowest to highest"],
        [
            [
                name,
                f"{each['crumb']:.3f}",
                f"{each['torch']:.3f}",
                f"{each['ratio']:.2f}x",
                f"{each['lowest']:.2f} to {each['highest']:.2f}",
            ]
            for name, each in figures.items()
        ],
    )


if __name__ == "__main__":
    main()
