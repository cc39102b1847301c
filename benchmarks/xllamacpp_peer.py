"""llama.cpp behind a pipe, from the package xllamacpp: answers like llama_cpp_peer.py's.

In: a GGUF file, threads; then requests as lines of JSON. Out: bursts as lines of JSON, timed by
llama.cpp itself. Needs xllamacpp and nothing of crumb. Sequences beside the first are refused.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

import xllamacpp

FIRST_WORD = 259
"""Token ids below are special tokens and bytes."""


def server_of(path: str, threads: int) -> Any:
    """A server of one sequence, with llama.cpp's own settings but for threads and length."""
    settings = xllamacpp.CommonParams()
    settings.model.path = path
    settings.n_ctx, settings.n_parallel, settings.warmup = 1024, 1, True
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.verbosity = -1
    return xllamacpp.Server(settings)


def burst(server: Any, request: dict[str, Any]) -> dict[str, float]:
    """A prompt, or steps behind one; the first token comes with the prompt and is no step."""
    if request.get("sequences", 1) != 1:
        raise ValueError("one sequence at a time")
    decodes = request["run"] == "decode"
    prompt = request["prompt"] if decodes else request["tokens"]
    steps = request["tokens"] if decodes else 0
    asked = {"prompt": [FIRST_WORD + k % 61 for k in range(prompt)], "n_predict": steps + 1}
    asked |= {"temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
    began = time.process_time()
    timings = server.handle_completions(asked)["timings"]
    used = time.process_time() - began
    key = "predicted" if decodes else "prompt"
    seconds = timings[f"{key}_ms"] / 1000
    whole = (timings["predicted_ms"] + timings["prompt_ms"]) / 1000
    return {
        "seconds": seconds,
        "processor_seconds": used * seconds / whole,
        "tokens": steps or prompt,
    }


def main() -> None:
    """Answer until the pipe is closed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    # llama.cpp may speak on stdout, which belongs to the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = server_of(asked.gguf, asked.threads)
    print(json.dumps({"package": "xllamacpp"}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = burst(server, json.loads(line))
        except (ValueError, RuntimeError, KeyError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
