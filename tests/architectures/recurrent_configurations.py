"""Tiny configurations of models that keep a state of constant size.

In: nothing. Out: RECURRENT, variants by name, as tests/architectures/tiny_models.py has them.
Widths are odd, epsilons large, and what a family does every few blocks happens within three.
"""

from __future__ import annotations

from typing import Any

from mixture_configurations import USUAL

RWKV: dict[str, Any] = {
    "model_type": "rwkv",
    "vocab_size": 97,
    "context_length": 32,
    "hidden_size": 39,
    "attention_hidden_size": None,
    "num_hidden_layers": 3,
    "intermediate_size": None,
    "layer_norm_epsilon": 0.02,
    "rescale_every": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}

RWKV7: dict[str, Any] = {
    "model_type": "rwkv7",
    "vocab_size": 97,
    "hidden_size": 39,
    "num_hidden_layers": 3,
    "head_dim": 13,
    "num_heads": None,
    "hidden_ratio": 1.7,
    "intermediate_size": None,
    "decay_low_rank_dim": 5,
    "a_low_rank_dim": 6,
    "v_low_rank_dim": 3,
    "gate_low_rank_dim": 9,
    "hidden_act": "sqrelu",
    "norm_eps": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}

RWKV6: dict[str, Any] = {
    "model_type": "rwkv6",
    "vocab_size": 97,
    "hidden_size": 39,
    "attention_hidden_size": 39,
    "num_hidden_layers": 3,
    "head_size": 13,
    "head_size_divisor": 3,
    "intermediate_size": None,
    "lora_rank_tokenshift": 5,
    "lora_rank_decay": 7,
    "layer_norm_epsilon": 0.02,
    "rescale_every": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}

LFM2: dict[str, Any] = {
    "model_type": "lfm2",
    "vocab_size": 97,
    "hidden_size": 42,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "intermediate_size": 71,
    "block_multiple_of": 7,
    "block_ffn_dim_multiplier": 1.3,
    "block_auto_adjust_ff_dim": True,
    "conv_L_cache": 3,
    "conv_bias": False,
    "full_attn_idxs": [1],
    "max_position_embeddings": 160,
    "norm_eps": 0.02,
    "rope_theta": 300.0,
    "tie_embedding": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}

QWEN3_NEXT: dict[str, Any] = USUAL | {
    "model_type": "qwen3_next",
    "hidden_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 0.02,
    "full_attention_interval": 2,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 7,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 13,
    "shared_expert_intermediate_size": 11,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
}

DENSE_ONLY = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
DENSE_ONLY += ("shared_expert_intermediate_size", "decoder_sparse_step", "mlp_only_layers")
QWEN3_5 = {key: value for key, value in QWEN3_NEXT.items() if key not in DENSE_ONLY}
QWEN3_5 |= {"model_type": "qwen3_5_text", "tie_word_embeddings": False}
QWEN3_5_MOE = QWEN3_5 | {key: QWEN3_NEXT[key] for key in DENSE_ONLY[:4]}
QWEN3_5_MOE |= {"model_type": "qwen3_5_moe_text"}

MAMBA2: dict[str, Any] = {
    "model_type": "mamba2",
    "vocab_size": 97,
    "hidden_size": 42,
    "num_hidden_layers": 3,
    "num_heads": 12,
    "head_dim": 7,
    "n_groups": 3,
    "state_size": 5,
    "expand": 2,
    "conv_kernel": 3,
    "layer_norm_epsilon": 0.02,
    "hidden_act": "silu",
    "use_bias": False,
    "use_conv_bias": True,
    "chunk_size": 32,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}
SCAN = {"mamba_n_heads": 6, "mamba_d_head": "auto", "mamba_n_groups": 2, "mamba_d_state": 5}
SCAN |= {"mamba_d_conv": 3, "mamba_expand": 2, "mamba_chunk_size": 32}
BAMBA = USUAL | SCAN | {"model_type": "bamba", "hidden_size": 48, "attn_layer_indices": [1]}
BAMBA = {key: value for key, value in BAMBA.items() if key != "head_dim"}
BAMBA |= {"num_attention_heads": 3, "tie_word_embeddings": False, "attention_bias": False}
GRANITE4: dict[str, Any] = BAMBA | {
    "model_type": "granitemoehybrid",
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "intermediate_size": 13,
    "shared_intermediate_size": 71,
    "embedding_multiplier": 1.7,
    "logits_scaling": 2.5,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.3,
    "position_embedding_type": "rope",
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
del GRANITE4["attn_layer_indices"]

ADJUSTED = ("block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of")
LFM2_MOE = {key: value for key, value in LFM2.items() if key not in (*ADJUSTED, "full_attn_idxs")}
LFM2_MOE |= {"model_type": "lfm2_moe", "layer_types": ["conv", "full_attention", "conv"]}
LFM2_MOE |= {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 13}
LFM2_MOE |= {"num_dense_layers": 1, "use_expert_bias": True, "routed_scaling_factor": 1.7}

RECURRENT: dict[str, dict[str, Any]] = {
    "rwkv": RWKV,
    "rwkv-wide": RWKV
    | {"attention_hidden_size": 54, "intermediate_size": 71}
    | {"rescale_every": 0, "tie_word_embeddings": True},
    "rwkv6": RWKV6,
    "rwkv6-halved": RWKV6
    | {"intermediate_size": 71, "head_norm_eps": 0.05, "halved_every": 2}
    | {"lora_rank_tokenshift": None, "lora_rank_decay": None, "tie_word_embeddings": True},
    "rwkv7": RWKV7,
    "rwkv7-plain": RWKV7
    | {"head_dim": None, "num_heads": 3, "norm_first": False, "norm_bias": False}
    | {"intermediate_size": 71, "tie_word_embeddings": True},
    "mamba2": MAMBA2,
    "mamba2-biases": MAMBA2
    | {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": True},
    "bamba": BAMBA,
    "bamba-biases": BAMBA
    | {"attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True}
    | {"attn_layer_indices": [0, 2], "mamba_conv_bias": False},
    "granitemoehybrid": GRANITE4,
    "granitemoehybrid-dense": GRANITE4
    | {"num_local_experts": 0, "position_embedding_type": "nope", "layer_types": None}
    | {"mamba_proj_bias": True, "tie_word_embeddings": True},
    "lfm2": LFM2,
    "lfm2_moe": LFM2_MOE,
    "lfm2_moe-raw": LFM2_MOE
    | {"use_expert_bias": False, "norm_topk_prob": False, "tie_embedding": True},
    "qwen3_next": QWEN3_NEXT,
    "qwen3_5_text": QWEN3_5,
    "qwen3_5_moe_text": QWEN3_5_MOE,
    "qwen3_next-kinds": QWEN3_NEXT
    | {"layer_types": ["full_attention", "linear_attention", "linear_attention"]}
    | {"linear_num_value_heads": 2, "norm_topk_prob": False, "attention_bias": True}
    | {"tie_word_embeddings": True, "mlp_only_layers": []},
    "lfm2-biases": LFM2
    | {"conv_bias": True, "conv_L_cache": 5, "block_auto_adjust_ff_dim": False}
    | {"layer_types": ["full_attention", "conv", "conv"], "tie_embedding": True},
}

WIDE_HEADS = {"hidden_size": 128, "head_norm_eps": 64e-5}

RECURRENT_FOR_GGUF = {
    "rwkv6": RWKV6 | WIDE_HEADS | {"head_size": 64, "attention_hidden_size": None},
    "rwkv6-halved": RWKV6
    | WIDE_HEADS
    | {"head_size": 64, "attention_hidden_size": None, "halved_every": 2},
    "rwkv7": RWKV7
    | WIDE_HEADS
    | {"head_dim": 64, "gate_low_rank_dim": 24, "a_low_rank_dim": 16, "decay_low_rank_dim": 8},
}
"""With heads as wide as llama.cpp's kernels want them, and the one epsilon that it has for them."""

HYBRIDS_FOR_GGUF: dict[str, dict[str, Any]] = {
    "mamba2": MAMBA2,
    "mamba2-tied": MAMBA2 | {"tie_word_embeddings": True, "n_groups": 1, "conv_kernel": 4},
    "bamba": BAMBA,
    "bamba-biases": BAMBA
    | {"attention_bias": True, "mlp_bias": True, "attn_layer_indices": [0, 2]}
    | {"num_key_value_heads": 3},
    "granitemoehybrid": GRANITE4 | {"position_embedding_type": "nope"},
    "granitemoehybrid-dense": GRANITE4
    | {"num_local_experts": 0, "position_embedding_type": "nope", "attention_bias": True}
    | {"tie_word_embeddings": True},
    "lfm2": LFM2,
    "lfm2-tied": LFM2
    | {"conv_L_cache": 4, "tie_embedding": True, "full_attn_idxs": [0, 2]}
    | {"block_auto_adjust_ff_dim": False},
    "lfm2_moe": LFM2_MOE | {"routed_scaling_factor": 1.0},
    # Values as wide as keys, and the epsilon of their lengths, as its code has them.
    "qwen3_next": QWEN3_NEXT
    | {"linear_value_head_dim": 12, "rms_norm_eps": 1e-6}
    | {"mlp_only_layers": []},
    "qwen3_next-tied": QWEN3_NEXT
    | {"linear_value_head_dim": 12, "rms_norm_eps": 1e-6}
    | {"mlp_only_layers": [], "linear_num_value_heads": 2, "tie_word_embeddings": True}
    | {"full_attention_interval": 3},
}
"""Those that an architecture of llama.cpp can express."""
