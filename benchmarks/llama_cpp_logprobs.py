"""llama.cpp as a peer of quality: log-probabilities of given tokens of a GGUF file's model.

In: a GGUF file; an .npy of token windows (windows, tokens), the first token to score. Out: an .npy
of the log-probability of each scored token (windows, scored), natural logarithms in f64.
Needs the llama-cpp-python package and nothing of crumb; run it with that environment's Python.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import llama_cpp
import numpy as np


@llama_cpp.llama_log_callback
def silent(_level: int, _text: bytes, _data: object) -> None:
    """llama.cpp says much."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("--first-scored", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    llama_cpp.llama_log_set(silent, None)
    windows = np.load(arguments.windows)
    length = windows.shape[1]
    model = llama_cpp.Llama(
        str(arguments.model),
        n_ctx=length,
        n_batch=length,
        n_threads=arguments.threads,
        n_threads_batch=arguments.threads,
        logits_all=True,
        verbose=False,
    )
    scored = []
    for window in windows:
        model.reset()
        model.eval(window.tolist())
        logits = np.array(model.scores[arguments.first_scored - 1 : length - 1], np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        true = window[arguments.first_scored :]
        scored.append(logits[np.arange(len(true)), true])
    np.save(arguments.out, np.stack(scored))


if __name__ == "__main__":
    main()
