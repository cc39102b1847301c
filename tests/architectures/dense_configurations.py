"""Tiny configurations of the decoders without experts that came after the first seven families.

In: nothing. Out: DENSE, variants by name, as tests/architectures/tiny_models.py has them.
Spelled as transformers 4 writes them. Heads are odd in number or in width, windows shorter than
the text, scales far from 1.
"""

from __future__ import annotations

from typing import Any

Configuration = dict[str, Any]

BASE: Configuration = {
    "vocab_size": 97,
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 71,
    "max_position_embeddings": 160,
    "rms_norm_eps": 0.02,
    "hidden_act": "silu",
    "rope_theta": 300.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
ODD = {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 39}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]


def of(base: Configuration, model_type: str, *left_out: str, **changed: Any) -> Configuration:
    """A configuration like another's, without some keys."""
    left = {key: value for key, value in base.items() if key not in left_out}
    return left | changed | {"model_type": model_type}


LAYERED = of(BASE, "", "rms_norm_eps")
"""Of families whose norm takes the mean off: each calls its epsilon its own name."""

QWEN3 = of(BASE, "qwen3", **ODD, head_dim=14, sliding_window=13, use_sliding_window=True)
QWEN3 |= {"max_window_layers": 1}
GEMMA = of(BASE, "gemma", head_dim=14, hidden_act="gelu_pytorch_tanh")
GEMMA2 = of(GEMMA, "gemma2", "hidden_act", hidden_activation="gelu_pytorch_tanh")
GEMMA2 |= {"sliding_window": 11, "query_pre_attn_scalar": 9}
GEMMA2 |= {"attn_logit_softcapping": 2.5, "final_logit_softcapping": 6.0}
UNCAPPED = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
GEMMA3 = of(GEMMA2, "gemma3_text", sliding_window_pattern=3, rope_local_base_freq=50.0) | UNCAPPED
SMOLLM3 = of(BASE, "smollm3", no_rope_layer_interval=2)
OLMO2 = of(BASE, "olmo2")
PHI = of(LAYERED, "phi", layer_norm_eps=0.02, hidden_act="gelu_new", partial_rotary_factor=0.6)
GRANITE = of(BASE, "granite", embedding_multiplier=1.7, attention_multiplier=0.21)
GRANITE |= {"residual_multiplier": 0.6, "logits_scaling": 1.9}
COHERE = of(LAYERED, "cohere", layer_norm_eps=0.02, logit_scale=0.3)
STABLELM = of(LAYERED, "stablelm", layer_norm_eps=0.02, partial_rotary_factor=0.4)
GLM4 = of(BASE, "glm4", **ODD, head_dim=10, partial_rotary_factor=0.6, attention_bias=True)
STARCODER2 = of(LAYERED, "starcoder2", norm_epsilon=0.02, hidden_act="gelu_pytorch_tanh")

PHI3 = of(BASE, "phi3", partial_rotary_factor=0.65)
LONG = {"type": "longrope", "short_factor": [1.1, 1.3, 1.7], "long_factor": [1.2, 2.5, 3.5]}
OPT = of(BASE, "opt", "rms_norm_eps", "hidden_act", "rope_theta", "intermediate_size")
OPT |= {"ffn_dim": 71, "word_embed_proj_dim": None, "num_attention_heads": 5}

FALCON = of(LAYERED, "falcon", "hidden_act", "intermediate_size", "num_key_value_heads")
FALCON |= {"layer_norm_epsilon": 0.02, "ffn_hidden_size": 71}

BLOOM = {
    "model_type": "bloom",
    "vocab_size": 97,
    "hidden_size": 42,
    "n_layer": 3,
    "n_head": 6,
    "seq_length": 160,
    "layer_norm_epsilon": 0.02,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROWING = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 20}
GROWING |= {"llama_4_scaling_beta": 0.3, "mscale": 1.0, "mscale_all_dim": 1.0}
MINISTRAL3 = of(BASE, "ministral3", **ODD, head_dim=14, rope_scaling=GROWING)
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 97,
    "n_embd": 39,
    "n_layer": 3,
    "n_head": 3,
    "n_inner": 71,
    "n_positions": 160,
    "layer_norm_epsilon": 0.02,
    "activation_function": "gelu_new",
    "bos_token_id": 1,
    "eos_token_id": 2,
}

OLMO3_ROPES = {
    "full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 300.0}
    | {"original_max_position_embeddings": 40},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}
OLMO3 = of(BASE, "olmo3", "rope_theta", rope_parameters=OLMO3_ROPES, sliding_window=11)
OLMO3 |= {"num_hidden_layers": 5}
SEED = of(BASE, "seed_oss", **ODD, head_dim=14)
ERNIE = of(BASE, "ernie4_5", **ODD, head_dim=14)

DENSE: dict[str, Configuration] = {
    "gpt2": GPT2,
    "gpt2-unscaled": GPT2
    | UNTIED
    | {"n_inner": None, "scale_attn_weights": False, "activation_function": "relu"}
    | {"scale_attn_by_inverse_layer_idx": True},
    "qwen3": QWEN3,
    "qwen3-biases": QWEN3 | TIED | {"attention_bias": True, "use_sliding_window": False},
    "gemma": GEMMA,
    "gemma-old": GEMMA | UNTIED | {"hidden_act": "gelu", "attention_bias": True},
    "gemma2": GEMMA2,
    "gemma2-uncapped": GEMMA2 | UNCAPPED | {"layer_types": WINDOWS[::-1]},
    "gemma3_text": GEMMA3,
    "gemma3_text-linear": GEMMA3
    | {"rope_scaling": {"rope_type": "linear", "factor": 3.0}, "layer_types": WINDOWS}
    | {"final_logit_softcapping": 7.0, "attn_logit_softcapping": 3.0},
    "smollm3": SMOLLM3,
    "smollm3-windows": SMOLLM3
    | UNTIED
    | {"no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 9}
    | {"attention_bias": True, "mlp_bias": True},
    "olmo2": OLMO2,
    "olmo2-biases": OLMO2 | TIED | {"attention_bias": True},
    "olmo3": OLMO3,
    "olmo3-kinds": OLMO3 | TIED | {"layer_types": [*WINDOWS, *WINDOWS[:2]], "attention_bias": True},
    "seed_oss": SEED,
    "seed_oss-biases": SEED
    | TIED
    | {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True},
    "ernie4_5": ERNIE,
    "ernie4_5-biases": ERNIE | UNTIED | {"use_bias": True},
    "phi": PHI,
    "phi-norms": PHI | {"qk_layernorm": True},
    "granite": GRANITE,
    "granite-tied": GRANITE
    | TIED
    | {"attention_bias": True, "mlp_bias": True, "residual_multiplier": 1.0},
    "cohere": COHERE,
    "cohere-norms": COHERE | UNTIED | {"use_qk_norm": True, "attention_bias": True},
    "cohere2": of(COHERE, "cohere2", sliding_window=11, sliding_window_pattern=2),
    "stablelm": STABLELM,
    "stablelm-parallel": STABLELM | TIED | {"use_parallel_residual": True, "use_qkv_bias": True},
    "glm4": GLM4,
    "glm4-tied": GLM4 | TIED | {"attention_bias": False},
    "glm": of(GLM4, "glm"),
    "starcoder2": STARCODER2 | {"sliding_window": 11},
    "starcoder2-plain": STARCODER2 | UNTIED | {"use_bias": False, "sliding_window": None},
    "phi3": PHI3,
    "phi3-short": PHI3 | {"original_max_position_embeddings": 200, "rope_scaling": LONG},
    "phi3-long": PHI3
    | TIED
    | {"original_max_position_embeddings": 50, "rope_scaling": LONG}
    | {"sliding_window": 23},
    "opt": OPT,
    "opt-after": OPT | UNTIED | {"do_layer_norm_before": False, "enable_bias": False},
    "opt-last": OPT | {"_remove_final_layer_norm": True, "activation_function": "gelu"},
    "falcon": FALCON,
    "falcon-new": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "falcon-shared": FALCON
    | UNTIED
    | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "falcon-sequential": FALCON
    | {"parallel_attn": False, "multi_query": False, "ffn_hidden_size": None},
    "falcon-slopes": FALCON
    | {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
    "bloom": BLOOM,
    "bloom-normed": BLOOM | UNTIED | {"apply_residual_connection_post_layernorm": True},
    "ministral3": MINISTRAL3,
    "ministral3-window": MINISTRAL3 | TIED | {"sliding_window": 11, "head_dim": 10},
    "ministral": of(BASE, "ministral", head_dim=14, sliding_window=11, layer_types=WINDOWS),
}

LINEAR = {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}
NO_WINDOW = {"use_sliding_window": False}
FIVE_BLOCKS = {"num_hidden_layers": 5}
GEMMA3_OF_SIX = GEMMA3 | {"query_pre_attn_scalar": 14, "sliding_window_pattern": 6}
GEMMA3_OF_SIX |= {"final_logit_softcapping": 9.0, "rope_local_base_freq": 10000.0}

FOR_GGUF: dict[str, Configuration] = {
    "bloom": DENSE["bloom"],
    "falcon": DENSE["falcon"],
    "falcon-new": DENSE["falcon-new"] | {"bias": False},
    "falcon-shared": DENSE["falcon-shared"],
    "ministral3": DENSE["ministral3"],
    "phi3": DENSE["phi3"],
    "phi3-short": DENSE["phi3-short"]
    | {"original_max_position_embeddings": 260, "max_position_embeddings": 300},
    "phi3-long": DENSE["phi3-long"] | {"sliding_window": None, "tie_word_embeddings": False},
    "gpt2": DENSE["gpt2"],
    "qwen3": DENSE["qwen3"] | NO_WINDOW,
    "gemma": DENSE["gemma"],
    "gemma2": DENSE["gemma2"] | {"query_pre_attn_scalar": 14},
    "gemma3_text": GEMMA3_OF_SIX,
    "gemma3_text-long": GEMMA3_OF_SIX | LINEAR | {"num_hidden_layers": 7},
    "smollm3": DENSE["smollm3"] | FIVE_BLOCKS | {"no_rope_layer_interval": 4},
    "olmo2": DENSE["olmo2"],
    "olmo3": DENSE["olmo3"],
    "seed_oss": DENSE["seed_oss"],
    "seed_oss-plain": DENSE["seed_oss"] | TIED | {"attention_bias": False},
    "ernie4_5": DENSE["ernie4_5"],
    "granite": DENSE["granite"],
    "granite-tied": DENSE["granite-tied"],
    "cohere": DENSE["cohere"],
    "cohere-norms": DENSE["cohere"] | {"num_hidden_layers": 64, "use_qk_norm": True},
    "cohere2": DENSE["cohere2"] | FIVE_BLOCKS | {"sliding_window_pattern": 4},
    "stablelm": DENSE["stablelm"],
    "stablelm-parallel": DENSE["stablelm-parallel"] | {"tie_word_embeddings": False},
    "glm4": DENSE["glm4"],
    "starcoder2": DENSE["starcoder2-plain"] | {"use_bias": True},
    "phi": DENSE["phi"],
}
"""Those that an architecture of llama.cpp can express."""
