"""Our GGUF files of every architecture in llama.cpp: the same logits as ours.

In: tiny models with the settings that each architecture has keys for, all weights in F32. Out: the
log-probabilities of both at positions of a text longer than a query block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_configurations import FOR_GGUF
from llama_cpp_server import server_of, their_logprobs
from mixture_configurations import MIXTURES_FOR_GGUF
from recurrent_configurations import HYBRIDS_FOR_GGUF, RECURRENT_FOR_GGUF
from tiny_models import (
    GPT_NEOX,
    LLAMA,
    LLAMA3,
    MISTRAL,
    QWEN2,
    WHOLE_HEADS,
    YARN,
    make_tokens,
    tolerance,
    write_model,
)

from crumb.architectures.plan import Plan
from crumb.checkpoints.gguf import writer
from crumb.checkpoints.gguf.writer import encode_plain, write_gguf
from crumb.checkpoints.opening import open_checkpoint
from crumb.operations.activation import Activation
from crumb.run.model import Model
from crumb.run.sampling import log_softmax

pytestmark = pytest.mark.oracle

pytest.importorskip("xllamacpp")

LINEAR = {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}
NO_WINDOW = {"use_sliding_window": False}

MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama-tied": LLAMA | WHOLE_HEADS | {"tie_word_embeddings": True},
    "llama-biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama-linear": LLAMA | LINEAR,
    "llama-llama3": LLAMA | WHOLE_HEADS | {"rope_scaling": LLAMA3},
    "llama-yarn": LLAMA | {"rope_scaling": YARN},
    "llama-yarn-magnitude": LLAMA | {"rope_scaling": YARN | {"attention_factor": 1.25}},
    "mistral": MISTRAL | WHOLE_HEADS | {"sliding_window": None},
    "qwen2": QWEN2 | NO_WINDOW,
    "qwen2-tied": QWEN2 | NO_WINDOW | {"tie_word_embeddings": True},
    "gpt_neox": GPT_NEOX,
    "gpt_neox-sequential": GPT_NEOX | {"use_parallel_residual": False},
    "gpt_neox-linear": GPT_NEOX | LINEAR | {"rotary_pct": 1.0},
    **FOR_GGUF,
    **MIXTURES_FOR_GGUF,
    **RECURRENT_FOR_GGUF,
    **HYBRIDS_FOR_GGUF,
}

GELU_ERROR = 2.0**-11
"""llama.cpp looks its gelu up in a table of f16, by an input rounded to f16."""


def gelus(plan: Plan) -> int:
    """How many times a plan takes a gelu."""
    operations = (each for stage in plan.stages for each in stage.operations)
    return sum(isinstance(each, Activation) and "gelu" in each.function for each in operations)


STEP = 17
"""Between positions that are compared: each is a request of its own."""


def made_up_tokenizer(_files: object, configuration: dict[str, Any]) -> dict[str, Any]:
    """Any tokenizer: the server does not begin without one, and here reads tokens alone."""
    count = configuration["vocab_size"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["Ċ", *(f"t{token}" for token in range(1, count))],
        "tokenizer.ggml.token_type": np.ones(count, np.int32),
        "tokenizer.ggml.merges": ["t 1"],
        "tokenizer.ggml.eos_token_id": count - 1,
    }


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_our_logits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "tokenizer_metadata", made_up_tokenizer)
    configuration = MODELS[name]
    checkpoint = open_checkpoint(write_model(tmp_path, configuration))
    types = {spec.name: "F32" for spec in checkpoint.plan.tensors() if spec.matrix}
    out = tmp_path / "tiny.gguf"
    write_gguf(checkpoint, out, types, encode_plain(checkpoint), "tiny")
    (tokens, _) = make_tokens(configuration)
    ours = Model(checkpoint).logits(tokens[None])[0]
    server = server_of(out, exact=True)
    places = [*range(0, len(tokens), STEP), len(tokens) - 1]
    theirs = np.stack(
        [their_logprobs(server, tokens[: place + 1].tolist(), ours.shape[1]) for place in places]
    )
    allowed = tolerance(checkpoint.plan, ours)
    # An input and an output of each.
    allowed += 2 * gelus(checkpoint.plan) * GELU_ERROR * float(np.abs(ours).max())
    # A log-probability is a logit less a mean of logits: twice a logit's error.
    worst = np.abs(theirs - log_softmax(ours[places])).max()
    assert worst <= 2 * allowed, f"{worst:.1e} of {2 * allowed:.1e}"
