"""The settings of a model in both spellings: metadata of a GGUF file, and config.json.

In: a file's metadata and the names of its tensors, or a configuration. Out: the other.
Refuses settings that the other side has no key for, and keys that would change the result.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crumb.architectures.builder import reader_of
from crumb.architectures.configuration import LIMIT, Configuration, read_flag, shown
from crumb.architectures.family import BlockKind, Family
from crumb.architectures.reader import HIGHEST, Reader, Sizes
from crumb.architectures.registry import families, plan_of
from crumb.checkpoints.gguf.architecture import Architecture, Named, experts_of, names_of
from crumb.checkpoints.gguf.architecture_rows import ARCHITECTURE_OF_FAMILY, architecture_of
from crumb.checkpoints.gguf.as_read import check_as_read, without_idle_windows
from crumb.checkpoints.gguf.header import Value
from crumb.checkpoints.gguf.metadata import Metadata
from crumb.checkpoints.gguf.rope_scaling import (
    BALANCED,
    GROWING,
    GROWTH,
    Factors,
    frequency_factors,
    read_scaling,
    scaling_keys,
)
from crumb.checkpoints.gguf.tokenizer.reader import NO_TOKEN, TOKEN_KEYS, TOKENS
from crumb.errors import UsageError
from crumb.operations.rope import Rope

KEYS: dict[str, str] = {
    "hidden": "embedding_length",
    "blocks": "block_count",
    "heads": "attention.head_count",
    "feed_forward": "feed_forward_length",
    "positions": "context_length",
}
"""Our word -> the key behind the architecture's name; the file must have it."""

KEY_VALUE_HEADS, VOCABULARY = "attention.head_count_kv", "vocab_size"
KEY_WIDTH, VALUE_WIDTH = "attention.key_length", "attention.value_length"
THETA, ROTATED, WINDOW = "rope.freq_base", "rope.dimension_count", "attention.sliding_window"

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
    "bloom": "BloomForCausalLM",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
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
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
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
    window = metadata.integer(row.key(WINDOW), 0, lowest=0)
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
        | dict(row.constants)
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
        for word, short in KEYS.items()
    }
    words["blocks"] -= metadata.integer(row.key(GUESSING), 0, lowest=0, highest=words["blocks"] - 1)
    words["key_value_heads"] = metadata.integer(row.key(KEY_VALUE_HEADS), words["heads"])
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
    return words


def _refuse_other_results(metadata: Metadata, row: Architecture) -> None:
    read = {*row.numbers.values(), *row.counts.values()}
    read |= {BALANCED} if row.name in GROWING else set()
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


@dataclass(frozen=True)
class GgufModel:
    """What a model becomes as a GGUF file."""

    architecture: Architecture
    family: Family
    sizes: Sizes
    rope: Rope | None  # None: nothing rotates
    metadata: dict[str, Value]
    experts: int  # of a block; 0 without any

    def names(self) -> Iterator[Named]:
        """Every tensor that such a model can have, under both names."""
        return names_of(self.architecture, self.family, self.sizes.blocks, self.experts)


def gguf_model_of(configuration: Configuration) -> GgufModel:
    """The architecture and its keys for a configuration.

    Raises: UsageError for what llama.cpp has no architecture or no key for; CheckpointError.
    """
    model_type = configuration.get("model_type")
    row = ARCHITECTURE_OF_FAMILY.get(model_type) if isinstance(model_type, str) else None
    if row is None:
        raise UsageError(
            "llama.cpp does not load this family",
            where="config.json: model_type",
            expected=f"one of {', '.join(ARCHITECTURE_OF_FAMILY)}",
            found=shown(model_type),
        )
    family = families()[str(model_type)]
    reader = reader_of(family, configuration)
    sizes, kinds = reader.sizes, family.kinds(reader)
    rope = _rope(kinds)
    _check_expressible(row, reader, sizes)
    keys: dict[str, Value] = {short: getattr(sizes, word) for word, short in KEYS.items()}
    keys |= {
        KEY_VALUE_HEADS: sizes.key_value_heads,
        KEY_WIDTH: sizes.head_dim,
        VALUE_WIDTH: sizes.head_dim,
        VOCABULARY: sizes.vocabulary,
        row.epsilon: sizes.epsilon,
    }
    if rope is not None:
        keys |= {THETA: rope.theta, ROTATED: rope.dimensions, **scaling_keys(rope, row.name)}
    window = _window(row, kinds, sizes)
    if window is not None:
        keys[WINDOW] = window
    keys |= {short: reader.flag(short) for short in row.flags}
    for word, short in row.numbers.items():
        number = reader.optional_number(word)
        if number is not None:
            keys[short] = number
    if kinds[0].temperature is not None:
        keys[GROWTH] = kinds[0].temperature.rate
    for word, short in row.counts.items():
        if word in family.keys:
            keys[short] = reader.size(word, lowest=0)
    for setting, short in row.settings.items():
        value = reader.configuration.get(setting, family.defaults.get(setting))
        if value is not None:
            keys[short] = value
    keys |= row.fixed
    metadata: dict[str, Value] = {"general.architecture": row.name}
    metadata |= {row.key(short): value for short, value in keys.items()}
    model = GgufModel(row, family, sizes, rope, metadata, experts_of(reader))
    plan = without_idle_windows(plan_of(configuration))
    theirs = {each.ours: each.theirs for each in model.names()}
    tensors = {theirs[spec.name] for spec in plan.tensors()}
    again = read_configuration(Metadata(Path("-"), metadata), tensors, frequency_factors(rope))
    check_as_read(row.name, plan, without_idle_windows(plan_of(again)))
    return model


def _rope(kinds: tuple[BlockKind, ...]) -> Rope | None:
    """That of the blocks that see everything, where they have another than the rest."""
    ropes = [kind.rope for kind in kinds if kind.rope is not None]
    full = [kind.rope for kind in kinds if kind.rope is not None and kind.window is None]
    return next(iter(full or ropes), None)


def _check_expressible(row: Architecture, reader: Reader, sizes: Sizes) -> None:
    """Refuse settings that the architecture has no key for. Raises: UsageError."""
    expected = found = None
    if sizes.activation not in row.activations:
        expected, found = f"activation {' or '.join(row.activations)}", sizes.activation
    elif row.whole_heads and sizes.heads * sizes.head_dim != sizes.hidden:
        found = f"{sizes.heads} heads of {sizes.head_dim}"
        expected = f"heads that make up the hidden size of {sizes.hidden}"
    elif not row.grouped and sizes.heads != sizes.key_value_heads:
        expected, found = f"{sizes.heads} key-value heads", str(sizes.key_value_heads)
    elif row.tied and not read_flag(reader.configuration, TIED, reader.family.tied):
        expected, found = "a head that is the embedding", f"{TIED} false"
    for role, blocks in row.from_blocks.items():
        if reader.flag(reader.family.optional.get(role, False)) and sizes.blocks < blocks:
            expected, found = f"no {role} in so few blocks", f"one in {sizes.blocks} blocks"
    for role in row.biases:
        if not reader.flag(reader.family.biases.get(role, False)):
            expected, found = f"a bias of {role}", "none"
    for role, flag in reader.family.biases.items():
        if row.unbiased and reader.flag(flag):
            expected, found = f"no bias of {role}", "one"
    if expected is not None:
        raise UsageError(
            f"llama.cpp's {row.name} cannot express this model",
            where="config.json",
            expected=expected,
            found=found,
        )


def _window(row: Architecture, kinds: tuple[BlockKind, ...], sizes: Sizes) -> int | None:
    """The sliding window of every block; None where it never cuts anything off."""
    windows = {kind.window for kind in kinds}
    if row.windows:
        return next((window for window in windows if window is not None), None)
    cutting = {window for window in windows if window is not None and window < sizes.positions}
    if not cutting:
        return None
    if row.windowed is None or len(windows) > 1:
        raise UsageError(
            f"llama.cpp's {row.name} has no sliding window",
            where="config.json: sliding_window",
            expected="none",
            found=min(cutting),
        )
    return min(cutting)
