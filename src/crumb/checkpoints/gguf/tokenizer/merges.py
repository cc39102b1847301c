"""The parts of a tokenizer.json whose bytes merge by a list.

In: tokens by their texts, merges in order, a row of pre-tokenizers. Out: the model and the decoder.
Refuses nothing: gguf/tokenizer/reader.py checks what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crumb.checkpoints.gguf.tokenizer.pre_tokenizers import PreTokenizer

BYTE_DECODER: Mapping[str, Any] = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": True,
    "use_regex": True,
}


def merge_model(
    texts: Mapping[str, int], merges: Sequence[tuple[str, str]], row: PreTokenizer
) -> dict[str, Any]:
    """Pairs that merge, the first of the list first."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": row.whole_words,
        "vocab": texts,
        "merges": merges,
    }
