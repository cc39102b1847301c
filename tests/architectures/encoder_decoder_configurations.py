"""Tiny configurations of the families that read a source and write a text.

In: nothing. Out: ENCODER_DECODERS, variants by name, spelled as transformers 4 writes them.
Heads are odd in number or width and do not make up the hidden size, the halves differ in depth,
buckets are few and their farthest distance is shorter than the texts.
"""

from __future__ import annotations

from typing import Any

T5: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 97,
    "d_model": 42,
    "d_kv": 10,
    "d_ff": 71,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 50,
    "layer_norm_epsilon": 0.02,
    "feed_forward_proj": "relu",
    "n_positions": 160,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": T5,
    "t5-gated": T5 | GATED | {"num_decoder_layers": None, "d_model": 40, "num_heads": 5},
    "t5-buckets": T5
    | {"feed_forward_proj": "gated-silu", "num_decoder_layers": 1, "num_heads": 1, "d_kv": 23}
    | {"relative_attention_num_buckets": 7, "relative_attention_max_distance": 300},
    "umt5": T5 | GATED | {"model_type": "umt5"},
    "umt5-tied": T5 | {"model_type": "umt5", "feed_forward_proj": "relu", "num_layers": 3},
}
