"""ernie4_5: ERNIE 4.5: llama that rotates in pairs, with biases everywhere or nowhere."""

from dataclasses import replace

from crumb.architectures.llama import FAMILY as LLAMA

FAMILY = replace(
    LLAMA,
    model_type="ernie4_5",
    defaults={**LLAMA.defaults, "key_value_heads": 2, "head_dim": 128, "epsilon": 1e-5}
    | {"positions": 131072, "theta": 500000.0},
    rotary="interleaved",
    biases=dict.fromkeys(LLAMA.biases, "use_bias"),
    tied=True,
)
