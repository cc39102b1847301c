"""RWKV-6 and 7 as their author writes them: plain formulas in f64, a token after the other.

In: a configuration, weights by their names in files, tokens. Out: logits. Slow, and the oracle
where transformers has no class: tests/oracle/test_rwkv.py compares it with the author's package.
Sources: BlinkDL/RWKV-LM; arXiv 2404.05892, section 4.2, and 2503.14456, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def sigmoid(x: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-x))


def normed(x: Floats, weight: Floats, bias: Floats | float, epsilon: float) -> Floats:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight + bias


@dataclass
class Last:
    """The last token's features, by where they are read."""

    rows: dict[str, Floats] = field(default_factory=dict)

    def swap(self, where: str, x: Floats) -> Floats:
        before = self.rows.get(where, np.zeros_like(x))
        self.rows[where] = x
        return before


@dataclass
class Model:
    """One text on its way through a model."""

    configuration: Mapping[str, Any]
    weights: Mapping[str, NDArray[Any]]
    last: Last = field(default_factory=Last)
    states: dict[int, Floats] = field(default_factory=dict)  # (heads, values, keys) of each block
    first: Floats | None = None  # values of the first block

    def tensor(self, name: str) -> Floats:
        return self.weights[name].astype(np.float64)

    def norm(self, x: Floats, name: str, epsilon: float) -> Floats:
        bias = self.tensor(f"{name}.bias") if f"{name}.bias" in self.weights else 0.0
        return normed(x, self.tensor(f"{name}.weight"), bias, epsilon)


def seven(model: Model, token: int) -> Floats:
    """Logits behind one more token."""
    configuration, epsilon = model.configuration, model.configuration["norm_eps"]
    x = model.tensor("model.embeddings.weight")[token]
    if configuration.get("norm_first", True):
        x = model.norm(x, "model.layers.0.pre_norm", epsilon)
    for block in range(configuration["num_hidden_layers"]):
        name = f"model.layers.{block}"
        x = x + time_mix_seven(model, block, model.norm(x, f"{name}.attn_norm", epsilon))
        read = model.norm(x, f"{name}.ffn_norm", epsilon)
        before = model.last.swap(f"{name}.ffn", read)
        read = read + (before - read) * model.tensor(f"{name}.ffn.x_k")
        inner = np.maximum(model.tensor(f"{name}.ffn.key.weight") @ read, 0.0) ** 2
        x = x + model.tensor(f"{name}.ffn.value.weight") @ inner
    tied = configuration.get("tie_word_embeddings", False)
    head = model.tensor("model.embeddings.weight" if tied else "lm_head.weight")
    return head @ model.norm(x, "model.norm", epsilon)


def time_mix_seven(model: Model, block: int, x: Floats) -> Floats:
    name = f"model.layers.{block}.attn"
    dim = model.configuration["head_dim"] or len(x) // model.configuration["num_heads"]
    before = model.last.swap(name, x)
    read = {
        each: x + (before - x) * model.tensor(f"{name}.x_{each}").reshape(-1) for each in "rwkvag"
    }

    def low_rank(letter: str, source: str, between: Callable[[Floats], Floats]) -> Floats:
        down, up = (model.tensor(f"{name}.{letter}_lora.lora.{k}.weight") for k in (0, 2))
        bias = f"{name}.{letter}_lora.lora.2.bias"
        out = up @ between(down @ read[source])
        return out + model.tensor(bias) if bias in model.weights else out

    r, k, v = (model.tensor(f"{name}.{each}_proj.weight") @ read[each] for each in "rkv")
    decay = np.exp(-np.exp(-0.5) * sigmoid(low_rank("w", "w", np.tanh)))
    if block == 0:
        model.first = v
    else:
        assert model.first is not None
        v = v + (model.first - v) * sigmoid(low_rank("v", "v", lambda x: x))
    a = sigmoid(low_rank("a", "a", lambda x: x))
    gate = low_rank("g", "g", sigmoid)
    heads = len(k) // dim
    kk = (k * model.tensor(f"{name}.k_k").reshape(-1)).reshape(heads, dim)
    kk = kk / np.maximum(np.linalg.norm(kk, axis=-1, keepdims=True), 1e-12)
    k = k * (1.0 + (a - 1.0) * model.tensor(f"{name}.k_a").reshape(-1))
    r, k, v, a, decay = (each.reshape(heads, dim) for each in (r, k, v, a, decay))
    state = model.states.get(block, np.zeros((heads, dim, dim)))
    y = np.empty_like(v)
    for head in range(heads):
        removed = np.outer(state[head] @ -kk[head], kk[head] * a[head])
        state[head] = state[head] * decay[head] + removed + np.outer(v[head], k[head])
        y[head] = state[head] @ r[head]
    model.states[block] = state
    epsilon = model.configuration.get("head_norm_eps") or dim * model.configuration["norm_eps"]
    scale, shift = (model.tensor(f"{name}.g_norm.{each}") for each in ("weight", "bias"))
    y = normed(y, scale.reshape(heads, dim), shift.reshape(heads, dim), epsilon)
    y = y + (r * k * model.tensor(f"{name}.r_k")).sum(-1, keepdims=True) * v
    return model.tensor(f"{name}.o_proj.weight") @ (y.reshape(-1) * gate)


def six(model: Model, token: int) -> Floats:
    """Logits behind one more token."""
    configuration, epsilon = model.configuration, model.configuration["layer_norm_epsilon"]
    x = model.tensor("rwkv.embeddings.weight")[token]
    x = model.norm(x, "rwkv.blocks.0.pre_ln", epsilon)
    for block in range(configuration["num_hidden_layers"]):
        name = f"rwkv.blocks.{block}"
        x = x + time_mix_six(model, block, model.norm(x, f"{name}.ln1", epsilon))
        read = model.norm(x, f"{name}.ln2", epsilon)
        change = model.last.swap(f"{name}.ffn", read) - read
        name = f"{name}.feed_forward"
        k, r = (
            read + change * model.tensor(f"{name}.time_maa_{each}").reshape(-1) for each in "kr"
        )
        inner = np.maximum(model.tensor(f"{name}.key.weight") @ k, 0.0) ** 2
        gate = sigmoid(model.tensor(f"{name}.receptance.weight") @ r)
        x = x + gate * (model.tensor(f"{name}.value.weight") @ inner)
        if configuration.get("halved_every") and (block + 1) % configuration["halved_every"] == 0:
            x = x / 2
    tied = configuration.get("tie_word_embeddings", False)
    head = model.tensor("rwkv.embeddings.weight" if tied else "head.weight")
    return head @ model.norm(x, "rwkv.ln_out", epsilon)


def time_mix_six(model: Model, block: int, x: Floats) -> Floats:
    name, dim = f"rwkv.blocks.{block}.attention", model.configuration["head_size"]
    change = model.last.swap(name, x) - x
    both = x + change * model.tensor(f"{name}.time_maa_x").reshape(-1)
    low = np.tanh(model.tensor(f"{name}.time_maa_w1") @ both).reshape(5, -1)
    read = {}
    for place, each in enumerate("wkvrg"):
        drift = model.tensor(f"{name}.time_maa_w2.{place}.weight") @ low[place]
        read[each] = x + change * (drift + model.tensor(f"{name}.time_maa_{each}").reshape(-1))
    low = np.tanh(model.tensor(f"{name}.time_decay_w1") @ read["w"])
    pace = model.tensor(f"{name}.time_decay_w2") @ low
    decay = np.exp(-np.exp(pace + model.tensor(f"{name}.time_decay").reshape(-1)))
    names = {"r": "receptance", "k": "key", "v": "value", "g": "gate"}
    r, k, v, g = (model.tensor(f"{name}.{names[each]}.weight") @ read[each] for each in "rkvg")
    heads = len(k) // dim
    r, k, v, decay = (each.reshape(heads, dim) for each in (r, k, v, decay))
    bonus = model.tensor(f"{name}.time_faaaa").reshape(heads, dim)
    state = model.states.get(block, np.zeros((heads, dim, dim)))  # (heads, keys, values)
    y = np.empty_like(v)
    for head in range(heads):
        new = np.outer(k[head], v[head])
        y[head] = r[head] @ (bonus[head][:, None] * new + state[head])
        state[head] = new + decay[head][:, None] * state[head]
    model.states[block] = state
    epsilon = model.configuration.get("head_norm_eps")
    if epsilon is None:
        divisor = model.configuration["head_size_divisor"]
        epsilon = model.configuration["layer_norm_epsilon"] * divisor**2
    scale, shift = (model.tensor(f"{name}.ln_x.{each}") for each in ("weight", "bias"))
    y = normed(y, scale.reshape(heads, dim), shift.reshape(heads, dim), epsilon)
    return model.tensor(f"{name}.output.weight") @ (y.reshape(-1) * g * sigmoid(g))


STEPS: Mapping[str, Callable[[Model, int], Floats]] = {"rwkv6": six, "rwkv7": seven}
"""By model_type."""


def reference_logits(
    configuration: Mapping[str, Any], weights: Mapping[str, NDArray[Any]], tokens: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Of texts. Shapes: (texts, length) -> (texts, length, vocabulary)."""
    texts = [logits_behind(configuration, weights)(text) for text in tokens.tolist()]
    return np.asarray(texts)


def logits_behind(
    configuration: Mapping[str, Any], weights: Mapping[str, NDArray[Any]]
) -> Callable[[list[int]], NDArray[np.float32]]:
    """Of one text, some tokens at a time. Shapes: (tokens,) -> (tokens, vocabulary)."""
    model, step = Model(configuration, weights), STEPS[configuration["model_type"]]
    return lambda tokens: np.asarray([step(model, token) for token in tokens], np.float32)
