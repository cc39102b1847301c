"""llama.cpp's own server in this process, from the xllamacpp package, without a network.

In: a GGUF file, then prompts as text or tokens. Out: greedy tokens, log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEVER_ENDING = {"temperature": 0.0, "ignore_eos": True}


def server_of(path: Path, exact: bool = False) -> Any:
    """A server of one sequence; an exact one keeps keys and values in F32.

    Flash attention goes with that: it rounds queries to f16.
    """
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.warmup = 256, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.verbosity = -1
    if exact:
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        flash = xllamacpp.llama_flash_attn_type
        settings.flash_attn_type = flash.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(settings)


def answer(
    server: Any, prompt: str | Sequence[int], tokens: int, count: int
) -> tuple[int, list[dict[str, Any]]]:
    """Tokens of the prompt; greedy tokens, never the end, with the `count` most likely of each."""
    given = prompt if isinstance(prompt, str) else [int(token) for token in prompt]
    settings = {"n_predict": tokens, "n_probs": count, **NEVER_ENDING}
    done = server.handle_completions({"prompt": given, **settings})
    return done["usage"]["prompt_tokens"], done["choices"][0]["logprobs"]["content"]


def their_logprobs(server: Any, tokens: Sequence[int], vocabulary: int) -> NDArray[np.float64]:
    """Log-probabilities of every token after these; NaN where none is given."""
    _, (step,) = answer(server, tokens, 1, vocabulary)
    found = np.full(vocabulary, np.nan)
    for each in step["top_logprobs"]:
        found[each["id"]] = each["logprob"]
    return found
