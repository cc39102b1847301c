"""Latent attention in GGUF: its widths in both spellings.

In: a file's metadata, or a family's view of a configuration. Out: our words, or keys.
Files say the widths of the absorbed form, in which all heads share one key, and those of heads
beside them; older ones say those of heads alone.
Refuses epsilons that norms of latents do not have, and groups that leave nothing out.
"""

from __future__ import annotations

import math
from typing import Any

from crumb.architectures.latent import EPSILON
from crumb.architectures.reader import Reader
from crumb.checkpoints.gguf.architecture import Architecture
from crumb.checkpoints.gguf.header import Value
from crumb.checkpoints.gguf.metadata import Metadata
from crumb.errors import UsageError

KEY_WIDTH, VALUE_WIDTH = "attention.key_length", "attention.value_length"
ABSORBED = "_mla"
"""Behind both keys where they say the widths of heads, and not of the absorbed form."""

RANK, QUERY_RANK = "attention.kv_lora_rank", "attention.q_lora_rank"
KEY_VALUE_HEADS, ROTATED = "attention.head_count_kv", "rope.dimension_count"

UNRANKED_BLOCKS = (26, 27)
"""Depths at which llama.cpp takes a missing rank of queries for none at all."""


def latent_words(metadata: Metadata, row: Architecture) -> dict[str, Any]:
    """The words of architectures/latent.py. Raises: CheckpointError."""
    if not math.isclose(metadata.number(row.key(row.epsilon)), EPSILON, rel_tol=1e-6):
        expected = f"{EPSILON:g}, as the norms of latents have"
        raise metadata.refuse(row.key(row.epsilon), expected)
    key, value = (
        row.key(each + ABSORBED) if row.key(each + ABSORBED) in metadata else row.key(each)
        for each in (KEY_WIDTH, VALUE_WIDTH)
    )
    turning, width = metadata.integer(row.key(ROTATED)), metadata.integer(key)
    if width <= turning:
        raise metadata.refuse(key, f"more than the {turning} features that rotate")
    query_rank = metadata.integer(row.key(QUERY_RANK), 0, lowest=0)
    return {
        "rank": metadata.integer(row.key(RANK)),
        "query_rank": query_rank or None,
        "plain": width - turning,
        "head_dim": turning,
        "rotary_dimensions": turning,
        "value_dim": metadata.integer(value),
    }


def latent_keys(reader: Reader) -> dict[str, Value]:
    """What is written in place of the widths of keys and values. Raises: UsageError."""
    rank, turning = reader.size("rank"), reader.sizes.head_dim
    ranked = reader.find("query_rank")[1] is not None
    blocks, epsilon = reader.sizes.blocks, reader.sizes.epsilon
    expected = None
    if not math.isclose(epsilon, EPSILON, rel_tol=1e-6):
        expected, found = f"an epsilon of {EPSILON:g}, as its norms of latents have", str(epsilon)
    elif not ranked and blocks not in UNRANKED_BLOCKS:
        expected, found = "a rank of queries, or 26 or 27 blocks", f"neither in {blocks} blocks"
    elif "groups" in reader.family.keys and 1 < _groups(reader) == reader.size("top_groups"):
        expected, found = "fewer groups that are chosen than there are", str(_groups(reader))
    if expected is not None:
        raise UsageError(
            "llama.cpp's deepseek2 cannot express this model",
            where="config.json",
            expected=expected,
            found=found,
        )
    keys: dict[str, Value] = {
        KEY_VALUE_HEADS: 1,
        KEY_WIDTH: rank + turning,
        VALUE_WIDTH: rank,
        KEY_WIDTH + ABSORBED: reader.size("plain") + turning,
        VALUE_WIDTH + ABSORBED: reader.size("value_dim"),
        RANK: rank,
    }
    return keys | ({QUERY_RANK: reader.size("query_rank")} if ranked else {})


def _groups(reader: Reader) -> int:
    return 1 if reader.find("groups")[1] is None else reader.size("groups")
