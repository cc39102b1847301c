"""The settings of a model in both spellings: metadata of a GGUF file, and config.json.

In: a file's metadata and the names of its tensors, or a configuration. Out: the other.
Refuses settings that the other side has no key for, and keys that would change the result.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from crumb.architectures.configuration import LIMIT, Configuration, shown
from crumb.architectures.family import BlockKind, Family
from crumb.architectures.reader import HIGHEST, Reader, Sizes
from crumb.architectures.registry import families
from crumb.checkpoints.gguf.architecture import (
    ARCHITECTURE_OF_FAMILY,
    TENSORS,
    Architecture,
    architecture_of,
)
from crumb.checkpoints.gguf.header import Value
from crumb.checkpoints.gguf.metadata import Metadata
from crumb.checkpoints.gguf.rope_scaling import Factors, read_scaling, scaling_keys
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

TOKEN_IDS = {"bos_token_id": TOKEN_KEYS["bos"], "eos_token_id": TOKEN_KEYS["eos"]}

NEUTRAL: dict[str, tuple[Value, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "rope.scaling.alpha": (0.0, 1.0),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}
"""Keys that would change the result -> the values with which they do not."""

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
}
"""What config.json calls the model's class."""


def read_configuration(
    metadata: Metadata, tensors: Collection[str], factors: Factors | None
) -> dict[str, Any]:
    """The config.json of a file; the names of its tensors say which biases there are.

    Raises: UnknownFamily, CheckpointError.
    """
    row = architecture_of(metadata)
    _refuse_other_results(metadata, row)
    window = metadata.integer(row.key(WINDOW), 0, lowest=0)
    if window and row.windowed is None:
        raise metadata.refuse(row.key(WINDOW), f"no window, as {row.name} of llama.cpp has none")
    model_type = row.windowed if window and row.windowed is not None else row.family
    family = families()[model_type]
    words: dict[str, Any] = {
        word: metadata.integer(row.key(short), highest=HIGHEST.get(word, LIMIT))
        for word, short in KEYS.items()
    }
    words["key_value_heads"] = metadata.integer(row.key(KEY_VALUE_HEADS), words["heads"])
    words["head_dim"] = _head_dim(metadata, row, words, family)
    words["vocabulary"] = _vocabulary(metadata, row)
    words["epsilon"] = metadata.number(row.key(row.epsilon))
    words["activation"] = row.activations[0]
    words |= _rotary(metadata, row, words["head_dim"], family, factors)
    configuration: dict[str, Any] = {
        "architectures": [CLASSES[model_type]],
        "model_type": model_type,
    }
    for word, key in family.keys.items():
        if word in words:
            configuration[key if isinstance(key, str) else key[0]] = words[word]
    if window:
        configuration["sliding_window"] = window
    for short in row.flags:
        configuration[short] = metadata.flag(row.key(short), True)
    return (
        configuration
        | _bias_flags(family, words["blocks"], tensors)
        | {"tie_word_embeddings": f"{TENSORS['head']}.weight" not in tensors}
        | _token_ids(metadata, words["vocabulary"])
    )


def _refuse_other_results(metadata: Metadata, row: Architecture) -> None:
    for short, values in NEUTRAL.items():
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
    metadata: Metadata, row: Architecture, head_dim: int, family: Family, factors: Factors | None
) -> dict[str, Any]:
    """The words of the rotary embedding."""
    rotated = metadata.integer(row.key(ROTATED), head_dim, highest=head_dim)
    if family.defaults["rotary_share"] == 1.0 and rotated != head_dim:
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


def _bias_flags(family: Family, blocks: int, tensors: Collection[str]) -> dict[str, bool]:
    """Which of the family's flags hold: those with a bias in the file."""
    flags: dict[str, bool] = {}
    for role, flag in family.biases.items():
        if isinstance(flag, str):
            names = (f"{TENSORS[role].format(block=block)}.bias" for block in range(blocks))
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
    rope: Rope
    metadata: dict[str, Value]


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
    reader = Reader(family, configuration)
    sizes, kinds = reader.sizes, family.kinds(reader)
    rope = kinds[0].rope
    assert rope is not None, "every architecture here rotates"
    _check_expressible(row, reader, sizes)
    keys: dict[str, Value] = {short: getattr(sizes, word) for word, short in KEYS.items()}
    keys |= {
        KEY_VALUE_HEADS: sizes.key_value_heads,
        KEY_WIDTH: sizes.head_dim,
        VALUE_WIDTH: sizes.head_dim,
        VOCABULARY: sizes.vocabulary,
        row.epsilon: sizes.epsilon,
        THETA: rope.theta,
        ROTATED: rope.dimensions,
    }
    window = _window(row, kinds, sizes)
    if window is not None:
        keys[WINDOW] = window
    keys |= {short: reader.flag(short) for short in row.flags}
    keys |= scaling_keys(rope, row.name)
    metadata: dict[str, Value] = {"general.architecture": row.name}
    metadata |= {row.key(short): value for short, value in keys.items()}
    return GgufModel(row, family, sizes, rope, metadata)


def _check_expressible(row: Architecture, reader: Reader, sizes: Sizes) -> None:
    """Refuse settings that the architecture has no key for. Raises: UsageError."""
    expected = found = None
    if sizes.activation not in row.activations:
        expected, found = f"activation {' or '.join(row.activations)}", sizes.activation
    elif row.whole_heads and sizes.heads * sizes.head_dim != sizes.hidden:
        found = f"{sizes.heads} heads of {sizes.head_dim}"
        expected = f"heads that make up the hidden size of {sizes.hidden}"
    for role in row.biases:
        if not reader.flag(reader.family.biases.get(role, False)):
            expected, found = f"a bias of {role}", "none"
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
