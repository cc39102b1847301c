"""phi: Phi-1, 1.5 and 2: attention and MLP in parallel behind one norm, biases everywhere."""

from crumb.architectures.block import PARALLEL_OF_ONE_NORM
from crumb.architectures.family import LAYER, Family, HeadNorm
from crumb.architectures.llama import FAMILY as LLAMA

ROLES = ("query", "key", "value", "output", "up", "down", "head")

FAMILY = Family(
    model_type="phi",
    keys={
        **{word: key for word, key in LLAMA.keys.items() if word != "head_dim"},
        "epsilon": "layer_norm_eps",
    },
    defaults={
        **LLAMA.defaults,
        "activation": "gelu_new",
        "epsilon": 1e-5,
        "rotary_share": 0.5,
        "qk_layernorm": False,
    },
    tensors={
        "embedding": "model.embed_tokens",
        "attention_norm": "model.layers.{block}.input_layernorm",
        "query": "model.layers.{block}.self_attn.q_proj",
        "key": "model.layers.{block}.self_attn.k_proj",
        "value": "model.layers.{block}.self_attn.v_proj",
        "query_norm": "model.layers.{block}.self_attn.q_layernorm",
        "key_norm": "model.layers.{block}.self_attn.k_layernorm",
        "output": "model.layers.{block}.self_attn.dense",
        "up": "model.layers.{block}.mlp.fc1",
        "down": "model.layers.{block}.mlp.fc2",
        "final_norm": "model.final_layernorm",
        "head": "lm_head",
    },
    biases=dict.fromkeys(ROLES, True),
    optional={"query_norm": "qk_layernorm", "key_norm": "qk_layernorm"},
    norm=LAYER,
    block=PARALLEL_OF_ONE_NORM,
    head_norm=HeadNorm("layer", bias=True),
)
