"""A row of blocks that keep a matrix by Mamba-2's scan, and what its families call their words.

In: words "scan_heads", "scan_dim", "scan_groups", "scan_state", "expand" and "taps", roles that
begin with scan_. Out: operations. Refuses heads that do not make up the width, and limits of steps.
Source: arXiv 2405.21060, section 7; transformers, Mamba2Mixer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crumb.architectures.configuration import refuse
from crumb.operations.activation import Activation
from crumb.operations.conv import Conv
from crumb.operations.multiply import Multiply
from crumb.operations.norm import Norm
from crumb.operations.operation import Operation
from crumb.operations.recurrence import RULES, Recurrence
from crumb.operations.split import Split

if TYPE_CHECKING:
    from crumb.architectures.builder import Builder
    from crumb.architectures.reader import Reader


@dataclass(frozen=True)
class Scan:
    """output(norm(what queries read of the state * silu(gate)))."""

    input: str = "normed"
    output: str = "attended"

    def operations(self, builder: Builder, block: int) -> list[Operation]:
        heads, dim, groups, state = scan_sizes(builder.reader)
        hidden, inner, narrow = builder.sizes.hidden, heads * dim, groups * state
        wide = inner + 2 * narrow
        taps, slot = builder.reader.size("taps"), f"block.{block}"
        weight, bias = builder.name("scan_taps", block), builder.bias("scan_taps", block)
        weights = tuple(builder.bare(f"scan_{role}", block) for role in ("rate", "bias", "skip"))
        return [
            builder.linear(
                "scan_in", self.input, "together", (hidden, inner + wide + heads), block
            ),
            Split("together", ("pass", "passing", "step"), 1, (inner, wide, heads)),
            Conv("passing", "convolved", weight, bias, wide, taps, "taps", f"{slot}.taps"),
            Activation("convolved", "convolved", builder.sizes.activation),
            Split("convolved", ("value", "key", "query"), 1, (inner, narrow, narrow)),
            Recurrence(
                RULES["scan"].inputs,
                "mixed",
                "scan",
                heads,
                groups,
                state,
                dim,
                weights,
                f"{slot}.scan",
            ),
            Activation("pass", "pass", "silu"),
            Multiply("pass", "mixed", "mixed"),
            Norm(
                "mixed",
                "mixed",
                "rms",
                builder.name("scan_norm", block),
                None,
                builder.sizes.epsilon,
                inner,
                groups,
                per_channel=True,
            ),
            builder.linear("scan_output", "mixed", self.output, (inner, hidden), block),
        ]


def scan_sizes(reader: Reader) -> tuple[int, int, int, int]:
    """Heads, features of a head, groups of keys, features of a key. Raises: CheckpointError."""
    heads, groups, state = (reader.size(f"scan_{each}") for each in ("heads", "groups", "state"))
    inner = reader.size("expand") * reader.sizes.hidden
    key, dim = reader.find("scan_dim")
    dim = inner // heads if dim == "auto" else reader.size("scan_dim")
    if heads * dim != inner or heads % groups:
        key = reader.find("scan_heads")[0]
        raise refuse(key, f"heads that make up {inner} and that {groups} groups divide", heads)
    limit = reader.configuration.get("time_step_limit")
    if limit not in UNLIMITED:
        raise refuse("time_step_limit", "none: 0 to Infinity", limit)
    return heads, dim, groups, state


UNLIMITED = (None, [0.0, math.inf], [0.0, {"__float__": "Infinity"}])
"""How transformers 4 and 5 write that steps may have any size."""

SCAN_KEYS = {
    "scan_heads": "mamba_n_heads",
    "scan_dim": "mamba_d_head",
    "scan_groups": "mamba_n_groups",
    "scan_state": "mamba_d_state",
    "expand": "mamba_expand",
    "taps": "mamba_d_conv",
}
SCAN_DEFAULTS = {
    "scan_heads": 128,
    "scan_dim": "auto",
    "scan_groups": 1,
    "scan_state": 256,
    "expand": 2,
    "taps": 4,
    "mamba_conv_bias": True,
}
SCAN_BIASES = {
    "scan_taps": "mamba_conv_bias",
    "scan_in": "mamba_proj_bias",
    "scan_output": "mamba_proj_bias",
}
"""Of hybrids, beside attention."""


def scan_tensors(mixer: str) -> dict[str, str]:
    """Tensors by role of the mixer with this name."""
    return {
        "scan_in": f"{mixer}.in_proj",
        "scan_taps": f"{mixer}.conv1d",
        "scan_rate": f"{mixer}.A_log",
        "scan_bias": f"{mixer}.dt_bias",
        "scan_skip": f"{mixer}.D",
        "scan_norm": f"{mixer}.norm",
        "scan_output": f"{mixer}.out_proj",
    }
