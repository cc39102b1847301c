"""mamba2: Mamba-2 and Codestral Mamba: a scan in every block, no attention and no MLP."""

from crumb.architectures.block import Added, Normed
from crumb.architectures.configuration import LIMIT
from crumb.architectures.family import Family, no_rotation
from crumb.architectures.scan import Scan, scan_tensors

FAMILY = Family(
    model_type="mamba2",
    keys={
        "hidden": "hidden_size",
        "blocks": "num_hidden_layers",
        "vocabulary": "vocab_size",
        "epsilon": "layer_norm_epsilon",
        "activation": "hidden_act",
        "scan_heads": "num_heads",
        "scan_dim": "head_dim",
        "scan_groups": "n_groups",
        "scan_state": "state_size",
        "expand": "expand",
        "taps": "conv_kernel",
    },
    defaults={
        "heads": 1,
        "positions": LIMIT,  # of its state
        "epsilon": 1e-5,
        "activation": "silu",
        "scan_heads": 128,
        "scan_dim": 64,
        "scan_groups": 8,
        "scan_state": 128,
        "expand": 2,
        "taps": 4,
        "use_conv_bias": True,
    },
    tensors={
        "embedding": "backbone.embeddings",
        "mixer_norm": "backbone.layers.{block}.norm",
        **scan_tensors("backbone.layers.{block}.mixer"),
        "final_norm": "backbone.norm_f",
        "head": "lm_head",
    },
    biases={"scan_taps": "use_conv_bias", "scan_in": "use_bias", "scan_output": "use_bias"},
    block=(Normed("mixer_norm"), Scan(), Added("attended")),
    kinds=no_rotation,
)
