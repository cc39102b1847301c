"""The config.json that the metadata of a GGUF file mean.

In: a file's metadata and the names of its tensors. Out: a configuration; gguf/model.py goes the
other way. Refuses keys that would change the result and that nothing here reads.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from crumb.architectures.configuration import LIMIT
from crumb.architectures.family import Family
from crumb.architectures.reader import HIGHEST
from crumb.architectures.registry import families
from crumb.checkpoints.gguf.architecture import Architecture
from crumb.checkpoints.gguf.architecture_rows import architecture_of
from crumb.checkpoints.gguf.header import Value
from crumb.checkpoints.gguf.latent import (
    KEY_VALUE_HEADS,
    KEY_WIDTH,
    ROTATED,
    VALUE_WIDTH,
    latent_words,
)
from crumb.checkpoints.gguf.metadata import Metadata
from crumb.checkpoints.gguf.rope_scaling import (
    BALANCED,
    BALANCES,
    Factors,
    read_scaling,
)
from crumb.checkpoints.gguf.tokenizer.reader import NO_TOKEN, TOKEN_KEYS, TOKENS
from crumb.operations.rope import Rope

KEYS: dict[str, str] = {
    "hidden": "embedding_length",
    "blocks": "block_count",
    "heads": "attention.head_count",
    "feed_forward": "feed_forward_length",
    "positions": "context_length",
}
"""Our word -> the key behind the architecture's name; the file must have it."""

THETA, WINDOW, VOCABULARY = "rope.freq_base", "attention.sliding_window", "vocab_size"

EXPERTS, GUESSING = "expert_count", "nextn_predict_layers"
"""Blocks behind the last guess the tokens after the next: they are not read."""

TIED = "tie_word_embeddings"

TOKEN_IDS = {"bos_token_id": TOKEN_KEYS["bos"], "eos_token_id": TOKEN_KEYS["eos"]}

NEUTRAL: dict[str, tuple[Value, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_shared_count": (0,),
    "expert_gating_func": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_scale": (0.0, 1.0),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "rope.scaling.alpha": (0.0, 1.0),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    BALANCED: (0.0,),
}
"""Keys that would change the result -> the values with which they do not."""

CLASSES = {
    "bamba": "BambaForCausalLM",
    "bloom": "BloomForCausalLM",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "falcon": "FalconForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "granite": "GraniteForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "lfm2_moe": "Lfm2MoeForCausalLM",
    "llama": "LlamaForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "rwkv6": "Rwkv6ForCausalLM",
    "rwkv7": "RWKV7ForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "t5": "T5ForConditionalGeneration",
}
"""What config.json calls the model's class."""


def read_configuration(
    metadata: Metadata, tensors: Collection[str], factors: Mapping[str, Factors]
) -> dict[str, Any]:
    """The config.json of a file; the names of its tensors say which biases there are.

    Raises: UnknownFamily, CheckpointError.
    """
    row = architecture_of(metadata)
    _refuse_other_results(metadata, row)
    window = 0 if WINDOW in row.fixed else metadata.integer(row.key(WINDOW), 0, lowest=0)
    if window and row.windowed is None and not row.windows:
        raise metadata.refuse(row.key(WINDOW), f"no window, as {row.name} of llama.cpp has none")
    model_type = row.windowed if window and row.windowed is not None else row.family
    if row.mixture is not None and metadata.integer(row.key(EXPERTS), 0, lowest=0):
        model_type = row.mixture
    family = families()[model_type]
    words = _words(metadata, row, family, factors)
    configuration: dict[str, Any] = {
        "architectures": [CLASSES[model_type]],
        "model_type": model_type,
        **row.decided(words),
    }
    for word, key in family.keys.items():
        if word in words:
            configuration[key if isinstance(key, str) else key[0]] = words[word]
    if window or row.windows:
        configuration["sliding_window"] = window or None
    for setting, short in row.settings.items():
        if row.key(short) in metadata:
            configuration[setting] = metadata.values[row.key(short)]
    for short in row.flags:
        configuration[short] = metadata.flag(row.key(short), True)
    return (
        configuration
        | dict(row.seen(tensors))
        | _bias_flags(row, family, words["blocks"], tensors)
        | {TIED: f"{row.tensor('head')}.weight" not in tensors}
        | _token_ids(metadata, words["vocabulary"])
    )


def _words(
    metadata: Metadata, row: Architecture, family: Family, factors: Mapping[str, Factors]
) -> dict[str, Any]:
    """Our words for what the keys say. Raises: CheckpointError."""
    words: dict[str, Any] = {
        word: metadata.integer(row.key(short), highest=HIGHEST.get(word, LIMIT))
        for word, short in {**KEYS, **row.needed}.items()
        if row.attends or (word != "heads" and word in {**family.keys, **row.needed})
    }
    words["blocks"] -= metadata.integer(row.key(GUESSING), 0, lowest=0, highest=words["blocks"] - 1)
    if row.latent:
        words |= latent_words(metadata, row)
    elif row.attends:
        words |= _key_value_heads(metadata, row, words)
        words["head_dim"] = _head_dim(metadata, row, words, family)
    words["vocabulary"] = _vocabulary(metadata, row)
    words["epsilon"] = metadata.number(row.key(row.epsilon))
    words["activation"] = row.activations[0]
    if row.rotates:
        words |= _rotary(metadata, row, words["head_dim"], family, factors)
    words |= row.implied(words)
    words |= {
        word: metadata.number(row.key(short))
        for word, short in row.numbers.items()
        if row.key(short) in metadata
    }
    words |= {
        word: metadata.integer(row.key(short), lowest=0)
        for word, short in row.counts.items()
        if row.key(short) in metadata
    }
    return words | dict(row.derived(words))


def _key_value_heads(
    metadata: Metadata, row: Architecture, words: Mapping[str, int]
) -> dict[str, Any]:
    """How many, and in a hybrid which blocks have some. Raises: CheckpointError."""
    key, heads = row.key(KEY_VALUE_HEADS), words["heads"]
    if not row.hybrid:
        return {"key_value_heads": metadata.integer(key, heads)}
    each = metadata.integers(key, heads, words["blocks"])
    numbers = {count for count in each if count} or {heads}
    if len(numbers) > 1:
        raise metadata.refuse(key, "one number in all blocks that attend, 0 in the others")
    return {"key_value_heads": numbers.pop(), "attends": [count > 0 for count in each]}


def _refuse_other_results(metadata: Metadata, row: Architecture) -> None:
    read = {*row.numbers.values(), *row.counts.values(), *row.needed.values()}
    read |= {BALANCED} if row.name in BALANCES else set()
    for short, values in (NEUTRAL | {key: (value,) for key, value in row.fixed.items()}).items():
        if short in read:
            continue
        key = row.key(short)
        value = metadata.values.get(key, values[0])
        if not isinstance(value, int | float) or value not in values:
            told = " or ".join(str(value) for value in values)
            raise metadata.refuse(key, f"{told}, as nothing here reads this key")


def _head_dim(
    metadata: Metadata, row: Architecture, words: Mapping[str, int], family: Family
) -> int:
    derived = max(words["hidden"] // words["heads"], 1)
    head_dim = metadata.integer(row.key(KEY_WIDTH), derived)
    if head_dim != derived and "head_dim" not in family.keys:
        raise metadata.refuse(row.key(KEY_WIDTH), f"{derived}, the hidden size by the heads")
    if metadata.integer(row.key(VALUE_WIDTH), head_dim) != head_dim:
        raise metadata.refuse(row.key(VALUE_WIDTH), f"{head_dim}, as long as a key")
    return head_dim


def _vocabulary(metadata: Metadata, row: Architecture) -> int:
    if TOKENS not in metadata:
        return metadata.integer(row.key(VOCABULARY))
    tokens = metadata.texts(TOKENS)
    if not tokens:
        raise metadata.refuse(TOKENS, "at least one token")
    return len(tokens)


def _rotary(
    metadata: Metadata,
    row: Architecture,
    head_dim: int,
    family: Family,
    factors: Mapping[str, Factors],
) -> dict[str, Any]:
    """The words of the rotary embedding."""
    rotated = metadata.integer(row.key(ROTATED), head_dim, highest=head_dim)
    whole = family.defaults["rotary_share"] == 1.0 and not family.partial
    if whole and rotated != head_dim:
        raise metadata.refuse(row.key(ROTATED), f"{head_dim}, a whole head")
    if rotated % 2:
        said = (row.key(short) for short in (ROTATED, KEY_WIDTH, KEYS["heads"]))
        key = next(key for key in said if key in metadata)
        raise metadata.refuse(key, f"heads that rotate in pairs, not {rotated} features")
    theta = metadata.number(row.key(THETA), 10000.0)
    if not theta >= 2.0:
        raise metadata.refuse(row.key(THETA), "a number of at least 2")
    share = rotated / head_dim
    while int(head_dim * share) < rotated:  # the quotient was rounded down
        share = math.nextafter(share, 1.0)
    scaling = read_scaling(metadata, row.name, Rope(rotated, theta), factors)
    return {"theta": theta, "rotary_share": share, "rope": scaling or None}


def _bias_flags(
    row: Architecture, family: Family, blocks: int, tensors: Collection[str]
) -> dict[str, bool]:
    """Which of the family's flags hold: those with a bias or a tensor in the file."""
    flags: dict[str, bool] = {}
    asked = [(role, flag, "bias") for role, flag in family.biases.items()]
    asked += [(role, flag, "weight") for role, flag in family.optional.items()]
    for role, flag, kind in asked:
        if isinstance(flag, str):
            names = (f"{row.tensor(role).format(block=block)}.{kind}" for block in range(blocks))
            flags[flag] = flags.get(flag, False) or any(name in tensors for name in names)
    return flags


def _token_ids(metadata: Metadata, vocabulary: int) -> dict[str, int]:
    return {
        word: metadata.integer(key, lowest=0, highest=vocabulary - 1)
        for word, key in TOKEN_IDS.items()
        if metadata.values.get(key, NO_TOKEN) != NO_TOKEN
    }
