"""gptj: GPT-J, attention and MLP in parallel behind one norm."""

from crumb.architectures.block import PARALLEL_OF_ONE_NORM
from crumb.architectures.family import LAYER, Family

FAMILY = Family(
    model_type="gptj",
    keys={
        "hidden": "n_embd",
        "blocks": "n_layer",
        "heads": "n_head",
        "feed_forward": "n_inner",
        "vocabulary": "vocab_size",
        "positions": "n_positions",
        "epsilon": "layer_norm_epsilon",
        "activation": "activation_function",
        "rotary_dimensions": "rotary_dim",
    },
    defaults={
        "activation": "gelu_new",
        "epsilon": 1e-5,
        "feed_forward": None,
        "positions": 2048,
        "rotary_dimensions": 64,
        "theta": 10000.0,
    },
    tensors={
        "embedding": "transformer.wte",
        "attention_norm": "transformer.h.{block}.ln_1",
        "query": "transformer.h.{block}.attn.q_proj",
        "key": "transformer.h.{block}.attn.k_proj",
        "value": "transformer.h.{block}.attn.v_proj",
        "output": "transformer.h.{block}.attn.out_proj",
        "up": "transformer.h.{block}.mlp.fc_in",
        "down": "transformer.h.{block}.mlp.fc_out",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    biases={"up": True, "down": True, "head": True},
    norm=LAYER,
    block=PARALLEL_OF_ONE_NORM,
    rotary="interleaved",
)
