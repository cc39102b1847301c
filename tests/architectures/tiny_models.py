"""Tiny models of every family: configurations, weights from a fixed stream, and how exact to be.

In: the name of a variant. Out: a model directory, its tokens, the tolerance of its logits.
Configurations are spelled as transformers 4 writes them, the golden files' as version 5 does.
A new family adds its variants to VARIANTS; tests fail for a family that has none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from dense_configurations import DENSE
from encoder_decoder_configurations import ENCODER_DECODERS
from mixture_configurations import MIXTURES, USUAL
from numpy.typing import NDArray
from recurrent_configurations import RECURRENT
from rwkv_reference import STEPS
from safetensors.numpy import save_file

from crumb.architectures.plan import Plan
from crumb.architectures.registry import families, plan_of
from crumb.checkpoints.transposed import transposed_names
from crumb.operations.attention import Attention
from crumb.operations.conv import Conv
from crumb.operations.embed import Embed
from crumb.operations.headlinear import HeadLinear
from crumb.operations.linear import Linear
from crumb.operations.norm import Norm
from crumb.operations.operation import Operation
from crumb.operations.recurrence import Recurrence
from crumb.operations.rotary import Rotary

GOLDEN = Path(__file__).parent / "golden"

LENGTH_TOKENS = 150
"""More than the 128 queries the executor handles at once, and more than every window."""

SOURCE_TOKENS = 137
"""Of what an encoder reads."""

PLACES = (0, 1, 12, 63, 127, 128, 129, LENGTH_TOKENS - 1)
"""Positions whose logits the golden files hold: first, last, around the edge of a query block."""

# Epsilons are large so that a wrong one shows; sizes are multiples of as little as each family
# allows; rope bases are small so that every pair turns within 150 tokens.
LLAMA: dict[str, Any] = USUAL | {"model_type": "llama"}
WHOLE_HEADS = {
    "hidden_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": None,
}
MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": 11}
QWEN2 = LLAMA | WHOLE_HEADS | {"model_type": "qwen2", "use_sliding_window": True}
del QWEN2["head_dim"]
QWEN2 |= {"sliding_window": 13, "max_window_layers": 1}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}
YARN_SCALES = {"mscale": 0.7, "mscale_all_dim": 0.3, "beta_fast": 12.0, "truncate": False}
GPT_NEOX: dict[str, Any] = {
    "model_type": "gpt_neox",
    "vocab_size": 97,
    "hidden_size": 42,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 71,
    "max_position_embeddings": 160,
    "layer_norm_eps": 0.02,
    "hidden_act": "gelu",
    "rotary_pct": 0.3,
    "rotary_emb_base": 300,
    "use_parallel_residual": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPTJ: dict[str, Any] = {
    "model_type": "gptj",
    "vocab_size": 97,
    "n_embd": 39,
    "n_layer": 3,
    "n_head": 3,
    "n_inner": 71,
    "n_positions": 160,
    "rotary_dim": 6,
    "layer_norm_epsilon": 0.02,
    "activation_function": "gelu_new",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}
GPT_NEO: dict[str, Any] = {
    "model_type": "gpt_neo",
    "vocab_size": 97,
    "hidden_size": 39,
    "num_layers": 3,
    "num_heads": 3,
    "intermediate_size": 71,
    "max_position_embeddings": 160,
    "attention_types": [[["global", "local"], 1], [["local"], 1]],
    "window_size": 9,
    "layer_norm_epsilon": 0.02,
    "activation_function": "gelu_new",
    "bos_token_id": 0,
    "eos_token_id": 0,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama-tied": LLAMA | WHOLE_HEADS | {"tie_word_embeddings": True, "hidden_act": "relu"},
    "llama-biases": LLAMA | {"attention_bias": True, "hidden_act": "gelu"},
    "llama-linear": LLAMA | {"rope_scaling": {"type": "linear", "factor": 3.0}, "mlp_bias": True},
    "llama-llama3": LLAMA | WHOLE_HEADS | {"rope_scaling": LLAMA3},
    "llama-yarn": LLAMA | {"rope_scaling": YARN},
    "llama-yarn-scales": LLAMA | {"rope_scaling": YARN | YARN_SCALES},
    "mistral": MISTRAL,
    "mistral-whole": MISTRAL | WHOLE_HEADS | {"sliding_window": None},
    "qwen2": QWEN2,
    "qwen2-kinds": QWEN2
    | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "qwen2-whole": QWEN2 | {"use_sliding_window": False, "tie_word_embeddings": True},
    "gpt_neox": GPT_NEOX,
    "gpt_neox-sequential": GPT_NEOX
    | {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_fast"},
    "gpt_neox-linear": GPT_NEOX
    | {"rotary_pct": 1.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
    "gptj": GPTJ,
    "gptj-tied": GPTJ | {"n_inner": None, "tie_word_embeddings": True},
    "gpt_neo": GPT_NEO,
    "gpt_neo-untied": GPT_NEO
    | {"intermediate_size": None, "tie_word_embeddings": False}
    | {"attention_types": [[["global"], 3]]},
    "codegen": GPTJ | {"model_type": "codegen", "n_embd": 40, "n_head": 4},
    "codegen-eight": GPTJ | {"model_type": "codegen", "n_embd": 64, "n_head": 8, "n_inner": None},
    **DENSE,
    **MIXTURES,
    **RECURRENT,
}

OF_TRANSFORMERS = {
    variant: each for variant, each in VARIANTS.items() if each["model_type"] not in STEPS
}
"""Those of which transformers has a class; the others are held to plain formulas."""

EVERY = VARIANTS | ENCODER_DECODERS
"""Those too that read a source beside their text."""


ATTENTION = {"falcon-slopes": "sdpa"}
"""How transformers computes attention, where not eagerly: it would add the slopes twice."""


def uniform(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Uniform numbers of mean 0 and variance 1, from PCG64's raw stream, which never changes."""
    raw = np.random.PCG64(seed).random_raw(math.prod(shape)).reshape(shape)
    unit = (raw >> np.uint64(40)).astype(np.float64) / (1 << 24)
    return ((unit - 0.5) * math.sqrt(12.0)).astype(np.float32)


def make_weights(plan: Plan) -> dict[str, NDArray[np.float32]]:
    """Weights by name: norms around 1, biases around 0, matrices that neither grow nor fade.

    Tables of distances are wide enough to be seen beside the scores.

    Matrices are wide enough (1.5 / sqrt(in_features)) for attention to choose between tokens.
    """
    weights: dict[str, NDArray[np.float32]] = {}
    looked_up = {
        operation.weight
        for stage in plan.stages
        for operation in stage.operations
        if isinstance(operation, Embed)
    }
    tables = {
        operation.bias
        for stage in plan.stages
        for operation in stage.operations
        if isinstance(operation, Attention)
    }
    routers = {
        operation.weight
        for stage in plan.stages
        for operation in stage.operations
        if isinstance(operation, Linear)
    }
    of_states = {
        name: spread
        for stage in plan.stages
        for operation in stage.operations
        for name, spread in spreads_of_state(operation)
    }
    for seed, spec in enumerate(sorted(plan.tensors(), key=lambda spec: spec.name)):
        spread, centre = 0.3, 0.0 if spec.name.endswith(".bias") else 1.0
        if spec.matrix or spec.name in routers:
            spread = 1.0 if spec.name in looked_up else 1.5 / math.sqrt(spec.shape[1])
            centre = 0.0
        if plan.inputs and spec.name.endswith(".q.weight"):
            spread /= 3.0  # T5 does not scale its scores: its queries are small
        if spec.name in tables:
            spread, centre = 2.0, 0.0
        spread, centre = of_states.get(spec.name, (spread, centre))
        weights[spec.name] = centre + spread * uniform(seed, spec.shape)
    return weights


def spreads_of_state(operation: Operation) -> list[tuple[str, tuple[float, float]]]:
    """Spread and centre of what decides how long a state lasts: some features long, some short."""
    if isinstance(operation, Conv):
        return [] if operation.weight is None else [(operation.weight, (0.28, 0.5))]
    if isinstance(operation, Recurrence):
        return list(zip(operation.weights, SPREADS[operation.rule], strict=True))
    return []


SPREADS = {
    "wkv4": ((1.0, -1.5), (0.5, 0.3)),
    "delta": ((1.0, -1.5), (0.5, 0.0)),
    "scan": ((1.0, -1.5), (0.5, 0.0), (0.3, 1.0)),
    "wkv6": ((1.0, -1.5), (0.5, 0.3)),
    "wkv7": ((0.3, 1.0), (0.3, 1.0), (0.3, 0.0)),
}
"""Of the weights of each rule."""


def make_tokens(configuration: Mapping[str, Any]) -> NDArray[np.int64]:
    """Two texts, (2, LENGTH_TOKENS)."""
    raw = np.random.PCG64(len(str(configuration["model_type"]))).random_raw(2 * LENGTH_TOKENS)
    return (raw % np.uint64(configuration["vocab_size"])).astype(np.int64).reshape(2, -1)


def make_sources(configuration: Mapping[str, Any]) -> NDArray[np.int64]:
    """Two texts that an encoder reads, (2, SOURCE_TOKENS)."""
    raw = np.random.PCG64(len(str(configuration["model_type"])) + 100).random_raw(2 * SOURCE_TOKENS)
    return (raw % np.uint64(configuration["vocab_size"])).astype(np.int64).reshape(2, -1)


def write_model(folder: Path, configuration: Mapping[str, Any]) -> Path:
    """A model directory with the weights of make_weights."""
    (folder / "config.json").write_text(json.dumps(configuration))
    plan = plan_of(configuration)
    weights = stacked(configuration, make_weights(plan))
    for name in transposed_names(plan):
        weights[name] = np.ascontiguousarray(weights[name].T)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def stacked(configuration: Mapping[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """Weights as files of the family hold them: experts together where it stacks them."""
    family, given = families()[configuration["model_type"]], dict(weights)
    for form in family.stacked:
        for block in range(configuration["num_hidden_layers"]):
            names = [
                f"{family.tensors[role].format(block=block)}.{form.kind}" for role in form.roles
            ]
            experts = sum(names[0].format(expert=expert) in given for expert in range(99))
            if not experts:
                continue
            parts = [
                np.stack([given.pop(name.format(expert=expert)) for expert in range(experts)])
                for name in names
            ]
            whole = np.concatenate(parts, axis=1)
            if form.interleaved:
                whole = np.stack(parts, axis=2).reshape(whole.shape)
            if form.transposed:
                whole = whole.swapaxes(1, 2)
            given[form.name.format(block=block)] = np.ascontiguousarray(whole)
    return with_whole_heads(configuration, given)


def with_whole_heads(configuration: Mapping[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """Keys and values of all heads in one matrix, as files hold those of a latent."""
    family, given = families()[configuration["model_type"]], dict(weights)
    for block in range(configuration["num_hidden_layers"] if "latent_up" in family.tensors else 0):
        name = family.tensors["latent_up"].format(block=block)
        parts: list[Any] = []
        for head in range(configuration["num_attention_heads"]):
            parts.append(given.pop(f"{name}.{head}.key.weight").T)
            parts.append(given.pop(f"{name}.{head}.value.weight"))
        given[f"{name}.weight"] = np.concatenate(parts)
    return given


def tolerance(plan: Plan, logits: NDArray[np.float32]) -> float:
    """How far two f32 runs of a plan may lie apart, in units of the logits.

    The rounding errors of a sum of n terms are about sqrt(n) units of 2^-24 (Higham and Mary
    2019), and the operations of a text follow each other, so theirs add up; both runs have them.
    A rotary angle in f32 is off by up to its position in units, half the length on average, in
    transformers only: we compute it in f64. So is the exponent of a decay over many tokens, which
    its chunked recurrences make of a sum; we multiply decays.
    """
    units = 0.0
    for stage in plan.stages:
        for operation in stage.operations:
            if isinstance(operation, Linear | HeadLinear):
                units += math.sqrt(operation.in_features)
            elif isinstance(operation, Norm):
                units += math.sqrt(operation.features)
            elif isinstance(operation, Attention):
                units += math.sqrt(operation.head_dim) + math.sqrt(LENGTH_TOKENS)
            elif isinstance(operation, Recurrence):
                units += math.sqrt(LENGTH_TOKENS)
                units += LENGTH_TOKENS / 2 if operation.rule != "wkv4" else 0.0
            elif isinstance(operation, Rotary):
                units += LENGTH_TOKENS / 2
    return 2 * units * 2.0**-24 * float(np.abs(logits).max())
