"""Tiny configurations of the families with experts, hard ones: odd heads, few and all experts used.

In: nothing. Out: MIXTURES, by variant, spelled as transformers 4 writes them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

USUAL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 39,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 10,
    "intermediate_size": 71,
    "max_position_embeddings": 160,
    "rms_norm_eps": 0.02,
    "hidden_act": "silu",
    "rope_theta": 300.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WHOLE = {key: value for key, value in USUAL.items() if key != "head_dim"}
WHOLE |= {"hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
FEW = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 22}
LOCAL = {"num_local_experts": 5, "num_experts_per_tok": 2}

MIXTRAL = USUAL | LOCAL | {"model_type": "mixtral"}
QWEN2 = WHOLE | FEW | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 37}
QWEN2 |= {"use_sliding_window": True, "sliding_window": 13, "max_window_layers": 3}
QWEN3 = USUAL | FEW | {"model_type": "qwen3_moe", "norm_topk_prob": True}
OLMOE = WHOLE | {"model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 2}
GRANITE = WHOLE | LOCAL | {"model_type": "granitemoe", "embedding_multiplier": 1.7}
GRANITE |= {"logits_scaling": 2.5, "residual_multiplier": 0.6, "attention_multiplier": 0.3}
GPT_OSS = USUAL | LOCAL | {"model_type": "gpt_oss", "sliding_window": 17, "swiglu_limit": 0.8}
GLM4 = USUAL | {"model_type": "glm4_moe", "n_routed_experts": 12, "num_experts_per_tok": 3}
GLM4 |= {"moe_intermediate_size": 22, "n_shared_experts": 2, "routed_scaling_factor": 1.8}
GLM4 |= {"partial_rotary_factor": 0.4, "n_group": 4, "topk_group": 2}
DEEPSEEK = USUAL | {"model_type": "deepseek_v3", "n_routed_experts": 12, "num_experts_per_tok": 3}
DEEPSEEK |= {"moe_intermediate_size": 22, "n_shared_experts": 2, "routed_scaling_factor": 1.8}
DEEPSEEK |= {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 1, "kv_lora_rank": 21}
DEEPSEEK |= {"q_lora_rank": 17, "qk_nope_head_dim": 11, "qk_rope_head_dim": 6, "v_head_dim": 13}
DEEPSEEK |= {"num_key_value_heads": 3}
del DEEPSEEK["head_dim"]
EVEN = DEEPSEEK | {"model_type": "deepseek_v2", "kv_lora_rank": 22, "qk_nope_head_dim": 12}
LLAMA4 = USUAL | LOCAL | {"model_type": "llama4_text", "intermediate_size": 22}
LLAMA4 |= {"num_hidden_layers": 4, "intermediate_size_mlp": 37, "interleave_moe_layer_step": 2}
LLAMA4 |= {"no_rope_layer_interval": 3, "attention_chunk_size": 13, "floor_scale": 20}
LLAMA4 |= {"attn_scale": 0.4}
ABRUPT = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0}
ABRUPT |= {"original_max_position_embeddings": 40}
SCALES = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}
SCALES |= {"mscale": 0.9, "mscale_all_dim": 0.7}

MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": MIXTRAL,
    "mixtral-window": MIXTRAL | {"sliding_window": 11, "num_experts_per_tok": 5},
    "qwen2_moe": QWEN2,
    "qwen2_moe-some": QWEN2
    | {"decoder_sparse_step": 2, "qkv_bias": False, "use_sliding_window": False},
    "qwen3_moe": QWEN3,
    "qwen3_moe-some": QWEN3
    | {"mlp_only_layers": [1], "norm_topk_prob": False, "attention_bias": True}
    | {"use_sliding_window": True, "sliding_window": 9},
    "olmoe": OLMOE,
    "olmoe-clipped": OLMOE | {"clip_qkv": 0.6, "norm_topk_prob": True, "tie_word_embeddings": True},
    "gpt_oss": GPT_OSS,
    "gpt_oss-tied": GPT_OSS | {"tie_word_embeddings": True, "swiglu_alpha": 1.1},
    "glm4_moe": GLM4 | {"attention_bias": True, "use_qk_norm": True},
    "glm4_moe-ungrouped": GLM4
    | {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "first_k_dense_replace": 0},
    "deepseek_v2": EVEN | {"q_lora_rank": None, "rope_scaling": SCALES},
    "deepseek_v2-groups": EVEN | {"topk_method": "group_limited_greedy", "attention_bias": True},
    "glm4_moe_lite": DEEPSEEK
    | {"model_type": "glm4_moe_lite", "mlp_layer_types": ["dense", "dense", "sparse"]},
    "deepseek_v3": DEEPSEEK | {"rope_scaling": SCALES},
    "deepseek_v3-halves": DEEPSEEK
    | {"rope_interleave": False, "norm_topk_prob": False, "attention_bias": True},
    "llama4_text": LLAMA4,
    "llama4_text-named": LLAMA4
    | {"moe_layers": [0, 3], "no_rope_layers": [0, 1, 1, 0], "rope_scaling": ABRUPT}
    | {"layer_types": ["chunked_attention", "full_attention"] * 2, "num_experts_per_tok": 5}
    | {"attention_bias": True, "tie_word_embeddings": True, "use_qk_norm": False},
    "llama4_text-plain": LLAMA4
    | {"attention_chunk_size": None, "attn_temperature_tuning": False, "num_experts_per_tok": 1},
    "granitemoe": GRANITE,
    "granitemoe-tied": GRANITE | {"tie_word_embeddings": True, "attention_bias": True},
}

SMOOTH = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 20}
SMOOTH |= {"truncate": False}
WHOLE_PAIR = float(str(np.float32((20 / (2 * math.pi)) ** (5 / (1 - 1e-6)))))
"""A base with which that yarn ends all but at a pair: llama.cpp, which rounds up, agrees."""

USUAL_LLAMA4 = LLAMA4 | {"num_hidden_layers": 5, "no_rope_layer_interval": 4}
USUAL_LLAMA4 |= {"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1}

LATENT = DEEPSEEK | {"rms_norm_eps": 1e-6}
BALANCED = SCALES | {"mscale": 0.7}

MIXTURES_FOR_GGUF: dict[str, dict[str, Any]] = {
    "mixtral": MIXTRAL,
    "qwen2_moe": QWEN2 | {"use_sliding_window": False},
    "qwen3_moe": QWEN3,
    "olmoe": OLMOE | {"num_key_value_heads": 4},
    "llama4_text": USUAL_LLAMA4,
    "llama4_text-scaled": USUAL_LLAMA4
    | {"rope_scaling": ABRUPT, "interleave_moe_layer_step": 1, "num_experts_per_tok": 1},
    "deepseek_v2": LATENT | {"model_type": "deepseek_v2", "topk_method": "greedy"},
    "deepseek_v2-lite": LATENT
    | {"model_type": "deepseek_v2", "num_hidden_layers": 27, "q_lora_rank": None}
    | {"rope_scaling": BALANCED},
    "deepseek_v3": LATENT | {"rope_scaling": BALANCED},
    "deepseek_v3-ungrouped": LATENT
    | {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "first_k_dense_replace": 0},
    "granitemoe": GRANITE,
    "granitemoe-tied": MIXTURES["granitemoe-tied"],
    "gpt_oss": GPT_OSS | {"swiglu_limit": 7.0, "rope_scaling": SMOOTH, "rope_theta": WHOLE_PAIR},
    "glm4_moe": MIXTURES["glm4_moe"] | {"n_group": 1, "topk_group": 1},
    "glm4_moe-plain": MIXTURES["glm4_moe-ungrouped"],
}
"""Those that an architecture of llama.cpp can express."""
