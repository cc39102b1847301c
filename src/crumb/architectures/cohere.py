"""cohere: Command-R: attention and MLP in parallel behind one norm, scaled logits."""

from dataclasses import replace

from crumb.architectures.block import PARALLEL_OF_ONE_NORM
from crumb.architectures.family import LAYER_WITHOUT_BIAS, HeadNorm, Multipliers
from crumb.architectures.llama import FAMILY as LLAMA

FAMILY = replace(
    LLAMA,
    model_type="cohere",
    keys={
        **{word: key for word, key in LLAMA.keys.items() if word != "head_dim"},
        "epsilon": "layer_norm_eps",
        "logit_scale": "logit_scale",
    },
    defaults={
        **LLAMA.defaults,
        "epsilon": 1e-5,
        "positions": 8192,
        "theta": 500000.0,
        "logit_scale": 0.0625,
        "use_qk_norm": False,
    },
    tensors={
        **{role: name for role, name in LLAMA.tensors.items() if role != "mlp_norm"},
        "query_norm": "model.layers.{block}.self_attn.q_norm",
        "key_norm": "model.layers.{block}.self_attn.k_norm",
    },
    biases={role: flag for role, flag in LLAMA.biases.items() if flag == "attention_bias"},
    optional={"query_norm": "use_qk_norm", "key_norm": "use_qk_norm"},
    norm=LAYER_WITHOUT_BIAS,
    block=PARALLEL_OF_ONE_NORM,
    rotary="interleaved",
    head_norm=HeadNorm("layer", per_channel=True),
    multipliers=lambda reader: Multipliers(logits=reader.number("logit_scale")),
    tied=True,
)
