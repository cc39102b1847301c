"""GPTQModel as a peer: one directory of a float model, quantized on the processor.

In: a float model directory, calibration tokens as .npy (texts, length), bits, group size.
Out: a GPTQ directory; seconds on stdout, loading and saving apart.
Needs the gptqmodel package and nothing of crumb; run it with that environment's Python.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

# Version 7.7 does not start on two processors otherwise: its loaders want as many.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

from gptqmodel import GPTQModel, QuantizeConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group-size", type=int, default=64)
    asked = parser.parse_args()
    settings = QuantizeConfig(bits=asked.bits, group_size=asked.group_size)
    model = GPTQModel.load(asked.model, settings, device="cpu")
    texts = [
        {"input_ids": row.tolist(), "attention_mask": [1] * len(row)}
        for row in np.load(asked.tokens)
    ]
    begin = time.perf_counter()
    model.quantize(texts, batch_size=1)
    print(f"{time.perf_counter() - begin:.1f} s")
    model.save(asked.out)


if __name__ == "__main__":
    main()
